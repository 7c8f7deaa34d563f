// The router's product in f32 quality on the tensor cores: few columns, a long sum.
//   out[m, n] = x[m, :] . w[n, :]
// Design: kernels/docs/small_kernels.md.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

namespace sluice::cuda {

struct GateLinearArgs {
  const float* x;  // 16-byte aligned, as are all rows here
  int64_t x_stride;
  const void* w;
  int64_t w_stride;
  bool w_bf16;  // else f32
  float* out;
  int64_t out_stride;
  int32_t m, n, k;  // k a multiple of 8
  float* partial;   // [GateLinearScratch] scratch
};
// Floats of scratch for any m.
int64_t GateLinearScratch(int64_t n, int64_t k);
cudaError_t LaunchGateLinear(const GateLinearArgs& args, cudaStream_t stream);

}  // namespace sluice::cuda
