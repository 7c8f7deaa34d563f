// Exact matrix products, one tile at a time: f32 activations, weights widened to f32, f32 sums.
//
// Each output is one sum in one order, whatever the tile, the instruction set or the rest of the
// batch: 16 partial sums (lane i takes every 16th k) by fused multiply-adds in order of k, added up
// by the fixed tree of simd::Sum. With scales this runs per scale block, from the block's first k,
// and total = fma(partial, scale, total) lane by lane follows each block.
// Design and numbers: kernels/docs/cpu_linear.md.
#pragma once

#include "kernels/cpu/linear_tile.h"
#include "kernels/cpu/simd/dispatch.h"

namespace sluice {

SLUICE_DECLARE_KERNELS(LinearKernels, GetExactLinearKernels);

// The same with VBMI and GFNI (CpuIsa::kAvx512Bf16 has both).
namespace simd_avx512 {
const LinearKernels& GetGfniExactLinearKernels();
}

}  // namespace sluice
