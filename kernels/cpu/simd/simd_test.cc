#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/float_convert.h"
#include "kernels/cpu/simd/simd_probe.h"

namespace sluice {
namespace {

constexpr int kSeed = 20261122;
using Lanes = std::array<float, 16>;

const SimdProbes& ProbesOf(CpuIsa isa) { return SLUICE_CHOOSE_KERNELS(isa, GetSimdProbes); }

std::vector<CpuIsa> VectorIsas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa <= DetectCpuIsa()) isas.push_back(isa);
  }
  return isas;
}

// Runs the probe called `name` of the generic variant.
Lanes RunGeneric(const std::string& name, const Lanes& a, int n = 16) {
  const SimdProbes& probes = ProbesOf(CpuIsa::kGeneric);
  Lanes out;
  out.fill(-12345.0f);
  for (int i = 0; i < probes.count; ++i) {
    if (name == probes.probes[i].name) {
      probes.probes[i].run(a.data(), a.data(), a.data(), n, out.data());
      return out;
    }
  }
  ADD_FAILURE() << "no probe " << name;
  return out;
}

// Random bit patterns (so every exponent, NaN and infinity), ordinary numbers, and edges.
Lanes RandomLanes(std::mt19937& rng, int kind) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kEdges[] = {
      0.0f,   -0.0f,     1.0f,      -1.0f,           kInf,    -kInf,    0.5f,  2.5f, -103.9f,
      88.72f, 0x1p-149f, 0x1p-126f, 0x1.fffffep127f, 0x1p31f, -0x1p31f, -87.4f};
  Lanes lanes;
  for (float& lane : lanes) {
    switch (kind) {
      case 0:
        lane = std::bit_cast<float>(static_cast<uint32_t>(rng()));
        break;
      case 1:
        lane = std::normal_distribution<float>(0.0f, 10.0f)(rng);
        break;
      default:
        lane = kEdges[rng() % std::size(kEdges)];
    }
  }
  return lanes;
}

TEST(SimdTest, EveryInstructionSetGivesTheSameBits) {
  const SimdProbes& generic = ProbesOf(CpuIsa::kGeneric);
  for (const CpuIsa isa : VectorIsas()) {
    const SimdProbes& other = ProbesOf(isa);
    ASSERT_EQ(other.count, generic.count);
    std::mt19937 rng(kSeed);
    for (int round = 0; round < 1500; ++round) {
      const Lanes a = RandomLanes(rng, round % 3);
      const Lanes b = RandomLanes(rng, rng() % 3);
      const Lanes c = RandomLanes(rng, rng() % 3);
      const int n = static_cast<int>(rng() % 17);
      for (int p = 0; p < generic.count; ++p) {
        const SimdProbe& probe = generic.probes[p];
        Lanes want, got;
        want.fill(-1.25f);
        got.fill(-1.25f);
        probe.run(a.data(), b.data(), c.data(), n, want.data());
        other.probes[p].run(a.data(), b.data(), c.data(), n, got.data());
        for (int i = 0; i < 16; ++i) {
          if (!probe.integer && std::isnan(want[i]) && std::isnan(got[i])) continue;
          ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i]))
              << probe.name << " lane " << i << " of isa " << static_cast<int>(isa) << ": "
              << got[i] << " for " << want[i] << "; a " << a[i] << " b " << b[i] << " c " << c[i]
              << " n " << n << " seed " << kSeed << " round " << round;
        }
      }
    }
  }
}

TEST(SimdTest, WideningIsExactForEveryCode) {
  for (int base = 0; base < 65536; base += 16) {
    std::array<uint16_t, 32> codes{};
    for (int i = 0; i < 16; ++i) codes[i] = static_cast<uint16_t>(base + i);
    const Lanes bytes = std::bit_cast<Lanes>(codes);
    const Lanes bf16 = RunGeneric("LoadBf16((const uint16_t*)pa)", bytes);
    const Lanes f16 = RunGeneric("LoadF16((const uint16_t*)pa)", bytes);
    for (int i = 0; i < 16; ++i) {
      const float want = F16ToF32(codes[i]);
      EXPECT_EQ(std::bit_cast<uint32_t>(bf16[i]), uint32_t{codes[i]} << 16);
      EXPECT_TRUE(f16[i] == want || (std::isnan(f16[i]) && std::isnan(want))) << codes[i];
    }
  }
  for (int base = 0; base < 256; base += 16) {
    std::array<uint8_t, 64> codes{};
    for (int i = 0; i < 16; ++i) codes[i] = static_cast<uint8_t>(base + i);
    const Lanes f8 = RunGeneric("LoadF8((const uint8_t*)pa)", std::bit_cast<Lanes>(codes));
    for (int i = 0; i < 16; ++i) {
      const float want = F8E4M3ToF32(codes[i]);
      EXPECT_EQ(std::isnan(f8[i]), std::isnan(want)) << int{codes[i]};
      if (!std::isnan(want)) {
        EXPECT_EQ(f8[i], want) << int{codes[i]};
      }
    }
  }
}

