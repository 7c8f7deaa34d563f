// Sampling as kernels/ops/sampling.h describes: a cluster of up to eight blocks holds a row of
// logits in shared memory, so that memory is read once whatever a row asks for.
//
// Compiled without fused multiply-adds: for equal logits the tokens are the CPU's. The cut that
// top_k and top_p come down to (kernels/cpu/sample_row.h) is found by histograms of 256 bins, each
// over the bin that the one before found. Design: kernels/docs/sampling.md.
#include "kernels/base/counter_rng.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/sample_cluster.cuh"
#include "kernels/ops/sampling_row.h"

namespace sluice::cuda {
namespace {

constexpr int kClusterMax = 8;
constexpr int kSliceWanted = 4096;  // tokens: more blocks share a row while slices are larger
constexpr int kDigitBits = 8;       // of a key, that a histogram tells apart
static_assert(1 << kDigitBits == kSampleBins, "a digit must be a bin");
constexpr int32_t kAnyId = INT32_MAX;
__device__ float Clean(float x) {
  const float value = x >= -FLT_MAX ? x : -kInfinity;  // NaN too
  return value < FLT_MAX ? value : FLT_MAX;
}

// Of y, which is never positive: rises as probability falls.
__device__ uint32_t KeyOf(float y) { return __float_as_uint(y) & 0x7fffffffu; }
constexpr uint32_t kKeyMax = 0x7f7fffff;  // of a finite y
// Of any value but NaN: rises as values fall.
__device__ uint32_t FallingKey(float x) {
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

// Bucket b holds y in (-(b + 1) / 8, -b / 8], the last one all the rest.
__device__ int BucketOf(float y) {
  const float bucket = y * -8.0f;
  return (int)(bucket < (float)(kSampleBins - 1) ? bucket : (float)(kSampleBins - 1));
}
__device__ uint32_t FirstKeyOf(int bucket) { return KeyOf((float)bucket * (-1.0f / 8)); }

// Tokens up to and including (key, id), in this order, are kept.
struct Cut {
  uint32_t key;
  int32_t id;
  __device__ bool Keeps(uint32_t other, int32_t at) const {
    return other < key || (other == key && at <= id);
  }
};

// The last key of those that are wanted, and how much of that key's weight is.
struct LastKey {
  uint32_t key;
  FoundBin found;
  __device__ bool whole() const { return found.left == found.weight; }
};

// Goes on from a bin that was found, all keys of which lie in [low, high]: to the key, in rising
// order, with which the weight reaches found.left. key_of(value, id) is kNoKey for tokens that do
// not count.
constexpr uint32_t kNoKey = UINT32_MAX;

template <bool kMass, typename KeyOfToken>
__device__ LastKey Narrow(SampleCluster& cluster, const Slice& slice, FoundBin found, uint32_t low,
                          uint32_t high, KeyOfToken key_of) {
  int width = high > low ? 32 - __clz(high - low) : 0;  // bits in which keys differ
  while (width > 0 && found.left < found.weight) {
    const int shift = width > kDigitBits ? width - kDigitBits : 0;
    const uint64_t left = found.left;
    found = cluster.FindBin<kMass>(
        slice,
        [&](float value, int32_t id) {
          const uint32_t key = key_of(value, id);
          return key != kNoKey && low <= key && key <= high ? (int)((key - low) >> shift) : -1;
        },
        [&](uint64_t) { return left; });
    low += (uint32_t)found.bin << shift;
    high = min(high, low + ((1u << shift) - 1));
    width = shift;
  }
  return {high, found};
}

// Of the tokens with exactly this key, the id up to which `wanted` of `all` are kept.
template <typename KeyOfToken>
__device__ int32_t LastOfTies(SampleCluster& cluster, const Slice& slice, int vocab, uint32_t tie,
                              uint64_t wanted, uint64_t all, KeyOfToken key_of) {
  if (wanted == all) return kAnyId;
  return (int32_t)Narrow<false>(cluster, slice, {0, wanted, all, all}, 0, vocab - 1,
                                [&](float value, int32_t id) {
                                  return key_of(value, id) == tie ? (uint32_t)id : kNoKey;
                                })
      .key;
}

// The token with which the weight of those within `cut`, counted from the most probable one down,
// reaches wanted(weight of all of them); `cut` itself if that is 0.
template <bool kMass, typename Wanted>
__device__ Cut Tighten(SampleCluster& cluster, const Slice& slice, int vocab, Cut cut,
                       Wanted wanted) {
  const auto key_of = [&](float y, int32_t id) {
    const uint32_t key = KeyOf(y);
    return cut.Keeps(key, id) ? key : kNoKey;
  };
  const FoundBin bucket = cluster.FindBin<kMass>(
      slice, [&](float y, int32_t id) { return cut.Keeps(KeyOf(y), id) ? BucketOf(y) : -1; },
      wanted);
  if (bucket.bin < 0) return cut;
  const uint32_t high = bucket.bin == kSampleBins - 1 ? kKeyMax : FirstKeyOf(bucket.bin + 1) - 1;
  const LastKey last =
      Narrow<kMass>(cluster, slice, bucket, FirstKeyOf(bucket.bin), min(high, cut.key), key_of);
  int32_t id = kAnyId;
  if (!last.whole()) {
    const uint64_t each = kMass ? MassOf(-__uint_as_float(last.key)) : 1;
    id = LastOfTies(cluster, slice, vocab, last.key, (last.found.left + each - 1) / each,
                    last.found.weight / each, key_of);
  }
  return {last.key, last.key == cut.key ? min(id, cut.id) : id};
}

__device__ uint64_t MassToReach(float top_p, uint64_t total) {
  const double wanted = ceil((double)top_p * (double)total);
  const uint64_t units = wanted > 1 ? (uint64_t)wanted : 1;
  return units < total ? units : total;
}

__device__ Cut CutOf(SampleCluster& cluster, const SamplingRow& row, const Slice& slice,
                     int vocab) {
  Cut cut{kKeyMax, kAnyId};
  if (row.min_p > 0.0f) {
    const float least = portable::Log(row.min_p > 1e-37f ? row.min_p : 1e-37f);
    cut.key = least < 0.0f ? KeyOf(least) : 0;
  }
  if (row.top_k > 0 && row.top_k < vocab) {
    const uint64_t top_k = row.top_k;
    cut = Tighten<false>(cluster, slice, vocab, cut,
                         [&](uint64_t total) { return total > top_k ? top_k : 0; });
  }
  if (row.top_p < 1.0f) {
    cut = Tighten<true>(cluster, slice, vocab, cut,
                        [&](uint64_t total) { return MassToReach(row.top_p, total); });
  }
  return cut;
}

// The first of what a thread meets in the order of rising ids.
class Running {
 public:
  __device__ void Meet(float value, int32_t id) {
    if (!(value > value_)) return;
    value_ = value;
    id_ = id;
  }
  __device__ float value() const { return value_; }
  __device__ Ranked ranked() const { return id_ < 0 ? Ranked() : Ranked(value_, id_); }

 private:
  float value_ = -kInfinity;
  int32_t id_ = -1;
};

// Fills the slice with the logits; returns the best, and how many are not finite.
__device__ Exchange Load(SampleCluster& cluster, const float* logits, const Slice& slice) {
  Running best;
  uint32_t odd = 0;
  const auto take = [&](float raw, int i) {
    odd += !isfinite(raw);
    const float value = Clean(raw);
    best.Meet(value, slice.begin + i);
    return value;
  };
  const float* from = logits + slice.begin;
  int done = 0;
  if (reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    constexpr int kEach = 8;  // vectors on their way at once
    const int vectors = slice.count / 4;
    for (int first = threadIdx.x; first < vectors; first += kSampleThreads * kEach) {
      float4 v[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int at = first + i * kSampleThreads;
        if (at < vectors) v[i] = reinterpret_cast<const float4*>(from)[at];
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int at = first + i * kSampleThreads;
        if (at >= vectors) continue;
        const float x = take(v[i].x, 4 * at), y = take(v[i].y, 4 * at + 1);
        const float z = take(v[i].z, 4 * at + 2), w = take(v[i].w, 4 * at + 3);
        reinterpret_cast<float4*>(slice.values)[at] = {x, y, z, w};
      }
    }
    done = vectors * 4;
  }
  for (int i = done + threadIdx.x; i < slice.count; i += kSampleThreads) {
    slice.values[i] = take(from[i], i);
  }
  for (int i = slice.count + threadIdx.x; i < (slice.count + 3) / 4 * 4; i += kSampleThreads) {
    slice.values[i] = -kInfinity;
  }
  return cluster.Reduce(best.ranked(), odd);
}

__device__ bool Penalized(const SamplingRow& row) {
  return row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
         row.frequency_penalty != 0.0f;
}

// Bias, bans and penalties; returns the best of what comes out.
__device__ Ranked Modify(SampleCluster& cluster, const SampleArgs& args, const SamplingRow& row,
                         const Slice& slice) {
  if (threadIdx.x == 0) {  // few, and an id may come twice
    for (int i = row.bias_begin; i < row.bias_end; ++i) {
      const int at = args.bias_ids[i] - slice.begin;
      if (0 <= at && at < slice.count) slice.values[at] += args.bias_values[i];
    }
  }
  __syncthreads();
  for (int i = row.banned_begin + threadIdx.x; i < row.banned_end; i += kSampleThreads) {
    const int at = args.banned_ids[i] - slice.begin;
    if (0 <= at && at < slice.count) slice.values[at] = -kInfinity;
  }
  __syncthreads();
  const bool penalized = Penalized(row);
  const int32_t* counts = args.output_counts + row.slot * args.counts_stride + slice.begin;
  const uint8_t* mask = args.prompt_mask + row.slot * args.mask_stride + slice.begin;
  Running best;
#pragma unroll 4
  for (int i = threadIdx.x; i < slice.count; i += kSampleThreads) {
    float value = slice.values[i];
    if (penalized) {
      const int32_t count = counts[i];
      const bool seen = count > 0 || mask[i] != 0;
      const float repeated =
          value > 0.0f ? value / row.repetition_penalty : value * row.repetition_penalty;
      value = (seen ? repeated : value) - row.frequency_penalty * (float)count -
              (count > 0 ? row.presence_penalty : 0.0f);
    }
    value = Clean(value);
    slice.values[i] = value;
    best.Meet(value, slice.begin + i);
  }
  return cluster.Reduce(best.ranked(), 0).first;
}

// The lowest id that is not banned, or 0.
__device__ int32_t LowestAllowed(SampleCluster& cluster, const SampleArgs& args,
                                 const SamplingRow& row) {
  const int candidates = min(args.vocab, row.banned_end - row.banned_begin + 1);
  Running lowest;
  for (int id = threadIdx.x; id < candidates; id += kSampleThreads) {
    bool banned = false;
    for (int i = row.banned_begin; i < row.banned_end; ++i) banned |= args.banned_ids[i] == id;
    if (!banned) lowest.Meet(0, id);
  }
  const Ranked first = cluster.Reduce(lowest.ranked(), 0).first;
  return first.none() ? 0 : first.id();
}

// At least the noise of these bits: -log v for v a little less than theirs, and log2 of a float at
// least what its bits, as an integer, say.
__device__ float NoiseBound(uint32_t bits) {
  constexpr float kLog2 = 0.693147182f, kMargin = 1e-3f;
  const float v = (float)(bits >> 1);  // times 2^-31
  return fmaf((float)(int32_t)__float_as_uint(v), -kLog2 * 0x1p-23f, (127 + 31) * kLog2 + kMargin);
}

// The token with the largest y + noise among those that the cut keeps. A token's noise is worked
// out only where its bound reaches what the warp has found already.
__device__ int32_t Draw(SampleCluster& cluster, const SamplingRow& row, const Slice& slice,
                        Cut cut) {
  Running best;
  float least = kGumbelMin;  // the most probable token has y = 0 and reaches that
  const int rounds = (slice.count + 4 * kSampleThreads - 1) / (4 * kSampleThreads);
  for (int round = 0; round < rounds; ++round) {
    const int i = 4 * (round * kSampleThreads + (int)threadIdx.x);
    const float none = -kInfinity;
    const float4 v = i < slice.count ? *reinterpret_cast<const float4*>(slice.values + i)
                                     : float4{none, none, none, none};
    const int32_t first = slice.begin + i;
    const float y[4] = {v.x, v.y, v.z, v.w};
    const float largest = fmaxf(fmaxf(y[0], y[1]), fmaxf(y[2], y[3]));
    if (!__any_sync(~0u, KeyOf(largest) <= cut.key && largest + kGumbelMax >= least)) continue;
    const PhiloxBlock bits = TokenBits(row.seed, (uint32_t)row.position, (uint32_t)first / 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const bool likely =
          y[j] + NoiseBound(bits.word[j]) >= least && cut.Keeps(KeyOf(y[j]), first + j);
      if (!__any_sync(~0u, likely)) continue;
      if (likely) best.Meet(y[j] + GumbelOfBits(bits.word[j]), first + j);
      const uint32_t reached = __reduce_max_sync(~0u, RisingKey(fmaxf(best.value(), least)));
      least = Ranked::FromKey(reached);
    }
  }
  return cluster.Reduce(best.ranked(), 0).first.id();
}

__device__ int32_t Choose(SampleCluster& cluster, const SampleArgs& args, const SamplingRow& row,
                          const Slice& slice, Ranked best) {
  if (best.none()) return LowestAllowed(cluster, args, row);
  if (!(row.temperature > 0.0f)) return best.id();
  const float largest = best.value();
  for (int i = 4 * threadIdx.x; i < slice.count; i += 4 * kSampleThreads) {
    float4& v = *reinterpret_cast<float4*>(slice.values + i);
    float4 y = {v.x - largest, v.y - largest, v.z - largest, v.w - largest};
    if (row.temperature != 1.0f) {
      y = {y.x / row.temperature, y.y / row.temperature, y.z / row.temperature,
           y.w / row.temperature};
    }
    v = y;
  }
  __syncthreads();
  const Cut cut = CutOf(cluster, row, slice, args.vocab);
  return Draw(cluster, row, slice, cut);
}

// The `wanted` most probable tokens of the logits in the slice, in rounds of what a list holds.
__device__ void WriteTop(SampleCluster& cluster, const SampleArgs& args, const Slice& slice,
                         float max, float log_sum, int wanted) {
  const int64_t row = blockIdx.x / cluster.blocks();
  int32_t* top_ids = args.top_ids + row * args.top_ids_stride;
  float* top_logprobs = args.top_logprobs + row * args.top_logprobs_stride;
  ClusterMemory* first = cluster.OfBlock(cluster.memory(), 0);
  Ranked written{};  // the last one
  for (int done = 0; done < wanted; done += kSampleListMax) {
    const int size = min(kSampleListMax, wanted - done);
    const auto key_of = [&](float value, int32_t id) {
      const bool left = id < args.vocab && (written.none() || written.Before({value, id}));
      return left ? FallingKey(value) : kNoKey;
    };
    const FoundBin bucket = cluster.FindBin<false>(
        slice,
        [&](float value, int32_t id) {
          return key_of(value, id) == kNoKey ? -1 : BucketOf(value - max);
        },
        [&](uint64_t) { return (uint64_t)size; });
    const auto key_in_bucket = [&](float value, int32_t id) {
      return BucketOf(value - max) == bucket.bin ? key_of(value, id) : kNoKey;
    };
    const LastKey last = Narrow<false>(cluster, slice, bucket, 0, kNoKey - 1, key_in_bucket);
    const Cut cut{last.key, LastOfTies(cluster, slice, args.vocab, last.key, last.found.left,
                                       last.found.weight, key_in_bucket)};

    // Into the first block's list in any order; then each takes its place.
    if (threadIdx.x == 0) cluster.memory()->listed = 0;
    cluster.Sync();
    ForEachToken(slice, [&](float value, int32_t id) {
      const uint32_t key = key_of(value, id);
      if (key == kNoKey) return;
      const int own = BucketOf(value - max);
      if (own > bucket.bin || (own == bucket.bin && !cut.Keeps(key, id))) return;
      first->list[atomicAdd(&first->listed, 1)] = Ranked(value, id);
    });
    cluster.Sync();
    if (cluster.rank() == 0) {
      for (int i = threadIdx.x; i < size; i += kSampleThreads) {
        const Ranked own = first->list[i];
        int place = 0;
        for (int j = 0; j < size; ++j) place += first->list[j].Before(own);
        top_ids[done + place] = own.id();
        top_logprobs[done + place] = (own.value() - max) - log_sum;
        if (place == size - 1) first->last_listed = own;
      }
    }
    cluster.Sync();
    written = first->last_listed;
  }
}

// log_softmax of the raw logits, the best of which is `best`: of the token, and of the most
// probable ones.
__device__ void WriteLogprobs(SampleCluster& cluster, const SampleArgs& args,
                              const SamplingRow& row, const float* logits, const Slice& slice,
                              Ranked best, int32_t token) {
  const int64_t index = blockIdx.x / cluster.blocks();
  const int wanted = min(row.num_logprobs, args.vocab);
  if (best.none()) {  // no distribution: the lowest ids at minus infinity
    if (cluster.rank() > 0) return;
    for (int i = threadIdx.x; i < wanted; i += kSampleThreads) {
      args.top_ids[index * args.top_ids_stride + i] = i;
      args.top_logprobs[index * args.top_logprobs_stride + i] = -kInfinity;
    }
    if (threadIdx.x == 0) args.logprobs[index] = -kInfinity;
    return;
  }
  const float max = best.value();
  Load(cluster, logits, slice);
  uint64_t own_mass = 0;
  ForEachToken(slice, [&](float value, int32_t) { own_mass += MassOf(value - max); });
  const uint64_t mass = cluster.Reduce({}, own_mass).sum;
  const float log_sum = portable::Log((float)mass * (1.0f / kSampleMassUnit));
  if (cluster.rank() == 0 && threadIdx.x == 0) {
    // Plus zero: `max` has lost the sign of a minus zero, so that the difference may be one.
    args.logprobs[index] = (Clean(logits[token]) - max) - log_sum + 0.0f;
  }
  if (wanted > 0) WriteTop(cluster, args, slice, max, log_sum, wanted);
}

// Tokens of a slice, of so many; a multiple of four.
__host__ __device__ inline int SliceTokens(int vocab, int blocks) {
  return ((vocab + blocks - 1) / blocks + 3) / 4 * 4;
}

__global__ void __launch_bounds__(kSampleThreads, 3) SampleKernel(SampleArgs args) {
  extern __shared__ __align__(16) float values[];
  __shared__ ClusterMemory memory;
  SampleCluster cluster(&memory);
  const int64_t index = blockIdx.x / cluster.blocks();
  const int tokens = SliceTokens(args.vocab, cluster.blocks());
  const int begin = cluster.rank() * tokens;
  const Slice slice{values, begin, max(0, min(tokens, args.vocab - begin))};
  const float* logits = args.logits + index * args.logits_stride;

  StartAfterEarlier();
  const SamplingRow row = static_cast<const SamplingRow*>(args.rows)[index];
  const Exchange raw = Load(cluster, logits, slice);
  Ranked best = raw.first;
  if (row.bias_begin < row.bias_end || row.banned_begin < row.banned_end || Penalized(row)) {
    best = Modify(cluster, args, row, slice);
  }
  const int32_t token = Choose(cluster, args, row, slice, best);
  if (row.num_logprobs >= 0) WriteLogprobs(cluster, args, row, logits, slice, raw.first, token);
  if (cluster.rank() == 0 && threadIdx.x == 0) {
    if (args.not_finite != nullptr) args.not_finite[index] = raw.sum > 0;
    args.tokens[index] = token;
    args.tokens_by_slot[row.slot] = token;
    if (row.counts_tokens) ++args.output_counts[row.slot * args.counts_stride + token];
  }
  cluster.Sync();  // others may still read this block's memory
}

}  // namespace

cudaError_t LaunchSample(const SampleArgs& args, cudaStream_t stream) {
  if (args.count == 0) return cudaSuccess;
  int blocks = 1;
  while (blocks < kClusterMax && SliceTokens(args.vocab, blocks) > kSliceWanted) blocks *= 2;
  const size_t bytes = SliceTokens(args.vocab, blocks) * sizeof(float);
  const cudaError_t error =
      cudaFuncSetAttribute(SampleKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
  if (error != cudaSuccess) return error;
  return LaunchEarly(SampleKernel, {dim3(args.count * blocks), kSampleThreads, bytes, blocks},
                     stream, args);
}

}  // namespace sluice::cuda
