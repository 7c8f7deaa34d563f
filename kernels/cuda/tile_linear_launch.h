// Matrix products on Hopper's tensor cores as the host launches them (tile_linear.cuh): plain
// structs of device pointers, see launch.h.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/cuda/device_wait.h"

namespace sluice::cuda {

// x as operands: in e4m3 with one scale per row and 128 columns (|x| / 448 of the largest there),
// or rounded to bf16. The kernel starts while the one before it still runs, and so may the product.
struct OperandArgs {
  const float* x;
  int64_t x_stride;  // a multiple of 4
  int32_t rows;
  const int32_t* row_count;  // on the device, or null: rows from there on are left alone
  // [rows, places_each], or null: the operand of a row goes to each of its places that is not -1,
  // and row_count is null.
  const int32_t* places;
  int64_t places_stride;
  int32_t places_each;
  int32_t k;             // e4m3: a multiple of 128; bf16: of 8
  void* out;             // [rows, k]
  float* scales;         // [k / 128, scale_stride], for e4m3
  int64_t scale_stride;  // at least rows
};
cudaError_t LaunchQuantize(const OperandArgs& args, cudaStream_t stream);
cudaError_t LaunchRoundOperand(const OperandArgs& args, cudaStream_t stream);

// A weight [n, k] as operand; e4m3 has scales for blocks of 128 x 128. Boxes of `map` are
// WeightBoxRows rows of 128 bytes.
struct TileWeight {
  CUtensorMap map;
  const float* scales;
  int64_t scale_stride;
};

// What the blocks of a cluster have in common.
enum class Sharing : int32_t {
  kNone,     // no cluster
  kTokens,   // two blocks share rows of x, each has rows of weights of its own
  kColumns,  // up to four blocks have a part of a tile's columns each
};

// What a block computes at once, and how work is dealt out.
struct TilePlan {
  int32_t tokens;   // rows of x: 64, 128 or 256
  int32_t outputs;  // rows of weights, of gate and up together: 64 or 128
  Sharing sharing = Sharing::kNone;
  int32_t blocks = 1;  // of a cluster
  bool split = false;  // work is dealt out by columns as well as by tiles, so that all blocks have
                       // as much to do; not with kColumns
};
constexpr int WeightBoxRows(int outputs, bool gated) { return gated && outputs == 64 ? 32 : 64; }

constexpr int kTileScaleSlack = 256 + 8;
constexpr int kTilePartsMax = 4;
constexpr int kTileGroupsMax = 512;

// Dense: each part is a weight over the same x with an output of its own. Gated: one part, and
// `up`. Grouped: rows [offsets[g], offsets[g + 1]) meet group_weights[g], and outputs and n are
// those of part 0.
struct TilePart {
  TileWeight w;
  float* out;
  int64_t out_stride;  // a multiple of 2
  int32_t n;           // a multiple of 2
};
struct TileLinearArgs {
  CUtensorMap x;          // [m, k] operands as bytes; boxes are x_box_rows rows of 128 bytes
  int32_t x_box_rows;     // a multiple of 8; two boxes of kTokens sharing, or one, are a tile
  const float* x_scales;  // [k / 128, x_scale_stride] for e4m3, kTileScaleSlack more can be read
  int64_t x_scale_stride;
  TilePart parts[kTilePartsMax];
  int32_t part_count;
  TileWeight up;
  const TileWeight* group_weights;  // [groups], on the device, or null
  const TileWeight* group_ups;      // likewise
  const int32_t* offsets;           // [groups + 1], or null
  int32_t groups;                   // 1 unless grouped; at most kTileGroupsMax
  int32_t m;
  int32_t steps;  // of 128 bytes of k
  bool gated;
  bool accumulate;
  TilePlan plan;
  int32_t blocks;    // at most one for each SM
  float* partial;    // [blocks, plan.tokens * plan.outputs]
  uint32_t* flags;   // [2 * blocks], zero before and after
  uint32_t* ticket;  // likewise: counts units as they start
  WaitState* wait;
};
cudaError_t LaunchFp8Tiles(const TileLinearArgs& args, cudaStream_t stream);
cudaError_t LaunchBf16Tiles(const TileLinearArgs& args, cudaStream_t stream);

}  // namespace sluice::cuda
