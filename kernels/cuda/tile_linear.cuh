// Matrix products with weights on the tensor cores: dense with one weight or several over the same
// x, gated (SwiGLU) and grouped by expert. kernels/docs/fp8_linear.md has the whole story.
//
// A block has two warpgroups that multiply and a warp each that lets TMA fill a ring with weights,
// rows of x, and their scales. A step is 128 bytes of a row: 128 columns in e4m3, 64 in bf16. Rows
// of x are the 64-row side of wgmma, rows of weights its columns, so that a
// thread holds two outputs side by side and gate and up of the same output.
//   e4m3: the tensor core keeps about 14 bits of a sum, so that each step is summed there and then
//   added, scaled, in f32.
//   bf16: it sums in f32 all along.
// Weights do not wait for the kernels in front: they are on their way while x is still being made.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <type_traits>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/device_wait.cuh"
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tile_linear_launch.h"
#include "kernels/cuda/tile_schedule.cuh"
#include "kernels/cuda/wgmma_bf16.cuh"

namespace sluice::cuda {

struct Fp8Operands {
  static constexpr bool kScaled = true;
  template <int kN>
  static __device__ __forceinline__ void Multiply(float (&d)[kN / 2], uint64_t a, uint64_t b,
                                                  bool add) {
    WgmmaFp8<kN>(d, a, b, add);
  }
};
struct Bf16Operands {
  static constexpr bool kScaled = false;
  template <int kN>
  static __device__ __forceinline__ void Multiply(float (&d)[kN / 2], uint64_t a, uint64_t b,
                                                  bool add) {
    WgmmaBf16Tile<kN>(d, a, b, add);
  }
};

constexpr int kStepBytes = 128;  // of a row
constexpr int kConsumers = 256;
constexpr int kTileThreads = 128 + kConsumers;

// Sizes of one instance. Shared memory: the ring's tiles, then its scales, then its barriers.
template <int kTokens, int kOutputs, bool kGated, bool kScaled>
struct TileShape {
  static constexpr int kTokenBytes = kTokens * kStepBytes;
  static constexpr int kWeightBytes = kOutputs * kStepBytes;
  static constexpr int kStageBytes = kTokenBytes + kWeightBytes;
  static constexpr int kScales = kScaled ? kTokens + 8 : 0;  // of tokens, then of gate and up
  static constexpr int kFixedBytes = 1024 + (kTileGroupsMax + 1) * 4 + 128;
  static constexpr int kStages = (227 * 1024 - kFixedBytes) / (kStageBytes + kScales * 4 + 16);
  static constexpr int kSharedBytes = kFixedBytes + kStages * (kStageBytes + kScales * 4 + 16);
  static constexpr int kColumnsOut = kGated ? kOutputs / 2 : kOutputs;  // of a block

