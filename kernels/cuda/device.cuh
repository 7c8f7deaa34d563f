// What kernels share: widening stored elements, sums over a block, vectors, dispatch by type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <math_constants.h>
#include <stdint.h>

#include <type_traits>

#include "kernels/cuda/launch.h"

namespace sluice::cuda {

template <Element kElement>
struct Stored;
template <>
struct Stored<Element::kF32> {
  using Type = float;
  static __device__ float Widen(float x) { return x; }
};
template <>
struct Stored<Element::kBF16> {
  using Type = __nv_bfloat16;
  static __device__ float Widen(__nv_bfloat16 x) { return __bfloat162float(x); }
};
template <>
struct Stored<Element::kF16> {
  using Type = __half;
  static __device__ float Widen(__half x) { return __half2float(x); }
};
template <>
struct Stored<Element::kF8E4M3> {
  using Type = __nv_fp8_e4m3;
  static __device__ float Widen(__nv_fp8_e4m3 x) { return static_cast<float>(x); }
};

// Element (row, col) of the view, with its scale.
template <Element kElement>
__device__ float WeightAt(const Weight& w, int64_t row, int64_t col) {
  using Type = typename Stored<kElement>::Type;
  const float value =
      Stored<kElement>::Widen(static_cast<const Type*>(w.data)[row * w.row_stride + col]);
  if (kElement != Element::kF8E4M3 || w.scales == nullptr) return value;
  return value * w.scales[(w.row_begin + row) / w.scale_block * w.scale_row_stride +
                          (w.col_begin + col) / w.scale_block];
}

__device__ inline float WarpSum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// The sum over all threads of the block, in one fixed order, for every thread. blockDim.x is a
// multiple of 32.
__device__ inline float BlockSum(float x) {
  __shared__ float parts[32];
  x = WarpSum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) sum += parts[warp];
  return sum;
}

// Whether rows of n elements, `stride` apart, can be read in vectors of four of them.
inline bool InVectors(const void* data, int64_t stride, int64_t n, size_t vector_bytes = 16) {
  return reinterpret_cast<uintptr_t>(data) % vector_bytes == 0 && stride % 4 == 0 && n % 4 == 0;
}

// Calls f with the element as a type, for launches that are compiled once per stored type.
template <typename F>
cudaError_t DispatchElement(Element element, F f) {
  switch (element) {
    case Element::kF32:
      return f(std::integral_constant<Element, Element::kF32>{});
    case Element::kBF16:
      return f(std::integral_constant<Element, Element::kBF16>{});
    case Element::kF16:
      return f(std::integral_constant<Element, Element::kF16>{});
    case Element::kF8E4M3:
      return f(std::integral_constant<Element, Element::kF8E4M3>{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace sluice::cuda
