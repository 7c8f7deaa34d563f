// Copies pages of KV and sums what it copies, each byte read once: see kernels/base/page_sum.h.
//
// A page is cut into kPageSlices parts, one block each; the host adds up the parts' sums. Bounded
// by the slower of the two memories: making key words takes a fifth of the issue slots at the speed
// at which one GPU copies to itself.
#include "kernels/base/page_sum.h"
#include "kernels/cuda/launch.h"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // loads in flight of a thread

// Words i and i + 1 of the page, i even.
__device__ void AddPair(const PageKey& key, uint32_t i, uint32_t low, uint32_t high,
                        PageSums* sums) {
  const auto product = [&](uint32_t at) {
    return static_cast<uint64_t>(low + PageKeyWord(key, at)) * (high + PageKeyWord(key, at + 1));
  };
  sums->first += product(i);
  sums->second += product(i + kPageSumShift);
}

// The vectors [begin, end) of 16 bytes.
__device__ void CopyVectors(const PageCopyJob& job, uint64_t begin, uint64_t end, PageSums* sums) {
  const auto* from = static_cast<const uint4*>(job.from);
  auto* to = static_cast<uint4*>(job.to);
  for (uint64_t at = begin + threadIdx.x; at < end; at += kThreads * kUnroll) {
    uint4 words[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (at + u * kThreads < end) words[u] = __ldcs(from + at + u * kThreads);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint64_t vector = at + u * kThreads;
      if (vector >= end) break;
      if (to != nullptr) __stcs(to + vector, words[u]);
      if (!job.sum) continue;
      const auto index = static_cast<uint32_t>(vector * 4);
      AddPair(job.key, index, words[u].x, words[u].y, sums);
      AddPair(job.key, index + 2, words[u].z, words[u].w, sums);
    }
  }
}

// The bytes [begin, end), begin a multiple of 8: whatever is not made of aligned vectors.
__device__ void CopyBytes(const PageCopyJob& job, uint64_t begin, uint64_t end, PageSums* sums) {
  const auto* from = static_cast<const volatile uint8_t*>(job.from);
  auto* to = static_cast<uint8_t*>(job.to);
  for (uint64_t pair = begin + 8 * threadIdx.x; pair < end; pair += 8 * kThreads) {
    uint32_t words[2] = {0, 0};
    for (int byte = 0; byte < 8 && pair + byte < end; ++byte) {
      const uint8_t value = from[pair + byte];
      words[byte / 4] |= static_cast<uint32_t>(value) << (byte % 4 * 8);
      if (to != nullptr) to[pair + byte] = value;
    }
    if (job.sum) AddPair(job.key, static_cast<uint32_t>(pair / 4), words[0], words[1], sums);
  }
}

__device__ uint64_t SumOverBlock(uint64_t value) {
  __shared__ uint64_t parts[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  uint64_t sum = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += parts[warp];
  return sum;
}

__global__ void __launch_bounds__(kThreads) CopyPages(const PageCopyJob* jobs, PageSums* sums) {
  const PageCopyJob job = jobs[blockIdx.y];
  const uint64_t addresses =
      reinterpret_cast<uint64_t>(job.from) | reinterpret_cast<uint64_t>(job.to);
  const uint64_t vectors = addresses % 16 == 0 ? job.bytes / 16 : 0;
  const uint64_t slice = blockIdx.x;
  PageSums own;
  CopyVectors(job, vectors * slice / kPageSlices, vectors * (slice + 1) / kPageSlices, &own);
  if (slice + 1 == kPageSlices) CopyBytes(job, vectors * 16, job.bytes, &own);
  const PageSums all{SumOverBlock(own.first), SumOverBlock(own.second)};
  if (threadIdx.x == 0) sums[blockIdx.y * kPageSlices + slice] = all;
}

}  // namespace

cudaError_t LaunchPageCopies(const PageCopyArgs& args, cudaStream_t stream) {
  if (args.count == 0) return cudaSuccess;
  CopyPages<<<dim3(kPageSlices, args.count), kThreads, 0, stream>>>(args.jobs, args.sums);
  return cudaGetLastError();
}

}  // namespace sluice::cuda
