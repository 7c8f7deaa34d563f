// What sampling needs of a cluster of blocks that share a row of the vocabulary: each block has a
// slice of it in shared memory; sums and maxima, and histograms of weights, are made over all.
//
// All functions are to be called by every thread of every block of the cluster, with the same
// arguments where nothing else is said. Compiled without fused multiply-adds.
#pragma once

#include <cooperative_groups.h>
#include <float.h>
#include <stdint.h>

#include <limits>

#include "kernels/base/portable_math.h"

namespace sluice::cuda {

namespace cg = cooperative_groups;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kSampleThreads = 256;
constexpr int kSampleWarps = kSampleThreads / 32;
constexpr int kSampleBins = kSampleThreads;  // of a histogram: one per thread
constexpr int kSampleListMax = 256;          // tokens that a block puts in order at once
constexpr float kSampleMassUnit = 0x1p40f;   // as on the CPU

// Rises with the float.
__device__ inline uint32_t RisingKey(float x) {
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A token, in the order of (value falling, id rising): the larger number comes first; 0 is none.
class Ranked {
 public:
  Ranked() = default;
  __device__ Ranked(float value, int32_t id)
      : bits_((uint64_t)RisingKey(value) << 32 | (0xffffffffu - (uint32_t)id)) {}

  // Minus infinity for none.
  __device__ float value() const { return none() ? -kInfinity : FromKey(bits_ >> 32); }
  static __device__ float FromKey(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
  }
  __device__ int32_t id() const { return (int32_t)(0xffffffffu - (uint32_t)bits_); }
  __device__ bool none() const { return bits_ == 0; }
  __device__ bool Before(Ranked other) const { return bits_ > other.bits_; }

  // The first of the warp's.
  __device__ Ranked WarpFirst() const {
    const uint32_t high = __reduce_max_sync(~0u, (uint32_t)(bits_ >> 32));
    const uint32_t low = high == bits_ >> 32 ? (uint32_t)bits_ : 0;
    return Ranked((uint64_t)high << 32 | __reduce_max_sync(~0u, low));
  }

 private:
  __device__ explicit Ranked(uint64_t bits) : bits_(bits) {}
  uint64_t bits_;
};

// Tokens [begin, begin + count) of the row; values beyond them, up to a multiple of four, are minus
// infinity.
struct Slice {
  float* values;
  int32_t begin, count;
};

// Calls f(value, id) for each token of the slice, for up to three beyond it too.
template <typename F>
__device__ void ForEachToken(const Slice& slice, F f) {
  for (int i = 4 * threadIdx.x; i < slice.count; i += 4 * kSampleThreads) {
    const float4 v = *reinterpret_cast<const float4*>(slice.values + i);
    const int32_t id = slice.begin + i;
    f(v.x, id);
    f(v.y, id + 1);
    f(v.z, id + 2);
    f(v.w, id + 3);
  }
}

// Probability relative to the most probable token, in units of 2^-40: at most 2^40.
__device__ inline uint64_t MassOf(float y) {
  if (y < -28.0f) return 0;
  return (uint64_t)(int64_t)(portable::Exp(y) * kSampleMassUnit);
}

// What a reduction is made of.
struct Exchange {
  Ranked first;
  uint64_t sum;
};

// A histogram's counts, or masses in pieces of 14, 14 and 13 bits, whose sums over a slice fit.
struct Histogram {
  uint32_t pieces[3][kSampleBins];
};

// The bin with which the weights, summed up from bin 0, reach what is wanted.
struct FoundBin {
  int32_t bin;
  uint64_t left;    // what is wanted of this bin's weight
  uint64_t weight;  // of this bin
  uint64_t total;   // of all bins; with nothing wanted the other fields mean nothing
};

struct ClusterMemory {
  Exchange exchange[2];
  Histogram histograms[2];
  Exchange warp_parts[kSampleWarps];
  uint64_t warp_sums[kSampleWarps];
  FoundBin found;
  Ranked list[kSampleListMax];
  int32_t listed;
  Ranked last_listed;
};

class SampleCluster {
 public:
  // `memory` is the block's shared memory.
  __device__ explicit SampleCluster(ClusterMemory* memory)
      : memory_(memory), cluster_(cg::this_cluster()) {
    for (int i = 0; i < 2; ++i) Clear(i);
    __syncthreads();
  }

  __device__ int rank() const { return static_cast<int>(cluster_.block_rank()); }
  __device__ int blocks() const { return static_cast<int>(cluster_.num_blocks()); }
  __device__ void Sync() { cluster_.sync(); }
  template <typename T>
  __device__ T* OfBlock(T* shared, int block) {
    return cluster_.map_shared_rank(shared, block);
  }
  __device__ ClusterMemory* memory() { return memory_; }

  // The first and the sum over all threads.
  __device__ Exchange Reduce(Ranked first, uint64_t sum) {
    const int lane = threadIdx.x % 32;
    Exchange all = OfWarp(first, sum);
    if (lane == 0) memory_->warp_parts[threadIdx.x / 32] = all;
    __syncthreads();
    all = OfWarp(memory_->warp_parts[lane % kSampleWarps].first,
                 lane < kSampleWarps ? memory_->warp_parts[lane].sum : 0);
    if (threadIdx.x == 0) memory_->exchange[turn_] = all;
    Sync();
    const Exchange part = *OfBlock(&memory_->exchange[turn_], lane % blocks());
    turn_ ^= 1;  // nobody writes here before all have read: they meet at the next Sync
    return OfWarp(part.first, lane < blocks() ? part.sum : 0);
  }

  // Adds the weight of each token to the bin that bin_of(value, id) says, -1 for none, over all
  // slices; finds the bin with which they reach wanted(weight of all), if that is not 0. Tokens
  // weigh 1, or their mass.
  template <bool kMass, typename BinOf, typename Wanted>
  __device__ FoundBin FindBin(const Slice& slice, BinOf bin_of, Wanted wanted) {
    Histogram& histogram = memory_->histograms[histogram_turn_];
    ForEachToken(slice, [&](float value, int32_t id) {
      const int bin = bin_of(value, id);
      if (bin < 0) return;
      if constexpr (kMass) {
        const uint64_t mass = MassOf(value);
        const uint32_t low = mass & 0x3fff, middle = (mass >> 14) & 0x3fff, high = mass >> 28;
        if (low != 0) atomicAdd(&histogram.pieces[0][bin], low);
        if (middle != 0) atomicAdd(&histogram.pieces[1][bin], middle);
        if (high != 0) atomicAdd(&histogram.pieces[2][bin], high);
      } else {
        atomicAdd(&histogram.pieces[0][bin], 1u);
      }
    });
    Sync();
    uint64_t weight = 0;
    for (int block = 0; block < blocks(); ++block) {
      const Histogram* other = OfBlock(&histogram, block);
      weight += other->pieces[0][threadIdx.x];
      if constexpr (kMass) {
        weight += ((uint64_t)other->pieces[1][threadIdx.x] << 14) +
                  ((uint64_t)other->pieces[2][threadIdx.x] << 28);
      }
    }
    histogram_turn_ ^= 1;
    Clear(histogram_turn_);  // all have read it: they have met since

    uint64_t up_to = weight;
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, up_to, offset);
      if (threadIdx.x % 32 >= offset) up_to += other;
    }
    if (threadIdx.x % 32 == 31) memory_->warp_sums[threadIdx.x / 32] = up_to;
    __syncthreads();
    uint64_t total = 0;
    for (int warp = 0; warp < kSampleWarps; ++warp) {
      const uint64_t sum = memory_->warp_sums[warp];
      if (warp < threadIdx.x / 32) up_to += sum;
      total += sum;
    }
    const uint64_t aim = wanted(total);
    if (aim == 0) return {-1, 0, 0, total};
    if (up_to - weight < aim && aim <= up_to) {
      memory_->found = {(int32_t)threadIdx.x, aim - (up_to - weight), weight, total};
    }
    __syncthreads();
    return memory_->found;
  }

 private:
  static __device__ Exchange OfWarp(Ranked first, uint64_t sum) {
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    return {first.WarpFirst(), sum};
  }
  __device__ void Clear(int turn) {
    for (int i = 0; i < 3; ++i) memory_->histograms[turn].pieces[i][threadIdx.x] = 0;
  }

  ClusterMemory* memory_;
  cg::cluster_group cluster_;
  int turn_ = 0, histogram_turn_ = 0;
};

}  // namespace sluice::cuda
