// Compiled once per instruction set. The loops are plain so that the compiler vectorises them; none
// reorders floating-point sums.
#include "kernels/cpu/sampling_kernels.h"

#include <float.h>
#include <math.h>

#include "kernels/base/counter_rng.h"
#include "kernels/cpu/simd/f32x16.h"

namespace sluice {
namespace SLUICE_SIMD {
namespace {

constexpr int kBlock = 64;  // tokens; 16 Philox blocks

float MaxOf(const float* x, int64_t n) {
  F32x16 lanes = Set1(-INFINITY);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) lanes = Max(Load(x + i), lanes);
  if (const int left = (int)(n - i); left > 0) {
    lanes = Max(Select(FirstN(left), LoadN(x + i, left), lanes), lanes);
  }
  return HMax(lanes);
}

float Sanitize(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = x[i] >= -FLT_MAX ? x[i] : -INFINITY;
    out[i] = value < FLT_MAX ? value : FLT_MAX;
  }
  return MaxOf(out, n);
}

uint64_t MassOf(float y) { return (uint64_t)(int64_t)(portable::Exp(y) * kSampleMassUnit); }

uint64_t Mass(const float* x, int64_t n, float max) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += MassOf(x[i] - max);
  return sum;
}

void Penalize(float* x, int64_t n, const uint8_t* prompt_mask, const int32_t* output_counts,
              float repetition, float presence, float frequency) {
  for (int64_t i = 0; i < n; ++i) {
    const bool output = output_counts[i] > 0;
    const bool seen = output || prompt_mask[i] != 0;
    const float repeated = x[i] > 0.0f ? x[i] / repetition : x[i] * repetition;
    const float value = seen ? repeated : x[i];
    x[i] = value - frequency * (float)output_counts[i] - (output ? presence : 0.0f);
  }
}

int64_t Argmax(const float* x, int64_t n) {
  const float max = MaxOf(x, n);
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] == max) return i;
  }
  return 0;
}

void Scale(float* x, int64_t n, float max, float temperature) {
  for (int64_t i = 0; i < n; ++i) x[i] = (x[i] - max) / temperature;
}

int BucketOf(float y) {
  const float bucket = y * -16.0f;
  return (int)(bucket < (float)(kSampleBuckets - 1) ? bucket : (float)(kSampleBuckets - 1));
}

void Histogram(const float* y, int64_t n, float y_min, int64_t* counts, uint64_t* masses) {
  int buckets[kBlock];
  uint64_t block_masses[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int size = n - begin < kBlock ? (int)(n - begin) : kBlock;
    for (int i = 0; i < size; ++i) {
      buckets[i] = BucketOf(y[begin + i]);
      block_masses[i] = MassOf(y[begin + i]);
    }
    for (int i = 0; i < size; ++i) {
      if (!(y[begin + i] >= y_min)) continue;
      counts[buckets[i]] += 1;
      masses[buckets[i]] += block_masses[i];
    }
  }
}

int64_t Gather(const float* y, int64_t n, float y_min, int bucket, SampleCandidate* out) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (BucketOf(y[i]) == bucket && y[i] >= y_min) out[count++] = {y[i], (int32_t)i};
  }
  return count;
}

// The noise of tokens 4 * first_block .. 4 * first_block + 63: TokenBits and GumbelOfBits of
// kernels/base/counter_rng.h, 16 Philox blocks at a time.
void BlockNoise(uint64_t seed, uint32_t position, uint32_t first_block, float* noise) {
  uint32_t c0[16], c1[16], c2[16], c3[16];
  for (int i = 0; i < 16; ++i) {
    c0[i] = first_block + (uint32_t)i;
    c1[i] = position;
    c2[i] = (uint32_t)RandomStream::kSampling;
    c3[i] = 0;
  }
  uint32_t key0 = (uint32_t)seed;
  uint32_t key1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < 16; ++i) {
      const uint64_t product0 = (uint64_t)0xD2511F53u * c0[i];
      const uint64_t product1 = (uint64_t)0xCD9E8D57u * c2[i];
      c0[i] = (uint32_t)(product1 >> 32) ^ c1[i] ^ key0;
      c1[i] = (uint32_t)product1;
      c2[i] = (uint32_t)(product0 >> 32) ^ c3[i] ^ key1;
      c3[i] = (uint32_t)product0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  uint32_t bits[kBlock];
  for (int i = 0; i < 16; ++i) {
    bits[4 * i] = c0[i];
    bits[4 * i + 1] = c1[i];
    bits[4 * i + 2] = c2[i];
    bits[4 * i + 3] = c3[i];
  }
  for (int i = 0; i < kBlock; ++i) noise[i] = GumbelOfBits(bits[i]);
}

int64_t GumbelArgmax(const float* y, int64_t n, SampleCandidate cut, uint64_t seed,
                     uint32_t position) {
  float best = kGumbelMin;  // the token with y = 0 reaches that
  int64_t best_id = 0;
  float scores[kBlock];
  float noise[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int size = n - begin < kBlock ? (int)(n - begin) : kBlock;
    // No noise lifts a block of improbable tokens over the best so far.
    const float max = MaxOf(y + begin, size);
    if (max < cut.y || max + kGumbelMax < best) continue;
    BlockNoise(seed, position, (uint32_t)(begin / 4), noise);
    for (int i = 0; i < size; ++i) {
      const float value = y[begin + i];
      const bool kept = value > cut.y || (value == cut.y && begin + i <= cut.id);
      scores[i] = kept ? value + noise[i] : -INFINITY;
    }
    for (int i = size; i < kBlock; ++i) scores[i] = -INFINITY;
    const float block_best = MaxOf(scores, kBlock);
    if (!(block_best > best)) continue;
    best = block_best;
    best_id = begin + Argmax(scores, kBlock);
  }
  return best_id;
}

}  // namespace

const SamplingKernels& GetSamplingKernels() {
  static constexpr SamplingKernels kKernels = {Sanitize, Mass,      Penalize, Argmax,
                                               Scale,    Histogram, Gather,   GumbelArgmax};
  return kKernels;
}

}  // namespace SLUICE_SIMD
}  // namespace sluice
