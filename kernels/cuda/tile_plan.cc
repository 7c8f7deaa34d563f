#include "kernels/cuda/tile_plan.h"

#include <algorithm>
#include <utility>

namespace sluice {
namespace {

using cuda::Sharing;
using cuda::TilePlan;

int64_t Tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// Few rows of x and one group: what counts is that all blocks read weights at once, and that they
// need not wait for each other. Measured on an H200, us with quantisation, in turns with the next
// best plan (kernels/docs/fp8_linear.md): 2112 x 7168 in clusters of 3: 12.4 at 64 rows (one block
// a tile: 18.1, dealt out by columns: 15.0); 7168 x 2048 with one block a tile: 10.3 (14.8); 4096 x
// 7168 with 128 rows of weights in clusters of 3: 15.4 (64 in clusters of 2: 17.1); 7168 x 16384
// with 128 in clusters of 2, 8 rows: 35.4 (37.0); 24576 x 1536 in waves of 64: 19.0 (22.2).
TilePlan FewRows(const TileProblem& p) {
  const int tokens = p.rows <= 64 ? 64 : 128;
  // Whether a cluster for each tile fills the GPU, and all clusters run at once.
  const auto fills = [&](int outputs, int blocks) {
    const int64_t used = Tiles(p.n, outputs) * blocks;
    const int64_t room = blocks < 3 ? p.blocks : p.blocks - 6;
    return 3 * used >= 2 * p.blocks && used <= room && p.steps >= 4 * blocks;
  };
  const auto clusters = [&](int outputs, int blocks) {
    return TilePlan{tokens, outputs, blocks > 1 ? Sharing::kColumns : Sharing::kNone, blocks,
                    /*split=*/false};
  };
  if (tokens == 64) {
    if (fills(128, 3)) return clusters(128, 3);
    if (p.steps >= 64 && fills(128, 2)) return clusters(128, 2);
  } else if (p.steps >= 64) {
    return {.tokens = 128, .outputs = 128, .sharing = Sharing::kTokens, .blocks = 2, .split = true};
  }
  for (const int blocks : {1, 3, 2}) {
    if (fills(64, blocks)) return clusters(64, blocks);
  }
  // Long tiles in uneven waves leave blocks idle for long.
  if (p.steps < 32 && Tiles(p.n, 64) > p.blocks) return clusters(64, 1);
  if (tokens == 64) return {.tokens = 64, .outputs = 128, .split = true};
  return {.tokens = 128, .outputs = 128, .sharing = Sharing::kTokens, .blocks = 2, .split = true};
}

// Many rows, or groups. The plan that is done soonest by what a step was measured to take on an
// H200, in 1/100 us, and what it takes to hand over sums, in steps. Likewise measured, us: 9 groups
// of 128 rows, gate and up of 2048 x 7168, dealt out by columns: 100 (whole tiles: 115); down of
// 7168 x 2048 in whole tiles: 59.6 (64.8); of 256 rows with 256 rows a tile: 100 (128: 111);
// 256 rows of 7168 x 2048 with 128: 16.8 (256: 23).
TilePlan ManyRows(const TileProblem& p) {
  constexpr int64_t kHandOverSteps = 24;
  const int64_t mean = Tiles(p.rows, p.groups);
  const auto plan = [&](int tokens, int64_t step_time) {
    TilePlan result{.tokens = tokens, .outputs = 128};
    if (tokens > 64) {
      result.sharing = Sharing::kTokens;
      result.blocks = 2;
    }
    const int64_t units = std::max(p.blocks / result.blocks, 1);
    const int64_t tiles = p.groups * Tiles(mean, tokens) * Tiles(p.n, 128 * result.blocks);
    const int64_t whole = Tiles(tiles, units) * p.steps;
    const int64_t split = Tiles(tiles * p.steps, units) + kHandOverSteps;
    // Of many waves the last one matters little, and whole tiles side by side share what L2 holds.
    result.split = split < whole && tiles < 4 * units;
    return std::pair(result, (result.split ? split : whole) * step_time);
  };
  // Groups differ: two tiles for one that is larger than the mean cost as much as two groups.
  if ((p.grouped ? mean * 5 / 4 : mean) <= 64) return plan(64, 55).first;
  const auto narrow = plan(128, 70), wide = plan(256, 125);
  return mean <= 160 || narrow.second < wide.second ? narrow.first : wide.first;
}

}  // namespace

TilePlan Fp8Plan(const TileProblem& problem) {
  return problem.grouped || problem.rows > 128 ? ManyRows(problem) : FewRows(problem);
}

TilePlan Bf16Plan(const TileProblem& problem) { return ManyRows(problem); }

// Measured on an H200 in turns, us with quantisation, cuBLASLt and (best of our plans). 256 rows:
// 7168 x 16384 59.5 (70), 24576 x 1536 28.0 (33.1), 2112 x 7168 21.4 (26.9), 4096 x 7168 24.9
// (30.3), 7168 x 2048 13.5 (16.3); 512 rows: 111 (127), 45.8 (55.5); 1024: 217 (253), 83 (103);
// 4096: 824 to 907 (1,018), 307 to 318 (386), 225 (285; 4096 x 7168), 124 (168; 7168 x 2048);
// 16384: 3,750 (4,090), 1,436 (1,638). Below 256 our plans take as long as with 256. With 128 rows
// it is a draw. One to three rows for our kernel cost 36 and 17 us of the first two.
bool CublasLtIsFaster(int64_t rows, bool whole) { return rows > (whole ? 128 : 1024); }

}  // namespace sluice
