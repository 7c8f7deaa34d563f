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

constexpr int kBlock = 256;  // tokens
constexpr int kPhiloxBlocks = kBlock / 4;

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

void CountBuckets(const float* y, int64_t n, float y_min, int64_t* counts) {
  int buckets[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int size = n - begin < kBlock ? (int)(n - begin) : kBlock;
    for (int i = 0; i < size; ++i) buckets[i] = BucketOf(y[begin + i]);
    for (int i = 0; i < size; ++i) counts[buckets[i]] += y[begin + i] >= y_min;
  }
}

void WeighBuckets(const float* y, int64_t n, float y_min, uint64_t* masses) {
  int buckets[kBlock];
  uint64_t block_masses[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int size = n - begin < kBlock ? (int)(n - begin) : kBlock;
    for (int i = 0; i < size; ++i) {
      buckets[i] = BucketOf(y[begin + i]);
      const uint64_t mass = MassOf(y[begin + i]);
      block_masses[i] = y[begin + i] >= y_min ? mass : 0;
    }
    for (int i = 0; i < size; ++i) masses[buckets[i]] += block_masses[i];
  }
}

int64_t Gather(const float* y, int64_t n, float low, float high, SampleCandidate* out) {
  const F32x16 lows = Set1(low);
  const F32x16 highs = Set1(high);
  int64_t count = 0;
  for (int64_t begin = 0; begin < n; begin += 16) {
    const int size = n - begin < 16 ? (int)(n - begin) : 16;
    const F32x16 lanes = LoadN(y + begin, size);
    uint32_t hits = Bits(And(FirstN(size), And(Ge(lanes, lows), Le(lanes, highs))));
    for (; hits != 0; hits &= hits - 1) {
      const int64_t id = begin + __builtin_ctz(hits);
      out[count++] = {y[id], (int32_t)id};
    }
  }
  return count;
}

// portable::LogOfParts, LogExponent and LogMantissa, 16 at a time.
F32x16 LogOfParts16(I32x16 exponent, F32x16 f) {
  F32x16 p = Set1(-0.0785961371f);
  p = p * f + Set1(0.128816471f);
  p = p * f - Set1(0.131287538f);
  p = p * f + Set1(0.14181192f);
  p = p * f - Set1(0.166245542f);
  p = p * f + Set1(0.200022863f);
  p = p * f - Set1(0.250008104f);
  p = p * f + Set1(0.333333167f);
  const F32x16 n = ToF32(exponent);
  const F32x16 square = f * f;
  F32x16 tail = (square * f) * p;
  tail = tail - n * Set1(2.12194440e-4f);
  tail = tail - square * Set1(0.5f);
  return (f + tail) + n * Set1(0.693359375f);
}

I32x16 LogExponent16(F32x16 x) { return ShiftRight<23>(BitsOf(x) - Set1I(0x3f3504f3)); }

F32x16 LogMantissa16(F32x16 x, I32x16 exponent) {
  return FromBits(BitsOf(x) - ShiftLeft<23>(exponent));
}

// GumbelOfBits of kernels/base/counter_rng.h, 16 at a time.
F32x16 GumbelOfBits16(I32x16 bits) {
  const I32x16 n = ShiftRightLogical<1>(bits);
  const F32x16 v = ToF32(n) * Set1(0x1p-31f) + Set1(0x1p-32f);
  const F32x16 u = ToF32(Set1I(0x7fffffff) - n) * Set1(0x1p-31f) + Set1(0x1p-32f);
  const Mask16 small = Lt(v, Set1(0.25f));
  const I32x16 u_exponent = LogExponent16(u);
  const F32x16 f = Select(small, Neg(v), LogMantissa16(u, u_exponent) - Set1(1.0f));
  const F32x16 exponential = Neg(LogOfParts16(SelectI(small, Set1I(0), u_exponent), f));
  const I32x16 exponent = LogExponent16(exponential);
  return Neg(LogOfParts16(exponent, LogMantissa16(exponential, exponent) - Set1(1.0f)));
}

// The noise of tokens 4 * first_block .. 4 * first_block + kBlock - 1: TokenBits and GumbelOfBits
// of kernels/base/counter_rng.h, round by round over all Philox blocks.
void BlockNoise(uint64_t seed, uint32_t position, uint32_t first_block, float* noise) {
  uint32_t c0[kPhiloxBlocks], c1[kPhiloxBlocks], c2[kPhiloxBlocks], c3[kPhiloxBlocks];
  for (int i = 0; i < kPhiloxBlocks; ++i) {
    c0[i] = first_block + (uint32_t)i;
    c1[i] = position;
    c2[i] = (uint32_t)RandomStream::kSampling;
    c3[i] = 0;
  }
  uint32_t key0 = (uint32_t)seed;
  uint32_t key1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kPhiloxBlocks; ++i) {
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
  for (int i = 0; i < kPhiloxBlocks; ++i) {
    bits[4 * i] = c0[i];
    bits[4 * i + 1] = c1[i];
    bits[4 * i + 2] = c2[i];
    bits[4 * i + 3] = c3[i];
  }
  for (int i = 0; i < kBlock; i += 16) {
    Store(noise + i, GumbelOfBits16(LoadI((const int32_t*)bits + i)));
  }
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
  static constexpr SamplingKernels kKernels = {
      Sanitize, Mass, Penalize, Argmax, Scale, CountBuckets, WeighBuckets, Gather, GumbelArgmax};
  return kKernels;
}

}  // namespace SLUICE_SIMD
}  // namespace sluice
