// What tests of TileLinear by itself share: its context, and the plans that there are kernels for.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/cuda_test_util.h"
#include "kernels/cuda/tile_linear.h"

namespace sluice {

// For TileLinear by itself.
inline CudaContext ContextOf(Device& fast) {
  CudaContext context{.stream = StreamOf(fast.backend()), .numerics = Numerics::kFast};
  EXPECT_EQ(cudaDeviceGetAttribute(&context.multiprocessors, cudaDevAttrMultiProcessorCount, 0),
            cudaSuccess);
  context.wait = WaitStateOf(fast.backend());
  return context;
}

// Of dense FP8 products: not only those that Fp8Plan chooses.
inline std::vector<cuda::TilePlan> DensePlans() {
  using cuda::Sharing;
  std::vector<cuda::TilePlan> plans;
  for (const bool split : {false, true}) {
    for (const int tokens : {64, 128}) plans.push_back({tokens, 64, Sharing::kNone, 1, split});
    plans.push_back({64, 128, Sharing::kNone, 1, split});
    for (const int tokens : {128, 256}) plans.push_back({tokens, 128, Sharing::kTokens, 2, split});
  }
  for (const int blocks : {2, 3, 4}) {
    plans.push_back({64, 64, Sharing::kColumns, blocks});
    plans.push_back({64, 128, Sharing::kColumns, blocks});
    plans.push_back({128, 64, Sharing::kColumns, blocks});
  }
  return plans;
}

// Of grouped ones: weights of 128 rows, as their tables have it.
inline std::vector<cuda::TilePlan> GroupedPlans() {
  using cuda::Sharing;
  std::vector<cuda::TilePlan> plans;
  for (const bool split : {false, true}) {
    plans.push_back({64, 128, Sharing::kNone, 1, split});
    for (const int tokens : {128, 256}) plans.push_back({tokens, 128, Sharing::kTokens, 2, split});
  }
  return plans;
}

inline std::string PlanName(const cuda::TilePlan& plan) {
  return absl::StrCat("tile ", plan.tokens, " x ", plan.outputs, ", sharing ",
                      static_cast<int>(plan.sharing), " among ", plan.blocks,
                      plan.split ? ", split" : "");
}

}  // namespace sluice