TEST(SimdTest, PartialStoresLeaveTheRestAlone) {
  Lanes a;
  for (int i = 0; i < 16; ++i) a[i] = static_cast<float>(i);
  for (int n = 0; n <= 16; ++n) {
    const Lanes stored = RunGeneric("StoreN", a, n);
    const Lanes loaded = RunGeneric("LoadN(pa, n)", a, n);
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(stored[i], i < n ? a[i] : -12345.0f);
      EXPECT_EQ(loaded[i], i < n ? a[i] : 0.0f);
    }
  }
}

TEST(SimdTest, Bf16RoundsLikeTheScalarConversion) {
  std::mt19937 rng(kSeed);
  for (int round = 0; round < 2000; ++round) {
    const Lanes a = RandomLanes(rng, round % 3);
    const auto stored = std::bit_cast<std::array<uint16_t, 32>>(RunGeneric("StoreBf16", a));
    for (int i = 0; i < 16; ++i) EXPECT_EQ(stored[i], F32ToBf16(a[i])) << a[i];
  }
}

// Distance of `got` from the true value in units of got's last place.
double UlpError(float got, double want) {
  if (got == want || (std::isnan(got) && std::isnan(want))) return 0;
  if (std::isinf(got)) return got > 0 && want > 0x1.fffffep127 ? 0 : 1e9;
  const float next = std::nextafter(std::fabs(got), std::numeric_limits<float>::infinity());
  return std::fabs(got - want) / (double{next} - std::fabs(got));
}

struct FunctionCase {
  const char* probe;
  double (*reference)(double);
  float low, high;  // swept evenly
  double ulp_max;
};

TEST(SimdTest, ElementaryFunctionsAreAccurate) {
  const FunctionCase cases[] = {
      {"Exp(a)", [](double x) { return std::exp(x); }, -110.0f, 95.0f, 2},
      {"Exp(a)", [](double x) { return std::exp(x); }, -1.0f, 1.0f, 2},
      {"Log(a)", [](double x) { return std::log(x); }, 0x1p-140f, 0x1p-120f, 2},
      {"Log(a)", [](double x) { return std::log(x); }, 0.3f, 3.0f, 2},
      {"Log(a)", [](double x) { return std::log(x); }, 1.0f, 3e38f, 2},
      {"Sigmoid(a)", [](double x) { return 1 / (1 + std::exp(-x)); }, -80.0f, 80.0f, 4},
      {"Silu(a)", [](double x) { return x / (1 + std::exp(-x)); }, -80.0f, 80.0f, 4},
  };
  constexpr int kSteps = 100000;
  for (const FunctionCase& c : cases) {
    double worst = 0;
    for (int step = 0; step < kSteps; step += 16) {
      Lanes x;
      for (int i = 0; i < 16; ++i) {
        x[i] = c.low + (c.high - c.low) * static_cast<float>(step + i) / kSteps;
      }
      const Lanes y = RunGeneric(c.probe, x);
      for (int i = 0; i < 16; ++i) {
        const double ulp = UlpError(y[i], c.reference(x[i]));
        EXPECT_LE(ulp, c.ulp_max) << c.probe << " of " << x[i] << " gives " << y[i];
        worst = std::max(worst, ulp);
      }
    }
    RecordProperty(c.probe, std::to_string(worst));
  }
}

TEST(SimdTest, ElementaryFunctionsAtTheEdges) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Lanes x = {0.0f, kInf, -kInf, nan, -0.0f, 1.0f, -1.0f};
  const Lanes e = RunGeneric("Exp(a)", x);
  EXPECT_EQ(e[0], 1.0f);
  EXPECT_EQ(e[1], kInf);
  EXPECT_EQ(e[2], 0.0f);
  EXPECT_TRUE(std::isnan(e[3]));
  const Lanes l = RunGeneric("Log(a)", x);
  EXPECT_EQ(l[0], -kInf);
  EXPECT_EQ(l[1], kInf);
  EXPECT_TRUE(std::isnan(l[2]));
  EXPECT_TRUE(std::isnan(l[3]));
  EXPECT_EQ(l[4], -kInf);
  EXPECT_EQ(l[5], 0.0f);
  EXPECT_TRUE(std::isnan(l[6]));
}

}  // namespace
}  // namespace sluice
