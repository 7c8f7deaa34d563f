// Products of block-scaled FP8 on the tensor cores: weights with one scale per 128 x 128 block,
// activations with one per row and 128 columns.
//
// The weights are the 64-row side of wgmma and the tokens its columns, so that few tokens waste no
// work: with few tokens all there is to do is to read the weights. A block has two warpgroups that
// compute 64 weight rows each, for up to kTokens tokens, and one warp that lets TMA fill a ring of
// tiles of 128 columns. FP8 products keep about 14 bits in the tensor core's sum, so that every
// 128 columns are summed there and then added, scaled, in f32.
//
// Work is cut by k as well as by tile ("stream-K"): all (tile, 128 columns) pairs of all groups in
// a row are dealt out in equal shares, one to each SM. A tile that is shared by blocks belongs to
// the one with its first columns; the others hand their sums over through global memory, and the
// owner adds them in order. The result depends on the shares, so on the number of SMs and tiles,
// and is the same in every run.
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.h"

namespace sluice::cuda {
namespace {

constexpr int kDepth = 128;  // columns of a tile: one scale
constexpr int kRows = 128;   // weight rows of a tile
constexpr int kConsumers = 256;
constexpr int kThreads = 128 + kConsumers;
constexpr int kWeightBytes = kRows * kDepth;
constexpr int kSharedMax = 227 * 1024;
constexpr int kExchangeRow = kRows + 4;  // floats; without bank conflicts

template <int kTokens>
struct Stage {
  static constexpr int kTokenBytes = kTokens * kDepth;
  // Token tiles start at multiples of 1024 bytes.
  static constexpr int kTileBytes = kWeightBytes + (kTokenBytes + 1023) / 1024 * 1024;
  static constexpr int kScales = kTokens + 4;  // of the tokens, then of both weight halves
  static constexpr int kBytes = kTileBytes + kScales * 4 + 16;  // and two barriers
  static constexpr int kChunkTokens = kTokens < 32 ? kTokens : 32;
  static constexpr int kExchangeBytes = kChunkTokens * kExchangeRow * 4;
  static constexpr int kFixedBytes = 1024 + (kFp8GroupsMax + 1) * 4;
  static constexpr int kCount = (kSharedMax - kFixedBytes - kExchangeBytes) / kBytes;
  static constexpr int kSharedBytes = kFixedBytes + kCount * kBytes + kExchangeBytes;
};

// A tile, and the part of its columns that this block computes, in steps of kDepth.
struct Segment {
  int group;
  int row;    // first weight row
  int token;  // first row of x
  int token_end;
  int tile;
  int begin, end;
};

template <int kTokens, bool kGated>
class Schedule {
 public:
  __device__ Schedule() {}
  static constexpr int kRowsOut = kGated ? kRows / 2 : kRows;

  // `tiles`: [groups + 1] in shared memory. Synchronises the block.
  __device__ Schedule(const Fp8LinearArgs& args, int* tiles)
      : args_(&args), tiles_(tiles), row_tiles_((args.n + kRowsOut - 1) / kRowsOut) {
    for (int g = threadIdx.x; g < args.groups; g += blockDim.x) tiles[g + 1] = TokenTiles(g);
    __syncthreads();
    if (threadIdx.x == 0) {
      tiles[0] = 0;
      for (int g = 0; g < args.groups; ++g) tiles[g + 1] = tiles[g] + tiles[g + 1] * row_tiles_;
    }
    __syncthreads();
    const int blocks = gridDim.x;
    depth_ = args.k / kDepth;
    waves_ = max(tiles[args.groups] / blocks - 1, 0);
    shared_ = (tiles[args.groups] - waves_ * blocks) * depth_;
    wave_ = group_ = 0;
    work_ = Begin(blockIdx.x);
    end_ = Begin(blockIdx.x + 1);
  }

  // The next one of this block; false: there is none.
  __device__ bool Next(Segment* segment) {
    if (wave_ < waves_) {
      segment->tile = wave_++ * gridDim.x + blockIdx.x;
      segment->begin = 0;
      segment->end = depth_;
    } else if (work_ < end_) {
      const int tile = work_ / depth_;
      segment->tile = waves_ * gridDim.x + tile;
      segment->begin = work_ - tile * depth_;
      segment->end = min(depth_, segment->begin + end_ - work_);
      work_ += segment->end - segment->begin;
    } else {
      return false;
    }
    while (segment->tile >= tiles_[group_ + 1]) ++group_;  // tiles come in rising order
    // Tiles of the same weights lie beside each other.
    const int token_tiles = TokenTiles(group_);
    const int inside = segment->tile - tiles_[group_];
    segment->group = group_;
    segment->row = inside / token_tiles * kRowsOut;
    segment->token = RowBegin(group_) + inside % token_tiles * kTokens;
    segment->token_end = RowEnd(group_);
    return true;
  }

