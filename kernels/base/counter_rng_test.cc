#include "kernels/base/counter_rng.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace sluice {
namespace {

TEST(PortableMath, ExpIsWithinTwoUlp) {
  for (float x = -86.9f; x < 88.0f; x += 0.00737f) {
    const double want = std::exp(static_cast<double>(x));
    EXPECT_NEAR(portable::Exp(x), want, want * 2.4e-7) << x;
  }
  EXPECT_EQ(portable::Exp(0.0f), 1.0f);
  EXPECT_EQ(portable::Exp(-87.5f), 0.0f);
  EXPECT_EQ(portable::Exp(-INFINITY), 0.0f);
}

TEST(PortableMath, LogIsWithinTwoUlp) {
  for (float x = 1e-37f; x < 1e38f; x *= 1.00913f) {
    const double want = std::log(static_cast<double>(x));
    EXPECT_NEAR(portable::Log(x), want, std::fabs(want) * 2.4e-7) << x;
  }
  for (float x = 0.9f; x < 1.1f; x = std::nextafterf(x * 1.00001f, 2.0f)) {  // no loss around 1
    const double want = std::log(static_cast<double>(x));
    EXPECT_NEAR(portable::Log(x), want, std::fabs(want) * 2.4e-7) << x;
  }
  EXPECT_EQ(portable::Log(1.0f), 0.0f);
}

// Vectors of Random123's kat_vectors file.
TEST(CounterRng, PhiloxGivesThePublishedValues) {
  const PhiloxBlock zeros = Philox4x32({{0, 0, 0, 0}}, 0, 0);
  EXPECT_EQ(zeros.word[0], 0x6627e8d5u);
  EXPECT_EQ(zeros.word[1], 0xe169c58du);
  EXPECT_EQ(zeros.word[2], 0xbc57ac4cu);
  EXPECT_EQ(zeros.word[3], 0x9b00dbd8u);
  const PhiloxBlock pi =
      Philox4x32({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0xa4093822u, 0x299f31d0u);
  EXPECT_EQ(pi.word[0], 0xd16cfe09u);
  EXPECT_EQ(pi.word[1], 0x94fdccebu);
  EXPECT_EQ(pi.word[2], 0x5001e420u);
  EXPECT_EQ(pi.word[3], 0x24126ea1u);
}

TEST(CounterRng, GumbelFollowsItsFormula) {
  std::vector<uint32_t> words = {0, 1, 2, 3, 0x7fffffffu, 0x80000000u, 0xfffffffeu, 0xffffffffu};
  for (uint64_t w = 1; w < (uint64_t{1} << 32); w = w * 17 / 16 + 1) {
    words.push_back(static_cast<uint32_t>(w));
    words.push_back(~static_cast<uint32_t>(w));
  }
  for (const uint32_t word : words) {
    const double v = ((word >> 1) + 0.5) * 0x1p-31;
    const double want = -std::log(-std::log1p(-v));
    EXPECT_NEAR(GumbelOfBits(word), want, 1e-6 * std::max(1.0, std::fabs(want))) << word;
    EXPECT_GT(GumbelOfBits(word), kGumbelMin);
    EXPECT_LT(GumbelOfBits(word), kGumbelMax);
  }
}

// Changing these bits changes every sampled answer: a release note, not a refactoring.
TEST(CounterRng, NoiseIsPinned) {
  EXPECT_EQ(GumbelNoise(0, 0, 0), GumbelOfBits(0x6627e8d5u));
  EXPECT_EQ(GumbelNoise(0, 0, 3), GumbelOfBits(0x9b00dbd8u));
  EXPECT_EQ(GumbelNoise(0x0123456789abcdefull, 7, 129279),
            GumbelOfBits(Philox4x32({{129279 / 4, 7, 0, 0}}, 0x89abcdefu, 0x01234567u).word[3]));
}

// Mean of a standard Gumbel is Euler's constant, its variance pi^2 / 6; bounds are 5 sigma.
TEST(CounterRng, NoiseHasTheMomentsOfAGumbel) {
  for (const uint64_t seed : {uint64_t{1}, uint64_t{0xdeadbeefcafef00d}}) {
    constexpr int kCount = 400000;
    double sum = 0, squares = 0;
    for (int i = 0; i < kCount; ++i) {
      const double g = GumbelNoise(seed, static_cast<uint32_t>(i % 97), static_cast<uint32_t>(i));
      sum += g;
      squares += g * g;
    }
    const double mean = sum / kCount;
    EXPECT_NEAR(mean, 0.5772157, 5 * 1.2825 / std::sqrt(kCount)) << "seed " << seed;
    EXPECT_NEAR(squares / kCount - mean * mean, 1.644934, 5 * 3.4 / std::sqrt(kCount))
        << "seed " << seed;
  }
}

}  // namespace
}  // namespace sluice