  // A warpgroup's part of the tile. With 64 rows of x each has half of the weights' rows, else half
  // of the rows of x.
  static constexpr bool kHalfOutputs = kTokens <= 64;
  static constexpr int kSubs = kHalfOutputs ? 1 : kTokens / 128;  // of 64 rows of x
  static constexpr int kColumns = kHalfOutputs ? kOutputs / 2 : kOutputs;
  static constexpr int kSums = kColumns / 2;  // of a thread and a sub
  // Gate and up of half of the outputs are no rows in a row.
  static constexpr int kPieces = kHalfOutputs && kGated ? 2 : 1;
  static_assert(kStages >= 4, "the ring must hold what is under way while a step is computed");
};

__device__ __forceinline__ float Silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

template <typename Operands, int kTokens, int kOutputs, bool kGated, Sharing kSharing>
__global__ void __launch_bounds__(kTileThreads, 1)
    TileLinearKernel(const __grid_constant__ TileLinearArgs args) {
  constexpr bool kPair = kSharing == Sharing::kTokens;
  using Shape = TileShape<kTokens, kOutputs, kGated, Operands::kScaled>;
  using Schedule = TileSchedule<kTokens, Shape::kColumnsOut*(kPair ? 2 : 1), kSharing>;
  constexpr bool kColumnShares = kSharing == Sharing::kColumns;
  constexpr int kStages = Shape::kStages, kSums = Shape::kSums, kSubs = Shape::kSubs;
  extern __shared__ uint8_t shared_raw[];
  const uint32_t ring = (SharedAddress(shared_raw) + 1023) & ~1023u;
  const uint32_t scales = ring + kStages * Shape::kStageBytes;
  const uint32_t barriers = scales + kStages * Shape::kScales * 4;
  int* const tiles =
      reinterpret_cast<int*>(shared_raw + (barriers + kStages * 16 - SharedAddress(shared_raw)));
  const auto tokens_at = [&](int stage) { return ring + stage * Shape::kStageBytes; };
  const auto weights_at = [&](int stage) { return tokens_at(stage) + Shape::kTokenBytes; };
  const auto scales_at = [&](int stage) { return scales + stage * (Shape::kScales * 4); };
  const auto full_at = [&](int stage) { return barriers + stage * 8; };
  const auto empty_at = [&](int stage) { return barriers + (kStages + stage) * 8; };

  // With few rows of x weights are read once and x many times.
  constexpr uint64_t kWeightHint = kTokens < 256 ? kEvictFirst : kEvictNormal;
  constexpr uint64_t kTokenHint = kTokens < 256 ? kEvictLast : kEvictNormal;
  constexpr int kWeightScales = kGated ? 2 : 1;
  const int rows_fetched = args.x_box_rows * (kPair ? 2 : 1);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __shared__ uint32_t number;
  if (threadIdx.x == 32 && args.plan.split && (!kPair || ClusterRank() == 0)) {
    number = Schedule::TakeNumber(args);
  }
  if (threadIdx.x == 0) {
    PrefetchMap(&args.x);
    for (int i = 0; i < kStages; ++i) {
      // A thread that fetches weights, one for x, one for its scales, and those for weights'
      // scales.
      BarrierInit(full_at(i), Operands::kScaled ? 3 + kWeightScales : 2);
      BarrierInit(empty_at(i), kConsumers / 32 * (kPair ? 2 : 1));  // a thread of each warp
    }
    FenceBarrierInit();
  }
  Schedule schedule(args, tiles);
  if constexpr (kSharing == Sharing::kNone) {
    __syncthreads();
  } else {
    ClusterSync();
  }
  schedule.Start(kPair ? LoadAt(SharedOfBlock(SharedAddress(&number), 0)) : number);

  int stage = 0;
  uint32_t phase = 0;
  const auto step_on = [&] {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  };

  if (warp < 4) {
    GiveRegisters<40>();
    if (warp == 0 && lane == 0) {
      for (Segment tile; schedule.Next(&tile);) {
        const TileWeight& first =
            args.group_weights == nullptr ? args.parts[tile.part].w : args.group_weights[tile.part];
        const TileWeight& second = !kGated                     ? first
                                   : args.group_ups == nullptr ? args.up
                                                               : args.group_ups[tile.part];
        constexpr int kBox = WeightBoxRows(kOutputs, kGated);
        const auto fetch = [&](int k, int at) {
          BarrierArriveExpect(full_at(at), Shape::kWeightBytes);
          TmaLoad(weights_at(at), &first.map, full_at(at), k * kStepBytes, tile.row, kWeightHint);
          if constexpr (kOutputs > kBox) {
            TmaLoad(weights_at(at) + kBox * kStepBytes, &second.map, full_at(at), k * kStepBytes,
                    kGated ? tile.row : tile.row + kBox, kWeightHint);
          }
        };
        // Two steps at once, which lie beside each other in memory, where the ring is deep enough
        // to wait for two places of it.
        constexpr int kAtOnce = kStages < 6 ? 1 : 2;
        for (int k = tile.begin; k < tile.end; k += kAtOnce) {
          BarrierWait(empty_at(stage), phase ^ 1);
          const int at = stage;
          step_on();
          const bool two = kAtOnce == 2 && k + 1 < tile.end;
          if (two) BarrierWait(empty_at(stage), phase ^ 1);
          fetch(k, at);
          if (two) {
            fetch(k + 1, stage);
            step_on();
          }
        }
      }
    } else if (warp == 1 && lane == 0) {
      WaitForEarlierKernels();
      LetNextKernelStart();
      const int offset = kPair ? static_cast<int>(ClusterRank()) * args.x_box_rows : 0;
      for (Segment tile; schedule.Next(&tile);) {
        for (int k = tile.begin; k < tile.end; ++k) {
          BarrierWait(empty_at(stage), phase ^ 1);
          BarrierArriveExpect(full_at(stage), rows_fetched * kStepBytes);
          const uint32_t to = tokens_at(stage) + offset * kStepBytes;
          if constexpr (kPair) {
            TmaLoadToBlocks(to, &args.x, full_at(stage), k * kStepBytes, tile.token + offset, 3,
                            kTokenHint);
          } else {
            TmaLoad(to, &args.x, full_at(stage), k * kStepBytes, tile.token, kTokenHint);
          }
          step_on();
        }
      }
    } else if (Operands::kScaled && warp == 2 && lane == 0) {
      WaitForEarlierKernels();
      for (Segment tile; schedule.Next(&tile);) {
        // Copies start at multiples of 16 bytes.
        const float* const from = args.x_scales + tile.token / 4 * 4;
        const uint32_t bytes = (rows_fetched + 4) * 4;
        for (int k = tile.begin; k < tile.end; ++k) {
          BarrierWait(empty_at(stage), phase ^ 1);
          BarrierArriveExpect(full_at(stage), bytes);
          BulkLoad(scales_at(stage), from + k * args.x_scale_stride, bytes, full_at(stage));
          step_on();
        }
      }
    } else if (Operands::kScaled && warp == 3 && lane < kWeightScales) {
      for (Segment tile; schedule.Next(&tile);) {
        const TileWeight& w =
            kGated && lane == 1 ? (args.group_ups == nullptr ? args.up : args.group_ups[tile.part])
            : args.group_weights == nullptr ? args.parts[tile.part].w
                                            : args.group_weights[tile.part];
        const int n = args.parts[args.offsets == nullptr ? tile.part : 0].n;
        const float* const from = w.scales + min(tile.row, n - 1) / 128 * w.scale_stride;
        for (int k = tile.begin; k < tile.end; ++k) {
          BarrierWait(empty_at(stage), phase ^ 1);
          CopyAsync4(scales_at(stage) + (kTokens + 4 + lane) * 4, from + k);
          BarrierArriveAfterCopies(full_at(stage));
          step_on();
        }
      }
    }
    __syncwarp();
    if constexpr (kSharing != Sharing::kNone) ClusterSync();
    if constexpr (kColumnShares) ClusterSync();
    return;
  }

  TakeRegisters<232>();
  WaitForEarlierKernels();
  __shared__ Schedule schedules[2];  // the registers are for sums
  __shared__ Segment tile_of[2];
  __shared__ bool more[2];
  const int consumer = warp / 4 - 1;
  const int thread = threadIdx.x % 128;
  Schedule& mine = schedules[consumer];
  const Segment& tile = tile_of[consumer];
  if (thread == 0) mine = schedule;
  // Of this warpgroup, in bytes: its rows of x, and its rows of weights.
  const int own_rows = Shape::kHalfOutputs ? 0 : consumer * (kTokens / 2);
  constexpr int kPieceColumns = Shape::kColumns / Shape::kPieces;
  const uint32_t weight_offset = Shape::kHalfOutputs ? consumer * kPieceColumns * kStepBytes : 0;
  const int first_row = own_rows + warp % 4 * 16 + lane / 4;  // in the tile; the other is 8 below

  for (;;) {
    NamedBarrier(1 + consumer, 128);  // all have done with the last one
    if (thread == 0) more[consumer] = mine.Next(&tile_of[consumer]);
    NamedBarrier(1 + consumer, 128);
    if (!more[consumer]) break;

    float sum[kSubs][kSums];
#pragma unroll
    for (int s = 0; s < kSubs; ++s) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) sum[s][i] = 0;
    }
    const auto multiply = [&](float(&to)[kSums], int sub, bool add) {
      const uint64_t a = MatrixDescriptor(tokens_at(stage) + (own_rows + sub * 64) * kStepBytes);
      const uint64_t b = MatrixDescriptor(weights_at(stage) + weight_offset);
#pragma unroll
      for (int i = 0; i < kStepBytes / 32; ++i) {
        if constexpr (Shape::kPieces == 1) {
          Operands::template Multiply<Shape::kColumns>(to, a + 2 * i, b + 2 * i, add || i > 0);
        } else {
          using Half = float[kPieceColumns / 2];
          const uint64_t up = b + (kOutputs / 2 * kStepBytes >> 4);
          Operands::template Multiply<kPieceColumns>(reinterpret_cast<Half&>(to[0]), a + 2 * i,
                                                     b + 2 * i, add || i > 0);
          Operands::template Multiply<kPieceColumns>(reinterpret_cast<Half&>(to[kPieceColumns / 2]),
                                                     a + 2 * i, up + 2 * i, add || i > 0);
        }
      }
      WgmmaCommit();
    };
    // `loaded`: what was read of the stage by ordinary loads.
    const uint32_t zero = static_cast<uint32_t>(args.blocks) >> 31;
    const auto release = [&](int which, auto... loaded) {
      __syncwarp();
      const uint32_t empty = empty_at(which) + ZeroOnceLoaded(zero, loaded...);
      if constexpr (kPair) {
        if (lane < 2) BarrierArriveAt(SharedOfBlock(empty, lane));
      } else {
        if (lane == 0) BarrierArrive(empty);
      }
    };