  __device__ int depth() const { return depth_; }
  // Whether `block`, which comes after the one with the tile's first columns, has some of it.
  __device__ bool Shares(int block, int tile) const {
    return Begin(block) < (tile - waves_ * static_cast<int>(gridDim.x) + 1) * depth_;
  }
  __device__ bool HasWork(int block) const { return Begin(block) < Begin(block + 1); }

 private:
  __device__ int Begin(int block) const {
    return static_cast<int>(int64_t{shared_} * block / gridDim.x);
  }
  __device__ int RowBegin(int g) const { return args_->offsets == nullptr ? 0 : args_->offsets[g]; }
  __device__ int RowEnd(int g) const {
    return args_->offsets == nullptr ? args_->m : args_->offsets[g + 1];
  }
  __device__ int TokenTiles(int g) const {
    return (RowEnd(g) - RowBegin(g) + kTokens - 1) / kTokens;
  }

  const Fp8LinearArgs* args_;
  const int* tiles_;  // of groups before this
  int row_tiles_;
  int depth_;
  int waves_;   // of whole tiles, one for each block
  int shared_;  // steps of all tiles behind those
  int wave_, work_, end_, group_;
};

// One place in the ring.
template <int kTokens>
struct Slot {
  uint32_t weights, tokens, scales, full, empty;
};

__device__ __forceinline__ float Silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

template <int kTokens, bool kGated>
__global__ void __launch_bounds__(kThreads, 1)
    Fp8LinearKernel(const __grid_constant__ Fp8LinearArgs args) {
  using S = Stage<kTokens>;
  constexpr int kStages = S::kCount;
  constexpr int kSums = kTokens / 2;  // of one thread
  extern __shared__ uint8_t shared_raw[];
  const uint32_t ring = (SharedAddress(shared_raw) + 1023) & ~1023u;
  const uint32_t scales = ring + kStages * S::kTileBytes;
  const uint32_t barriers = scales + kStages * S::kScales * 4;
  const uint32_t exchange = barriers + kStages * 16;
  int* const tiles = reinterpret_cast<int*>(
      shared_raw + (exchange + S::kExchangeBytes - SharedAddress(shared_raw)));
  const auto slot = [&](int stage) {
    Slot<kTokens> s;
    s.weights = ring + stage * S::kTileBytes;
    s.tokens = s.weights + kWeightBytes;
    s.scales = scales + stage * (S::kScales * 4);
    s.full = barriers + stage * 8;
    s.empty = s.full + kStages * 8;
    return s;
  };

  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(slot(i).full, 1 + 32);            // TMA's thread, and the warp that copies scales
      BarrierInit(slot(i).empty, kConsumers / 32);  // a thread of each consuming warp
    }
    FenceBarrierInit();
  }
  Schedule<kTokens, kGated> schedule(args, tiles);  // synchronises

