// Instructions for blocks that work in clusters, and for kernels that start before the one in front
// of them has ended (programmatic dependent launch).
// Source: PTX ISA, sections "mapa", "barrier.cluster", "cp.async.bulk.tensor" and "griddepcontrol".
#pragma once

#include <cuda.h>
#include <stdint.h>

namespace sluice::cuda {

// --- Clusters ---

__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster.
__device__ __forceinline__ void ClusterBarrier() {
  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
}
// At the same place in the shared memory of the cluster's block `rank`. Says that what was read
// here may be overwritten there, no more: to make writes visible to the other block it would have
// to wait for them, which takes longer than a step.
__device__ __forceinline__ void BarrierArriveAt(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; "
      "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
// To the same place in the shared memory of the cluster's block `rank`; a ClusterBarrier makes it
// visible there.
__device__ __forceinline__ void StoreAt(uint32_t to, uint32_t rank, float4 x) {
  asm volatile(
      "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; "
      "st.shared::cluster.v4.f32 [there], {%2, %3, %4, %5}; }" ::"r"(to),
      "r"(rank), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
      : "memory");
}
// The map's box at (column, row), to the same place in every block of `mask`; bytes count towards
// the barrier at the same place in each.
__device__ __forceinline__ void TmaMulticast(uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                             int column, int row, uint16_t mask, uint64_t hint) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(mask), "l"(hint)
      : "memory");
}

// `bytes` in a row, a multiple of 16 as both addresses; they count towards `barrier`.
__device__ __forceinline__ void BulkLoad(uint32_t to, const void* from, uint32_t bytes,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// --- Programmatic dependent launch ---

// Waits until all kernels queued before have ended and their writes can be seen. Returns at once
// in a kernel that was launched the ordinary way.
__device__ __forceinline__ void WaitForEarlierKernels() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
// Lets the next kernel start, if it was launched so, once all blocks have said this or ended. What
// it may touch before its own wait is for the two to agree.
__device__ __forceinline__ void LetNextKernelStart() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace sluice::cuda