    // Adds the sums of one step, scaled; `at`: its place in the ring.
    const auto promote = [&](float(&part)[kSums], int sub, int at) {
      PinSums(part);
      const float gate = LoadShared(scales_at(at) + (kTokens + 4) * 4);
      const float up = kGated ? LoadShared(scales_at(at) + (kTokens + 5) * 4) : 0;
      const uint32_t from = scales_at(at) + (tile.token % 4 + first_row + sub * 64) * 4;
      const float upper = LoadShared(from), lower = LoadShared(from + 8 * 4);
      if (sub == kSubs - 1) release(at, gate, up, upper, lower);
      const float scale[2][2] = {{upper * gate, lower * gate}, {upper * up, lower * up}};
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        sum[sub][i] += part[i] * scale[kGated && i >= kSums / 2][i / 2 % 2];
      }
    };
    const auto issue = [&](float(&part)[kSums], int sub) {
      PinSums(part);
      WgmmaFence();
      multiply(part, sub, false);
    };
    if constexpr (Operands::kScaled && kSubs == 1) {
      // The products of a step are under way while those of the step before are added.
      float even[kSums], odd[kSums];
      const auto start = [&](float(&part)[kSums]) {
        BarrierWait(full_at(stage), phase);
        issue(part, 0);
        const int at = stage;
        step_on();
        return at;
      };
      int left = tile.end - tile.begin - 1;
      int even_at = start(even);
      for (; left >= 2; left -= 2) {
        const int odd_at = start(odd);
        WgmmaWait<1>();
        promote(even, 0, even_at);
        even_at = start(even);
        WgmmaWait<1>();
        promote(odd, 0, odd_at);
      }
      if (left > 0) {
        const int odd_at = start(odd);
        WgmmaWait<1>();
        promote(even, 0, even_at);
        WgmmaWait<0>();
        promote(odd, 0, odd_at);
      } else {
        WgmmaWait<0>();
        promote(even, 0, even_at);
      }
    } else if constexpr (Operands::kScaled) {
      // The other warpgroup's products are under way while this one's are added.
      for (int k = tile.begin; k < tile.end; ++k) {
        BarrierWait(full_at(stage), phase);
#pragma unroll
        for (int s = 0; s < kSubs; ++s) {
          float part[kSums];
          issue(part, s);
          WgmmaWait<0>();
          promote(part, s, stage);
        }
        step_on();
      }
    } else {
      // One step behind: the next products are queued before the last ones are waited for.
      int last = -1;
      for (int k = tile.begin; k < tile.end; ++k) {
        BarrierWait(full_at(stage), phase);
#pragma unroll
        for (int s = 0; s < kSubs; ++s) PinSums(sum[s]);
        WgmmaFence();
#pragma unroll
        for (int s = 0; s < kSubs; ++s) multiply(sum[s], s, true);
        WgmmaWait<kSubs>();
        if (last >= 0) release(last);
        last = stage;
        step_on();
      }
      WgmmaWait<0>();
#pragma unroll
      for (int s = 0; s < kSubs; ++s) PinSums(sum[s]);
      if (last >= 0) release(last);
    }

    // Shares of a cluster go to its first block, into the ring, which is free by then.
    if constexpr (kColumnShares) {
      const uint32_t rank = ClusterRank();
      ClusterSync();
      const auto place = [&](uint32_t from, int s, int i) {
        return ring + (((from - 1) * kSubs + s) * (kSums / 4) + i) * (kConsumers * 16) +
               (threadIdx.x - 128) * 16;
      };
      if (rank > 0) {
#pragma unroll
        for (int s = 0; s < kSubs; ++s) {
#pragma unroll
          for (int i = 0; i < kSums / 4; ++i) {
            StoreAt(SharedOfBlock(place(rank, s, i), 0),
                    make_float4(sum[s][4 * i], sum[s][4 * i + 1], sum[s][4 * i + 2],
                                sum[s][4 * i + 3]));
          }
        }
      }
      ClusterSync();
      if (rank > 0) return;
      for (uint32_t from = 1; from < args.plan.blocks; ++from) {
#pragma unroll
        for (int s = 0; s < kSubs; ++s) {
#pragma unroll
          for (int i = 0; i < kSums / 4; ++i) {
            const float4 other = LoadShared4(place(from, s, i));
            sum[s][4 * i] += other.x;
            sum[s][4 * i + 1] += other.y;
            sum[s][4 * i + 2] += other.z;
            sum[s][4 * i + 3] += other.w;
          }
        }
      }
    }
    // Shares of units go through global memory.
    const auto block_of = [&](int unit) {
      return kPair ? unit * 2 + static_cast<int>(ClusterRank()) : unit;
    };
    float4* const handed = reinterpret_cast<float4*>(args.partial);
    const auto place = [&](int block, int s, int i) {
      return ((int64_t{block} * kSubs + s) * (kSums / 4) + i) * kConsumers + consumer * 128 +
             thread;
    };
    if (!kColumnShares && tile.begin > 0) {
#pragma unroll
      for (int s = 0; s < kSubs; ++s) {
#pragma unroll
        for (int i = 0; i < kSums / 4; ++i) {
          handed[place(block_of(mine.unit()), s, i)] =
              make_float4(sum[s][4 * i], sum[s][4 * i + 1], sum[s][4 * i + 2], sum[s][4 * i + 3]);
        }
      }
      NamedBarrier(1 + consumer, 128);
      if (thread == 0) {  // the release covers what the barrier has ordered before it
        Raise(args.flags + 2 * block_of(mine.unit()) + consumer);
      }
      continue;
    }
    if (!kColumnShares && tile.end < args.steps) {
      for (int unit = mine.unit() + 1; mine.Shares(unit, tile.tile); ++unit) {
        if (!mine.HasWork(unit)) continue;
        const int block = block_of(unit);
        if (thread == 0) {
          uint32_t* const flag = args.flags + 2 * block + consumer;
          WaitFor(flag, args.wait);
          *flag = 0;
        }
        NamedBarrier(1 + consumer, 128);
#pragma unroll
        for (int s = 0; s < kSubs; ++s) {
#pragma unroll
          for (int i = 0; i < kSums / 4; ++i) {
            const float4 other = __ldcg(&handed[place(block, s, i)]);
            sum[s][4 * i] += other.x;
            sum[s][4 * i + 1] += other.y;
            sum[s][4 * i + 2] += other.z;
            sum[s][4 * i + 3] += other.w;
          }
        }
      }
    }

    const TilePart& out = args.parts[args.offsets == nullptr ? tile.part : 0];
    constexpr int kColumnsOut = Shape::kColumns / (kGated ? 2 : 1);
    const int first_column =
        tile.row + (Shape::kHalfOutputs ? consumer * kColumnsOut : 0) + lane % 4 * 2;
