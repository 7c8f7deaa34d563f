// Latent attention of any geometry in f32 arithmetic: what serves where no faster kernel does.
//
// One block per (token, head): it makes the latent query, walks the cached rows with each warp
// taking every eighth position, merges the warps' softmax sums, and projects the context to values.
// A token's result depends on its own sequence alone.
#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kv_rows.cuh"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPageTokens = 64;

template <Element kElement, Element kCache>
__global__ void __launch_bounds__(kThreads) AbsorbedKernel(AbsorbedArgs args) {
  const MlaShape s = args.shape;
  const int token = blockIdx.x, head = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int kv_dim = s.rank + s.rope;
  extern __shared__ float memory[];
  float* query = memory;                       // [kv_dim]: latent, then rope
  float* context = query + kv_dim;             // [kWarps][rank]
  float* largest = context + kWarps * s.rank;  // [kWarps]
  float* sums = largest + kWarps;              // [kWarps]

  const float* q = args.q + token * args.q_stride + (int64_t)head * (s.nope + s.rope);
  const int64_t first_row = (int64_t)head * (s.nope + s.v);
  for (int r = threadIdx.x; r < s.rank; r += kThreads) {
    float sum = 0;
    for (int n = 0; n < s.nope; ++n) {
      sum = fmaf(q[n], WeightAt<kElement>(args.kv_b, first_row + n, r), sum);
    }
    query[r] = sum;
  }
  for (int i = threadIdx.x; i < s.rope; i += kThreads) query[s.rank + i] = q[s.nope + i];
  float* own = context + warp * s.rank;
  for (int r = lane; r < s.rank; r += 32) own[r] = 0;
  __syncthreads();

  const bool listed = args.seq_of_token != nullptr;
  const int32_t* pages =
      args.page_table + (listed ? args.seq_of_token[token] * args.page_table_stride : 0);
  const int64_t last = listed ? args.positions[token] : args.first_position + token;
  float max = -CUDART_INF_F, sum = 0;
  for (int64_t position = warp; position <= last; position += kWarps) {
    const KvRow<kCache> row(
        args.cache, (int64_t)pages[position / kPageTokens] * kPageTokens + position % kPageTokens,
        s);
    float score = 0;
    for (int i = lane; i < kv_dim; i += 32) score = fmaf(query[i], row[i], score);
    score = WarpSum(score) * args.scale;
    const float next = fmaxf(max, score);
    const float shrink = expf(max - next), weight = expf(score - next);
    sum = sum * shrink + weight;
    for (int r = lane; r < s.rank; r += 32) own[r] = own[r] * shrink + weight * row[r];
    max = next;
  }
  if (lane == 0) {
    largest[warp] = max;
    sums[warp] = sum;
  }
  __syncthreads();
  max = -CUDART_INF_F;
  for (int i = 0; i < kWarps; ++i) max = fmaxf(max, largest[i]);
  sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += sums[i] * expf(largest[i] - max);
  for (int r = threadIdx.x; r < s.rank; r += kThreads) {
    float total = 0;
    for (int i = 0; i < kWarps; ++i) {
      total += context[i * s.rank + r] * expf(largest[i] - max);
    }
    query[r] = total / sum;  // the query is not needed any more
  }
  __syncthreads();
  float* out = args.out + token * args.out_stride + (int64_t)head * s.v;
  for (int v = warp; v < s.v; v += kWarps) {
    float value = 0;
    for (int r = lane; r < s.rank; r += 32) {
      value = fmaf(query[r], WeightAt<kElement>(args.kv_b, first_row + s.nope + v, r), value);
    }
    value = WarpSum(value);
    if (lane == 0) out[v] = value;
  }
}

template <Element kElement, Element kCache>
cudaError_t LaunchAbsorbedAs(const AbsorbedArgs& args, cudaStream_t stream) {
  const int bytes = (int)AbsorbedSharedBytes(args.shape);
  const cudaError_t error = cudaFuncSetAttribute(
      AbsorbedKernel<kElement, kCache>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  const dim3 grid(args.tokens, args.shape.heads);
  AbsorbedKernel<kElement, kCache><<<grid, kThreads, bytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

int64_t AbsorbedSharedBytes(const MlaShape& shape) {
  return (shape.rank + shape.rope + kWarps * (shape.rank + 2)) * (int64_t)sizeof(float);
}

cudaError_t LaunchAbsorbed(const AbsorbedArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  return DispatchElement(args.element, [&](auto element) {
    constexpr Element kElement = decltype(element)::value;
    switch (args.cache_element) {
      case Element::kF32:
        return LaunchAbsorbedAs<kElement, Element::kF32>(args, stream);
      case Element::kBF16:
        return LaunchAbsorbedAs<kElement, Element::kBF16>(args, stream);
      case Element::kF8E4M3:
        return LaunchAbsorbedAs<kElement, Element::kF8E4M3>(args, stream);
      default:
        return cudaErrorInvalidValue;
    }
  });
}

}  // namespace sluice::cuda
