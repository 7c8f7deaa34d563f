// Fast matrix products: activations rounded to bf16, f32 sums.
//
// bf16 and FP8 weights enter exactly (FP8 block scales multiply the sum over a block, in f32); f32
// and f16 weights are rounded to bf16. Results depend neither on the batch nor on threads, as long
// as the same kernel is chosen (linear.cc, ChooseKernels), but do differ between kernels.
// Design and numbers: kernels/docs/cpu_linear.md.
#pragma once

#include "kernels/cpu/linear_tile.h"

namespace sluice {

// Dot products of bf16 pairs (AVX512-BF16), FP8 widened by table (VBMI).
const LinearKernels& GetBf16LinearKernels();

// AMX tiles: 16 rows of weights by 32 k, times 32 k by 16 tokens.
const LinearKernels& GetAmxLinearKernels();

}  // namespace sluice