#pragma unroll
    for (int s = 0; s < kSubs; ++s) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int token = tile.token + first_row + s * 64 + h * 8;
        if (token >= tile.token_end) continue;
        float* const row = out.out + token * out.out_stride;
#pragma unroll
        for (int j = 0; j < kColumnsOut / 8; ++j) {
          const int column = first_column + 8 * j;
          float2 value = make_float2(sum[s][4 * j + 2 * h], sum[s][4 * j + 2 * h + 1]);
          if constexpr (kGated) {
            value.x = Silu(value.x) * sum[s][kSums / 2 + 4 * j + 2 * h];
            value.y = Silu(value.y) * sum[s][kSums / 2 + 4 * j + 2 * h + 1];
          }
          if (column < out.n) {
            float2* const to = reinterpret_cast<float2*>(row + column);
            if (args.accumulate) {
              const float2 old = *to;
              value = make_float2(old.x + value.x, old.y + value.y);
            }
            *to = value;
          }
        }
      }
    }
  }
  // Nobody leaves while the other block may still write here.
  if constexpr (kPair) ClusterSync();
}

// How many pairs of blocks the current device runs at once.
using PairsByDevice = std::array<std::atomic<int>, 64>;  // 0: not known yet
inline cudaError_t PairsAtOnce(const void* kernel, const LaunchShape& shape, PairsByDevice* known,
                               int* pairs) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  std::atomic<int>& here = known->at(static_cast<size_t>(device));
  *pairs = here;
  if (*pairs > 0) return cudaSuccess;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = 2;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.grid.x / 2 * 2);
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  error = cudaOccupancyMaxActiveClusters(pairs, kernel, &config);
  if (error != cudaSuccess) return error;
  here = *pairs;
  return *pairs == 0 ? cudaErrorInvalidConfiguration : cudaSuccess;
}

