// Sampling from a row of logits by one block, as kernels/ops/sampling.h describes.
//
// Compiled without fused multiply-adds: for equal logits the tokens are the CPU's. The cut that
// top_k and top_p come down to (kernels/cpu/sample_row.h) is found bit by bit: a float's order is
// that of a 32-bit key, so 32 passes over the row find the largest key whose count, or mass, of
// larger ones reaches what is wanted; ties are settled by id in the same way.
#include <float.h>

#include "kernels/base/counter_rng.h"
#include "kernels/base/portable_math.h"
#include "kernels/cuda/device.cuh"
#include "kernels/ops/sampling_row.h"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 512;
constexpr float kMassUnit = 0x1p40f;  // as on the CPU

struct Best {
  float value;
  int32_t id;  // -1: none
};

__device__ bool Before(const Best& a, const Best& b) {
  if (a.id < 0 || b.id < 0) return a.id >= 0;
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

__device__ Best BlockBest(Best best) {
  __shared__ Best parts[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    const Best other{__shfl_xor_sync(~0u, best.value, offset),
                     __shfl_xor_sync(~0u, best.id, offset)};
    if (Before(other, best)) best = other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = best;
  __syncthreads();
  best = parts[0];
  for (int i = 1; i < kThreads / 32; ++i) {
    if (Before(parts[i], best)) best = parts[i];
  }
  return best;
}

__device__ uint64_t BlockSum64(uint64_t x) {
  __shared__ uint64_t parts[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int i = 0; i < kThreads / 32; ++i) x += parts[i];
  return x;
}

__device__ float Clean(float x) {
  const float value = x >= -FLT_MAX ? x : -CUDART_INF_F;  // NaN too
  return value < FLT_MAX ? value : FLT_MAX;
}

__device__ uint64_t MassOf(float y) { return (uint64_t)(int64_t)(portable::Exp(y) * kMassUnit); }

// Rises with the float. -0 must not come before 0: y is never -0 here but for 0 * something.
__device__ uint32_t KeyOf(float y) {
  const uint32_t bits = __float_as_uint(y == 0.0f ? 0.0f : y);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ float FromKey(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Tokens (y, id) up to and including this one are kept.
struct Cut {
  float y;
  int32_t id;
  __device__ bool Keeps(float value, int32_t at) const {
    return value > y || (value == y && at <= id);
  }
};

// Weighs tokens: 1 each, or their probability mass; those outside `within` nothing.
template <bool kMass>
struct Weigh {
  const float* y;
  Cut within;
  __device__ uint64_t operator()(int32_t id) const {
    if (!within.Keeps(y[id], id)) return 0;
    return kMass ? MassOf(y[id]) : 1;
  }
};

// The token with which the weight, counted from the most probable one down, reaches `wanted`, which
// is positive and at most the weight of all.
template <bool kMass>
__device__ Cut FindCut(const Weigh<kMass>& weigh, int vocab, uint64_t wanted) {
  uint32_t key = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = key | (1u << bit);
    uint64_t sum = 0;
    for (int id = threadIdx.x; id < vocab; id += kThreads) {
      if (KeyOf(weigh.y[id]) >= candidate) sum += weigh(id);
    }
    if (BlockSum64(sum) >= wanted) key = candidate;
  }
  uint64_t above = 0;
  for (int id = threadIdx.x; id < vocab; id += kThreads) {
    if (KeyOf(weigh.y[id]) > key) above += weigh(id);
  }
  const uint64_t left = wanted - BlockSum64(above);
  int32_t at = 0;  // the lowest id such that ties up to it reach what is left
  for (int bit = 30; bit >= 0; --bit) {
    const int32_t candidate = at | (1 << bit);
    uint64_t sum = 0;
    for (int id = threadIdx.x; id < vocab && id < candidate; id += kThreads) {
      if (KeyOf(weigh.y[id]) == key) sum += weigh(id);
    }
    if (BlockSum64(sum) < left) at = candidate;
  }
  return {FromKey(key), at};
}

__device__ uint64_t MassToReach(float top_p, uint64_t total) {
  const double wanted = ceil((double)top_p * (double)total);
  const uint64_t units = wanted > 1 ? (uint64_t)wanted : 1;
  return units < total ? units : total;
}

__device__ Cut CutOf(const SamplingRow& row, const float* y, int vocab) {
  Cut cut{-FLT_MAX, INT32_MAX};
  if (row.min_p > 0.0f) {
    const float least = portable::Log(row.min_p > 1e-37f ? row.min_p : 1e-37f);
    cut.y = least < 0.0f ? least : 0.0f;
  }
  if (row.top_k > 0 && row.top_k < vocab) {
    const Weigh<false> count{y, cut};
    uint64_t all = 0;
    for (int id = threadIdx.x; id < vocab; id += kThreads) all += count(id);
    if (BlockSum64(all) > (uint64_t)row.top_k) cut = FindCut(count, vocab, row.top_k);
  }
  if (row.top_p < 1.0f) {
    const Weigh<true> mass{y, cut};
    uint64_t all = 0;
    for (int id = threadIdx.x; id < vocab; id += kThreads) all += mass(id);
    all = BlockSum64(all);
    cut = FindCut(mass, vocab, MassToReach(row.top_p, all));
  }
  return cut;
}

// Fills values with the logits after bias, bans and penalties; returns the best of them.
__device__ Best Prepare(const SampleArgs& args, const SamplingRow& row, const float* logits,
                        float* values) {
  for (int id = threadIdx.x; id < args.vocab; id += kThreads) values[id] = Clean(logits[id]);
  __syncthreads();
  if (threadIdx.x == 0) {  // few, and an id may come twice
    for (int i = row.bias_begin; i < row.bias_end; ++i) {
      values[args.bias_ids[i]] += args.bias_values[i];
    }
    for (int i = row.banned_begin; i < row.banned_end; ++i) {
      values[args.banned_ids[i]] = -CUDART_INF_F;
    }
  }
  __syncthreads();
  const bool penalized = row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
                         row.frequency_penalty != 0.0f;
  Best best{0, -1};
  for (int id = threadIdx.x; id < args.vocab; id += kThreads) {
    float value = values[id];
    if (penalized) {
      const int32_t count = args.output_counts[row.slot * args.counts_stride + id];
      const bool seen = count > 0 || args.prompt_mask[row.slot * args.mask_stride + id] != 0;
      const float repeated =
          value > 0.0f ? value / row.repetition_penalty : value * row.repetition_penalty;
      value = (seen ? repeated : value) - row.frequency_penalty * (float)count -
              (count > 0 ? row.presence_penalty : 0.0f);
    }
    value = Clean(value);
    values[id] = value;
    if (Before({value, id}, best)) best = {value, id};
  }
  return BlockBest(best);
}

__device__ int32_t Choose(const SampleArgs& args, const SamplingRow& row, const float* logits,
                          float* values) {
  const Best best = Prepare(args, row, logits, values);
  if (best.value == -CUDART_INF_F) {  // the lowest id that is not banned, or 0
    Best lowest{0, -1};
    for (int id = threadIdx.x; id < args.vocab; id += kThreads) {
      bool banned = false;
      for (int i = row.banned_begin; i < row.banned_end; ++i) banned |= args.banned_ids[i] == id;
      if (!banned && Before({0, id}, lowest)) lowest = {0, id};
    }
    lowest = BlockBest(lowest);
    return lowest.id < 0 ? 0 : lowest.id;
  }
  if (!(row.temperature > 0.0f)) return best.id;
  for (int id = threadIdx.x; id < args.vocab; id += kThreads) {
    values[id] = (values[id] - best.value) / row.temperature;
  }
  __syncthreads();
  const Cut cut = CutOf(row, values, args.vocab);
  Best chosen{0, -1};
  for (int id = threadIdx.x; id < args.vocab; id += kThreads) {
    if (!cut.Keeps(values[id], id)) continue;
    const Best noisy{values[id] + GumbelNoise(row.seed, (uint32_t)row.position, (uint32_t)id), id};
    if (Before(noisy, chosen)) chosen = noisy;
  }
  return BlockBest(chosen).id;
}

// log_softmax of the raw logits: of the token, and of the most probable ones.
__device__ void WriteLogprobs(const SampleArgs& args, const SamplingRow& row, const float* logits,
                              int32_t token) {
  int32_t* top_ids = args.top_ids + blockIdx.x * args.top_ids_stride;
  float* top_logprobs = args.top_logprobs + blockIdx.x * args.top_logprobs_stride;
  Best best{0, -1};
  for (int id = threadIdx.x; id < args.vocab; id += kThreads) {
    const Best here{Clean(logits[id]), id};
    if (Before(here, best)) best = here;
  }
  best = BlockBest(best);
  const float max = best.value;
  if (max == -CUDART_INF_F) {  // no distribution: the lowest ids at minus infinity
    for (int i = threadIdx.x; i < row.num_logprobs; i += kThreads) {
      top_ids[i] = i;
      top_logprobs[i] = -CUDART_INF_F;
    }
    if (threadIdx.x == 0) args.logprobs[blockIdx.x] = -CUDART_INF_F;
    return;
  }
  uint64_t mass = 0;
  for (int id = threadIdx.x; id < args.vocab; id += kThreads)
    mass += MassOf(Clean(logits[id]) - max);
  const float log_sum = portable::Log((float)BlockSum64(mass) * (1.0f / kMassUnit));
  if (threadIdx.x == 0) args.logprobs[blockIdx.x] = (Clean(logits[token]) - max) - log_sum;
  const int wanted = row.num_logprobs < args.vocab ? row.num_logprobs : args.vocab;
  for (int i = 0; i < wanted; ++i) {
    if (threadIdx.x == 0) {
      top_ids[i] = best.id;
      top_logprobs[i] = (best.value - max) - log_sum;
    }
    Best next{0, -1};
    for (int id = threadIdx.x; id < args.vocab; id += kThreads) {
      const Best here{Clean(logits[id]), id};
      if (Before(best, here) && Before(here, next)) next = here;
    }
    best = BlockBest(next);
  }
}

__global__ void __launch_bounds__(kThreads) SampleKernel(SampleArgs args) {
  const SamplingRow row = static_cast<const SamplingRow*>(args.rows)[blockIdx.x];
  const float* logits = args.logits + blockIdx.x * args.logits_stride;
  float* values = args.values + (int64_t)blockIdx.x * args.vocab;
  if (args.not_finite != nullptr) {
    uint64_t odd = 0;
    for (int id = threadIdx.x; id < args.vocab; id += kThreads) odd += !isfinite(logits[id]);
    odd = BlockSum64(odd);
    if (threadIdx.x == 0) args.not_finite[blockIdx.x] = odd > 0;
  }
  const int32_t token = Choose(args, row, logits, values);
  if (row.num_logprobs >= 0) WriteLogprobs(args, row, logits, token);
  if (threadIdx.x == 0) {
    args.tokens[blockIdx.x] = token;
    args.tokens_by_slot[row.slot] = token;
    if (row.counts_tokens) ++args.output_counts[row.slot * args.counts_stride + token];
  }
}

}  // namespace

cudaError_t LaunchSample(const SampleArgs& args, cudaStream_t stream) {
  if (args.count == 0) return cudaSuccess;
  SampleKernel<<<args.count, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace sluice::cuda
