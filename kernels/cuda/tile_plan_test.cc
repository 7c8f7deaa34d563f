// Plans are those that kernels exist for, and give every block of a cluster something to do.
#include "kernels/cuda/tile_plan.h"

#include <set>
#include <tuple>

#include "gtest/gtest.h"

namespace sluice {
namespace {

using cuda::Sharing;
using cuda::TilePlan;

void ExpectSound(const TileProblem& problem, const TilePlan& plan) {
  SCOPED_TRACE(testing::Message() << "rows " << problem.rows << " groups " << problem.groups
                                  << " n " << problem.n << " steps " << problem.steps << ": "
                                  << plan.tokens << " x " << plan.outputs << " sharing "
                                  << static_cast<int>(plan.sharing) << " blocks " << plan.blocks);
  const std::set<std::tuple<int, int, Sharing>> kernels = {
      {64, 64, Sharing::kNone},     {64, 128, Sharing::kNone},    {64, 64, Sharing::kColumns},
      {64, 128, Sharing::kColumns}, {128, 64, Sharing::kNone},    {128, 64, Sharing::kColumns},
      {128, 128, Sharing::kTokens}, {256, 128, Sharing::kTokens},
  };
  EXPECT_TRUE(kernels.contains({plan.tokens, plan.outputs, plan.sharing}));
  EXPECT_EQ(plan.blocks > 1, plan.sharing != Sharing::kNone);
  EXPECT_TRUE(plan.sharing != Sharing::kTokens || plan.blocks == 2);
  if (plan.sharing == Sharing::kColumns) {
    EXPECT_FALSE(plan.split);
    EXPECT_LE(plan.blocks, problem.steps);
    EXPECT_LE(problem.rows, plan.tokens);
  }
}

TEST(TilePlanTest, AllAreSound) {
  for (const int64_t rows : {1, 16, 64, 65, 128, 129, 1000, 16384, 131072}) {
    for (const int64_t n : {4, 64, 576, 1024, 2112, 4096, 7168, 24576, 36864, 129280}) {
      for (const int64_t steps : {1, 2, 4, 12, 16, 56, 128, 144}) {
        for (const int blocks : {132, 114, 78, 2}) {
          const TileProblem dense{.rows = rows, .n = n, .steps = steps, .blocks = blocks};
          ExpectSound(dense, Fp8Plan(dense));
          for (const int64_t groups : {1, 9, 64, 512}) {
            TileProblem grouped = dense;
            grouped.grouped = true;
            grouped.groups = groups;
            ExpectSound(grouped, Fp8Plan(grouped));
            const TilePlan bf16 = Bf16Plan(grouped);
            ExpectSound(grouped, bf16);
            EXPECT_EQ(bf16.outputs, 128) << "bf16 has no other kernels";
          }
        }
      }
    }
  }
}

TEST(TilePlanTest, DecodeShapesOfDeepSeekV3) {
  const auto plan = [](int64_t rows, int64_t n, int64_t steps) {
    const TilePlan p = Fp8Plan({.rows = rows, .n = n, .steps = steps});
    return std::tuple(p.tokens, p.outputs, p.blocks, p.split);
  };
  EXPECT_EQ(plan(8, 2112, 56), std::tuple(64, 64, 3, false));
  EXPECT_EQ(plan(64, 4096, 56), std::tuple(64, 128, 3, false));
  EXPECT_EQ(plan(64, 7168, 16), std::tuple(64, 64, 1, false));
  EXPECT_EQ(plan(64, 7168, 128), std::tuple(64, 128, 2, false));
  EXPECT_EQ(plan(64, 24576, 12), std::tuple(64, 64, 1, false));
  EXPECT_EQ(plan(128, 2112, 56), std::tuple(128, 64, 3, false));
  EXPECT_EQ(plan(128, 4096, 56), std::tuple(128, 64, 2, false));
  EXPECT_EQ(plan(128, 7168, 16), std::tuple(128, 64, 1, false));
  EXPECT_EQ(plan(128, 7168, 128), std::tuple(128, 128, 2, true));
}

TEST(TilePlanTest, GroupsOfDeepSeekV3) {
  const auto plan = [](int64_t groups, int64_t rows, int64_t n, int64_t steps) {
    const TilePlan p =
        Fp8Plan({.rows = groups * rows, .groups = groups, .grouped = true, .n = n, .steps = steps});
    return std::tuple(p.tokens, p.split);
  };
  EXPECT_EQ(plan(9, 8, 4096, 56), std::tuple(64, true));
  EXPECT_EQ(plan(9, 114, 4096, 56), std::tuple(128, true));
  EXPECT_EQ(plan(9, 128, 7168, 16), std::tuple(128, false));
  EXPECT_EQ(plan(9, 256, 7168, 16), std::tuple(256, false));
  EXPECT_EQ(plan(9, 14464, 4096, 56), std::tuple(256, false));
  EXPECT_EQ(plan(1, 256, 4096, 56), std::tuple(128, true));
  EXPECT_EQ(plan(1, 256, 7168, 16), std::tuple(128, false));
}

}  // namespace
}  // namespace sluice
