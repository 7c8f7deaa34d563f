#include "kernels/cuda/tile_plan.h"

namespace sluice {
namespace {

using cuda::Sharing;
using cuda::TilePlan;

// Rows of x at once: so few that no work is done for rows that are not there, yet as many as there
// are, or most groups have, so that weights are read once.
TilePlan PlanByRows(const TileProblem& p) {
  const int64_t mean = (p.rows + p.groups - 1) / p.groups;
  if ((p.grouped ? mean * 5 / 4 : mean) <= 64) {
    return {.tokens = 64, .outputs = 128, .split = true};
  }
  return {.tokens = mean <= 160 ? 128 : 256,
          .outputs = 128,
          .sharing = Sharing::kTokens,
          .blocks = 2,
          .split = true};
}

}  // namespace

TilePlan Fp8Plan(const TileProblem& problem) { return PlanByRows(problem); }
TilePlan Bf16Plan(const TileProblem& problem) { return PlanByRows(problem); }

}  // namespace sluice
