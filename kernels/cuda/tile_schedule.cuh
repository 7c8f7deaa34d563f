// Which tiles of a matrix product a block computes, and which columns of them.
//
// A unit is a block, a pair of blocks that share the rows of x, or a cluster of blocks that share
// the columns. Units first take whole tiles in
// turn. What is left, one to two tiles for each unit, is dealt out in equal shares of (tile, step)
// pairs in a row when the plan says so ("stream-K"). A tile that is shared by units belongs to the
// one with its first columns, which waits for the sums of the others: units with higher numbers.
// Those have started before it, because units that wait are numbered in the order in which they
// start, last to first (`ticket`), and they hand their sums over before they wait for anybody. So
// nobody waits for a block that has not found a multiprocessor yet, whatever else, of this process
// or another one, is on the GPU.
#pragma once

#include <stdint.h>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/tile_linear_launch.h"

namespace sluice::cuda {

// A tile, and the part of its columns that this block computes, in steps.
struct Segment {
  int part;   // or group
  int row;    // first row of the output's columns
  int token;  // first row of x
  int token_end;
  int tile;
  int begin, end;
};

// kTokens and kOutputs: of a unit's tile, the latter as columns of the output.
template <int kTokens, int kOutputs, Sharing kSharing>
class TileSchedule {
 public:
  __device__ TileSchedule() {}

  // `tiles`: [kTileGroupsMax + 1] in shared memory, of use once the block has synchronised.
  __device__ TileSchedule(const TileLinearArgs& args, int* tiles) : args_(&args), tiles_(tiles) {
    row_tiles_ = 0;
    for (int p = 0; p < args.part_count; ++p) row_tiles_ += RowTiles(p);
    if (threadIdx.x < 32) {
      int before = 0;
      if (threadIdx.x == 0) tiles[0] = 0;
      for (int first = 0; first < args.groups; first += 32) {
        const int g = first + static_cast<int>(threadIdx.x);
        int count = g < args.groups ? TokenTiles(g) * row_tiles_ : 0;
        for (int offset = 1; offset < 32; offset *= 2) {
          const int other = __shfl_up_sync(~0u, count, offset);
          if (static_cast<int>(threadIdx.x) >= offset) count += other;
        }
        if (g < args.groups) tiles[g + 1] = before + count;
        before += __shfl_sync(~0u, count, 31);
      }
    }
    units_ = Units(args);
  }

  __device__ static int Units(const TileLinearArgs& args) {
    return static_cast<int>(gridDim.x) / args.plan.blocks;
  }
  // How many units have started before this one, for plans that are split. By one thread of it.
  __device__ static uint32_t TakeNumber(const TileLinearArgs& args) {
    return atomicInc(args.ticket, static_cast<uint32_t>(Units(args)) - 1);
  }

  // `number`: TakeNumber's, of any use for plans that are split alone.
  __device__ void Start(uint32_t number) {
    const TilePlan& plan = args_->plan;
    unit_ = plan.split ? units_ - 1 - static_cast<int>(number)
                       : static_cast<int>(blockIdx.x) / plan.blocks;
    const int count = tiles_[args_->groups];
    waves_ = plan.split ? max(count / units_ - 1, 0) : (count + units_ - 1) / units_;
    shared_ = max(count - waves_ * units_, 0) * args_->steps;
    wave_ = group_ = 0;
    work_ = Begin(unit_);
    end_ = Begin(unit_ + 1);
  }

  // The next one of this unit; false: there is none.
  __device__ bool Next(Segment* segment) {
    const int steps = args_->steps;
    const int whole = wave_ * units_ + unit_;
    if (wave_ < waves_ && whole < tiles_[args_->groups]) {
      ++wave_;
      segment->tile = whole;
      segment->begin = 0;
      segment->end = steps;
      if constexpr (kSharing == Sharing::kColumns) {
        const int rank = static_cast<int>(ClusterRank());
        segment->begin = steps * rank / args_->plan.blocks;
        segment->end = steps * (rank + 1) / args_->plan.blocks;
      }
    } else if (work_ < end_) {
      const int tile = work_ / steps;
      segment->tile = waves_ * units_ + tile;
      segment->begin = work_ - tile * steps;
      segment->end = min(steps, segment->begin + end_ - work_);
      work_ += segment->end - segment->begin;
    } else {
      return false;
    }
    while (segment->tile >= tiles_[group_ + 1]) ++group_;  // tiles come in rising order
    Place(segment);
    return true;
  }

  // Whether `unit`, which comes after the one with the tile's first columns, has some of it.
  __device__ bool Shares(int unit, int tile) const {
    return Begin(unit) < (tile - waves_ * units_ + 1) * args_->steps;
  }
  __device__ bool HasWork(int unit) const { return Begin(unit) < Begin(unit + 1); }
  __device__ int unit() const { return unit_; }

 private:
  // Tiles of so many tiles of x and all weights come in a row: what runs at one time is about as
  // wide as it is high, and so reads least.
  static constexpr int kBand = 8;

  __device__ int Begin(int unit) const {
    return static_cast<int>(int64_t{shared_} * unit / units_);
  }
  __device__ int RowTiles(int part) const {
    return (args_->parts[part].n + kOutputs - 1) / kOutputs;
  }
  // Past L1, which may hold what an earlier kernel left there: this one reads them before it waits.
  __device__ int RowBegin(int g) const {
    return args_->offsets == nullptr ? 0 : __ldcg(args_->offsets + g);
  }
  __device__ int RowEnd(int g) const {
    return args_->offsets == nullptr ? args_->m : __ldcg(args_->offsets + g + 1);
  }
  __device__ int TokenTiles(int g) const {
    return (RowEnd(g) - RowBegin(g) + kTokens - 1) / kTokens;
  }
  __device__ void Place(Segment* segment) const {
    const int inside = segment->tile - tiles_[group_];
    const int band = inside / (row_tiles_ * kBand);
    const int in_band = inside - band * row_tiles_ * kBand;
    const int width = min(kBand, TokenTiles(group_) - band * kBand);
    int row_tile = in_band / width;
    segment->token = RowBegin(group_) + (band * kBand + in_band % width) * kTokens;
    segment->token_end = RowEnd(group_);
    segment->part = group_;
    if (args_->offsets == nullptr) {
      int part = 0;
      while (row_tile >= RowTiles(part)) row_tile -= RowTiles(part++);
      segment->part = part;
    }
    segment->row = row_tile * kOutputs;
    if (kSharing == Sharing::kTokens)
      segment->row += static_cast<int>(ClusterRank()) * (kOutputs / 2);
  }

  const TileLinearArgs* args_;
  const int* tiles_;  // of groups before this
  int row_tiles_;     // of all parts
  int units_, unit_;
  int waves_;   // of whole tiles, one for each unit
  int shared_;  // steps of all tiles behind those
  int wave_, work_, end_, group_;
};

}  // namespace sluice::cuda