  if (warp < 4) {
    GiveRegisters<40>();
    if (warp > 1) return;
    int stage = 0;
    uint32_t phase = 0;
    for (Segment tile; schedule.Next(&tile);) {
      const Fp8Weight& first = args.w == nullptr ? args.single : args.w[tile.group];
      const Fp8Weight& second = !kGated              ? first
                                : args.up == nullptr ? args.single_up
                                                     : args.up[tile.group];
      const int second_row = kGated ? tile.row : tile.row + 64;
      const float* scale_row[2] = {first.scales + (tile.row / 128) * first.scale_stride,
                                   second.scales + (second_row / 128) * second.scale_stride};
      for (int k = tile.begin; k < tile.end; ++k) {
        const Slot<kTokens> s = slot(stage);
        BarrierWait(s.empty, phase ^ 1);
        if (warp == 0) {
          if (threadIdx.x == 0) {
            BarrierArriveExpect(s.full, kWeightBytes + S::kTokenBytes);
            TmaLoad(s.weights, &first.map, s.full, k * kDepth, tile.row, kEvictFirst);
            TmaLoad(s.weights + kWeightBytes / 2, &second.map, s.full, k * kDepth, second_row,
                    kEvictFirst);
            TmaLoad(s.tokens, &args.x, s.full, k * kDepth, tile.token, kEvictLast);
          }
          __syncwarp();
        } else {
          const float* from = args.x_scales + k * args.x_scale_stride + tile.token;
          for (int i = threadIdx.x % 32; i < kTokens; i += 32) {
            if (tile.token + i < tile.token_end) CopyAsync4(s.scales + i * 4, from + i);
          }
          if (threadIdx.x % 32 < 2) {
            CopyAsync4(s.scales + (kTokens + threadIdx.x % 32) * 4,
                       scale_row[threadIdx.x % 32] + k);
          }
          BarrierArriveAfterCopies(s.full);
        }
        if (++stage == kStages) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
    return;
  }

  TakeRegisters<232>();
  // The schedule's state is kept out of the registers, which the sums need.
  __shared__ Schedule<kTokens, kGated> consumers_schedule;
  __shared__ Segment tile;
  __shared__ bool more;
  const int consumer = warp / 4 - 1;
  const int thread = threadIdx.x - 128;  // of the consumers
  const int lane = threadIdx.x % 32;
  int stage = 0;
  uint32_t phase = 0;
  if (thread == 0) consumers_schedule = schedule;
  for (;;) {
    NamedBarrier(1, kConsumers);  // all have done with the last one
    if (thread == 0) more = consumers_schedule.Next(&tile);
    NamedBarrier(1, kConsumers);
    if (!more) break;
    float sum[kSums];
#pragma unroll
    for (int i = 0; i < kSums; ++i) sum[i] = 0;
    const auto issue = [&](float(&part)[kSums], const Slot<kTokens>& s, uint32_t full_phase) {
      BarrierWait(s.full, full_phase);
      PinSums(part);
      WgmmaFence();
      const uint64_t a = MatrixDescriptor(s.weights + consumer * (kWeightBytes / 2));
      const uint64_t b = MatrixDescriptor(s.tokens);
#pragma unroll
      for (int step = 0; step < kDepth / 32; ++step) {
        WgmmaFp8<kTokens>(part, a + step * 2, b + step * 2, step > 0);
      }
      WgmmaCommit();
    };
    const auto add = [&](float(&part)[kSums], const Slot<kTokens>& s) {
      PinSums(part);
      const float weight_scale = LoadShared(s.scales + (kTokens + consumer) * 4);
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
        const float2 scale = LoadShared2(s.scales + (8 * j + lane % 4 * 2) * 4);
        const float x = scale.x * weight_scale, y = scale.y * weight_scale;
        sum[4 * j] += part[4 * j] * x;
        sum[4 * j + 1] += part[4 * j + 1] * y;
        sum[4 * j + 2] += part[4 * j + 2] * x;
        sum[4 * j + 3] += part[4 * j + 3] * y;
      }
      __syncwarp();  // all lanes have read the scales
      if (lane == 0) BarrierArrive(s.empty);
    };
    const auto step_on = [&] {
      if (++stage == kStages) {
        stage = 0;
        phase ^= 1;
      }
    };
    // Two at a time: the products of the second are under way while those of the first are added.
    int left = tile.end - tile.begin;
    for (; left >= 2; left -= 2) {
      float even[kSums], odd[kSums];
      const Slot<kTokens> first = slot(stage);
      issue(even, first, phase);
      step_on();
      const Slot<kTokens> second = slot(stage);
      issue(odd, second, phase);
      step_on();
      WgmmaWait<1>();
      add(even, first);
      WgmmaWait<0>();
      add(odd, second);
    }
    if (left > 0) {
      float last[kSums];
      const Slot<kTokens> s = slot(stage);
      issue(last, s, phase);
      step_on();
      WgmmaWait<0>();
      add(last, s);
    }

    float4* const handed = reinterpret_cast<float4*>(args.partial);
    const auto place = [&](int block, int i) {
      return (int64_t{block} * (kSums / 4) + i) * kConsumers + thread;
    };
    if (tile.begin > 0) {
#pragma unroll
      for (int i = 0; i < kSums / 4; ++i) {
        handed[place(blockIdx.x, i)] =
            make_float4(sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]);
      }
      __threadfence();
      NamedBarrier(1, kConsumers);
      if (thread == 0) {
        asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(args.flags + blockIdx.x)
                     : "memory");
      }
      continue;
    }
    if (tile.end < consumers_schedule.depth()) {
      for (int block = blockIdx.x + 1; consumers_schedule.Shares(block, tile.tile); ++block) {
        if (!consumers_schedule.HasWork(block)) continue;
        if (thread == 0) {
          uint32_t flag = 0;
          for (int64_t tries = 0; flag == 0; ++tries) {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                         : "=r"(flag)
                         : "l"(args.flags + block)
                         : "memory");
            if (tries > (int64_t{1} << 26)) __trap();  // seconds: the other block is lost
          }
          args.flags[block] = 0;
        }
        NamedBarrier(1, kConsumers);
#pragma unroll
        for (int i = 0; i < kSums / 4; ++i) {
          const float4 other = __ldcg(&handed[place(block, i)]);
          sum[4 * i] += other.x;
          sum[4 * i + 1] += other.y;
          sum[4 * i + 2] += other.z;
          sum[4 * i + 3] += other.w;
        }
      }
    }

    // By way of shared memory, some tokens at a time, so that whole rows are written.
    constexpr int kChunk = S::kChunkTokens;
