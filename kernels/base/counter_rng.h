// Random numbers as a pure function of (seed, position, token id): a token's noise depends neither
// on the batch, nor on the backend, nor on what was drawn before.
//
// Bits: Philox4x32 with 10 rounds. Key (seed low, seed high); counter (token_id / 4, position,
// RandomStream, 0); token_id takes word token_id % 4 of the result.
// Gumbel noise of a word w: n = w >> 1 (31 bits), v = (n + 1/2) / 2^31, noise = -log(-log(1 - v)),
// in f32 as written below (kernels/base/portable_math.h says what operations). Every v in (0, 1) is
// possible, and the small ones, which make the large noise, carry all their 31 bits; so noise lies
// in [-3.1, 22.2].
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <stdint.h>

#include "kernels/base/portable_math.h"

namespace sluice {

// Counter word 2: what the numbers are for.
enum class RandomStream : uint32_t { kSampling = 0 };

struct PhiloxBlock {
  uint32_t word[4];
};

static constexpr PhiloxBlock Philox4x32(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The bits of tokens 4 * token_block .. 4 * token_block + 3.
static constexpr PhiloxBlock TokenBits(uint64_t seed, uint32_t position, uint32_t token_block) {
  return Philox4x32({{token_block, position, static_cast<uint32_t>(RandomStream::kSampling), 0}},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

inline constexpr float kGumbelMin = -3.2f;  // bounds of GumbelOfBits
inline constexpr float kGumbelMax = 22.2f;

static constexpr float GumbelOfBits(uint32_t bits) {
  using namespace portable;
  const int32_t n = static_cast<int32_t>(bits >> 1);
  const float v = static_cast<float>(n) * 0x1p-31f + 0x1p-32f;
  const float u = static_cast<float>(0x7fffffff - n) * 0x1p-31f + 0x1p-32f;  // 1 - v
  // log(1 - v) from v where v is small, else from u: neither loses bits.
  const bool small = v < 0.25f;
  const int32_t exponent = small ? 0 : LogExponent(u);
  const float f = small ? -v : LogMantissa(u, exponent) - 1.0f;
  const float exponential = -LogOfParts(exponent, f);
  return -Log(exponential);
}

static constexpr float GumbelNoise(uint64_t seed, uint32_t position, uint32_t token_id) {
  return GumbelOfBits(TokenBits(seed, position, token_id / 4).word[token_id % 4]);
}

}  // namespace sluice