template <typename Operands, int kTokens, int kOutputs, bool kGated, Sharing kSharing>
cudaError_t LaunchTileShape(const TileLinearArgs& args, cudaStream_t stream) {
  using Shape = TileShape<kTokens, kOutputs, kGated, Operands::kScaled>;
  if (kSharing == Sharing::kColumns && args.steps < args.plan.blocks) return cudaErrorInvalidValue;
  const auto kernel = TileLinearKernel<Operands, kTokens, kOutputs, kGated, kSharing>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           Shape::kSharedBytes);
  if (error != cudaSuccess) return error;
  LaunchShape shape = {dim3(static_cast<unsigned>(args.blocks)), kTileThreads, Shape::kSharedBytes,
                       kSharing == Sharing::kNone ? 1 : args.plan.blocks};
  if constexpr (kSharing == Sharing::kTokens) {
    // Not every multiprocessor may have a neighbour that is free for the other half.
    static PairsByDevice known = {};
    int pairs = 0;
    error = PairsAtOnce(reinterpret_cast<const void*>(kernel), shape, &known, &pairs);
    if (error != cudaSuccess) return error;
    shape.grid = dim3(static_cast<unsigned>(std::min(args.blocks / 2, pairs) * 2));
  }
  return LaunchEarly(kernel, shape, stream, args);
}

}  // namespace sluice::cuda