#pragma unroll
    for (int chunk = 0; chunk < kTokens / kChunk; ++chunk) {
      if (tile.token + chunk * kChunk >= tile.token_end) break;
      const uint32_t to =
          exchange + (lane % 4 * 2 * kExchangeRow + thread / 32 * 16 + lane / 4) * 4;
#pragma unroll
      for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          StoreShared(to + ((8 * j + i % 2) * kExchangeRow + i / 2 * 8) * 4,
                      sum[4 * (chunk * kChunk / 8 + j) + i]);
        }
      }
      NamedBarrier(1, kConsumers);
      constexpr int kColumns = Schedule<kTokens, kGated>::kRowsOut / 4;  // of 4 floats
#pragma unroll
      for (int i = 0; i < kChunk * kColumns / kConsumers; ++i) {
        const int at = i * kConsumers + thread;
        const int row = at / kColumns, column = at % kColumns * 4;
        const int token = tile.token + chunk * kChunk + row;
        const uint32_t from = exchange + (row * kExchangeRow + column) * 4;
        float4 value = LoadShared4(from);
        if constexpr (kGated) {
          const float4 up = LoadShared4(from + 64 * 4);
          value.x = Silu(value.x) * up.x;
          value.y = Silu(value.y) * up.y;
          value.z = Silu(value.z) * up.z;
          value.w = Silu(value.w) * up.w;
        }
        if (token < tile.token_end && tile.row + column < args.n) {
          float4* const out =
              reinterpret_cast<float4*>(args.out + token * args.out_stride + tile.row + column);
          if (args.accumulate) {
            const float4 old = *out;
            value = make_float4(old.x + value.x, old.y + value.y, old.z + value.z, old.w + value.w);
          }
          *out = value;
        }
      }
      NamedBarrier(1, kConsumers);
    }
  }
}

template <int kTokens, bool kGated>
cudaError_t Launch(const Fp8LinearArgs& args, cudaStream_t stream) {
  constexpr int kBytes = Stage<kTokens>::kSharedBytes;
  static const cudaError_t allowed = cudaFuncSetAttribute(
      Fp8LinearKernel<kTokens, kGated>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (allowed != cudaSuccess) return allowed;
  Fp8LinearKernel<kTokens, kGated><<<args.blocks, kThreads, kBytes, stream>>>(args);
  return cudaGetLastError();
}

constexpr int kQuantizeWarps = 4;

// One warp for each 128 columns of a row.
__global__ void __launch_bounds__(kQuantizeWarps * 32)
    QuantizeKernel(const float* x, int64_t x_stride, int32_t rows, const int32_t* row_count,
                   int32_t k, uint8_t* out, float* scales, int64_t scale_stride) {
  const int row = blockIdx.x;
  if (row_count != nullptr && row >= *row_count) return;
  const int lane = threadIdx.x % 32;
  const float margin = 1e-4f;  // DeepSeek-V3 inference/kernel.py
  const int block = blockIdx.y * kQuantizeWarps + threadIdx.x / 32;
  if (block < k / kDepth) {
    const int column = block * kDepth + lane * 4;
    const float4 v = *reinterpret_cast<const float4*>(x + row * x_stride + column);
    float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
    for (int offset = 16; offset > 0; offset /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
    }
    const float scale = fmaxf(largest, margin) / 448.0f;
    uint16_t low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(v.y / scale), "f"(v.x / scale));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
        : "=h"(high)
        : "f"(v.w / scale), "f"(v.z / scale));
    *reinterpret_cast<uint32_t*>(out + int64_t{row} * k + column) = uint32_t{low} | uint32_t{high}
                                                                                        << 16;
    if (lane == 0) scales[block * scale_stride + row] = scale;
  }
}

}  // namespace

cudaError_t LaunchQuantize(const QuantizeArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  const int blocks = args.k / kDepth;
  const dim3 grid(args.rows, (blocks + kQuantizeWarps - 1) / kQuantizeWarps);
  QuantizeKernel<<<grid, kQuantizeWarps * 32, 0, stream>>>(args.x, args.x_stride, args.rows,
                                                           args.row_count, args.k, args.out,
                                                           args.scales, args.scale_stride);
  return cudaGetLastError();
}

cudaError_t LaunchFp8Linear(const Fp8LinearArgs& args, cudaStream_t stream) {
  if (args.m == 0 || args.n == 0 || args.groups == 0) return cudaSuccess;
  switch (args.tokens_per_tile) {
    case 16:
      return args.has_up ? Launch<16, true>(args, stream) : Launch<16, false>(args, stream);
    case 32:
      return args.has_up ? Launch<32, true>(args, stream) : Launch<32, false>(args, stream);
    case 64:
      return args.has_up ? Launch<64, true>(args, stream) : Launch<64, false>(args, stream);
    case 128:
      return args.has_up ? Launch<128, true>(args, stream) : Launch<128, false>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace sluice::cuda
