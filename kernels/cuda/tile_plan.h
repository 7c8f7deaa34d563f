// Which tiles a matrix product on the tensor cores is cut into: the one place where that is
// decided.
#pragma once

#include <cstdint>

#include "kernels/cuda/tile_linear_launch.h"

namespace sluice {

struct TileProblem {
  int64_t rows = 0;    // of x, of all groups together
  int64_t groups = 1;  // whose sizes the host does not know
  bool grouped = false;
  int64_t n = 0;      // rows of weights, of gate and up and all parts together
  int64_t steps = 0;  // of 128 bytes of a row
  int blocks = 132;   // that can run at once
};

// A plan that LaunchFp8Tiles has a kernel for; for bf16 see Bf16Plan.
cuda::TilePlan Fp8Plan(const TileProblem& problem);
cuda::TilePlan Bf16Plan(const TileProblem& problem);

// Whether cuBLASLt does a dense FP8 product of one weight sooner than any of our plans. Not
// `whole`: the last rows are a product of their own.
bool CublasLtIsFaster(int64_t rows, bool whole);

}  // namespace sluice
