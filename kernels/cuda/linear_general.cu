// Matrix products of any shape and storage type in f32 arithmetic: what serves where no faster
// kernel does. A block computes 64 x 64 outputs from tiles of 16 columns; every output is one sum
// over rising k, whatever m is.
#include <type_traits>

#include "kernels/cuda/device.cuh"

namespace sluice::cuda {
namespace {

constexpr int kTile = 64;
constexpr int kDepth = 16;
constexpr int kThreads = 256;
constexpr int kEach = 4;  // rows, and columns, of outputs per thread

template <Element kElement, bool kUp>
__global__ void __launch_bounds__(kThreads) LinearKernel(LinearArgs args) {
  const int group = blockIdx.z;
  int row_begin = 0, row_end = args.m;
  if (args.offsets != nullptr) {
    row_begin = args.offsets[group];
    row_end = args.offsets[group + 1];
  }
  const int m0 = row_begin + blockIdx.y * kTile;
  const int n0 = blockIdx.x * kTile;
  if (m0 >= row_end) return;
  const Weight w = args.w != nullptr ? args.w[group] : args.single;
  const Weight up = !kUp ? w : args.up != nullptr ? args.up[group] : args.single_up;

  __shared__ float x_tile[kDepth][kTile + 1];
  __shared__ float w_tile[kDepth][kTile + 1];
  __shared__ float up_tile[kUp ? kDepth : 1][kTile + 1];
  float sum[kEach][kEach] = {};
  float up_sum[kEach][kEach] = {};
  const int column = threadIdx.x % 16, line = threadIdx.x / 16;
  for (int k0 = 0; k0 < args.k; k0 += kDepth) {
    for (int row = line; row < kTile; row += kThreads / kDepth) {
      const int k = k0 + column;
      const bool inside = k < args.k;
      x_tile[column][row] =
          inside && m0 + row < row_end ? args.x[(m0 + row) * args.x_stride + k] : 0.0f;
      const bool weight = inside && n0 + row < args.n;
      w_tile[column][row] = weight ? WeightAt<kElement>(w, n0 + row, k) : 0.0f;
      if constexpr (kUp) {
        up_tile[column][row] = weight ? WeightAt<kElement>(up, n0 + row, k) : 0.0f;
      }
    }
    __syncthreads();
    for (int k = 0; k < kDepth; ++k) {
      float x[kEach];
      for (int i = 0; i < kEach; ++i) x[i] = x_tile[k][line + 16 * i];
      for (int j = 0; j < kEach; ++j) {
        const float weight = w_tile[k][column + 16 * j];
        for (int i = 0; i < kEach; ++i) sum[i][j] = fmaf(x[i], weight, sum[i][j]);
        if constexpr (kUp) {
          const float other = up_tile[k][column + 16 * j];
          for (int i = 0; i < kEach; ++i) up_sum[i][j] = fmaf(x[i], other, up_sum[i][j]);
        }
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < kEach; ++i) {
    const int row = m0 + line + 16 * i;
    if (row >= row_end) continue;
    for (int j = 0; j < kEach; ++j) {
      const int n = n0 + column + 16 * j;
      if (n >= args.n) continue;
      float* out = args.out + row * args.out_stride + n;
      float value = sum[i][j];
      if constexpr (kUp) value = value / (1.0f + expf(-value)) * up_sum[i][j];
      *out = args.accumulate ? *out + value : value;
    }
  }
}

}  // namespace

cudaError_t LaunchLinear(const LinearArgs& args, cudaStream_t stream) {
  if (args.m == 0 || args.n == 0 || args.groups == 0) return cudaSuccess;
  const dim3 grid((args.n + kTile - 1) / kTile, (args.m + kTile - 1) / kTile, args.groups);
  return DispatchElement(args.element, [&](auto element) {
    if (args.has_up) {
      LinearKernel<decltype(element)::value, true><<<grid, kThreads, 0, stream>>>(args);
    } else {
      LinearKernel<decltype(element)::value, false><<<grid, kThreads, 0, stream>>>(args);
    }
    return cudaGetLastError();
  });
}

}  // namespace sluice::cuda
