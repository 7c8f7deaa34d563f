// Hopper's instructions for blocks that work in clusters: each other's shared memory and barriers.
// Addresses are those of hopper.cuh.
// Source: PTX ISA, sections "mapa", "barrier.cluster" and "cp.async.bulk.tensor".
#pragma once

#include <cuda.h>
#include <stdint.h>

namespace sluice::cuda {

__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster; what they wrote to each other can be seen then.
__device__ __forceinline__ void ClusterSync() {
  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
}
// The same place in the shared memory of the cluster's block `rank`.
__device__ __forceinline__ uint32_t SharedOfBlock(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// At a barrier of another block (SharedOfBlock). Says that what was read here may be overwritten
// there, and orders what TMA and wgmma do, not ordinary accesses: a release to the whole cluster
// is a fence of all memory, which takes longer than a step.
__device__ __forceinline__ void BarrierArriveAt(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// To and from another block's shared memory (SharedOfBlock), which is there from the cluster's
// first ClusterSync to its last.
__device__ __forceinline__ void StoreAt(uint32_t to, float4 x) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(x.x), "f"(x.y),
               "f"(x.z), "f"(x.w)
               : "memory");
}
__device__ __forceinline__ uint32_t LoadAt(uint32_t from) {
  uint32_t x;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
  return x;
}
// The map's box at (column, row), to the same place in every block that `blocks` has a bit for;
// bytes count towards the barrier at the same place in each.
__device__ __forceinline__ void TmaLoadToBlocks(uint32_t to, const CUtensorMap* map,
                                                uint32_t barrier, int column, int row,
                                                uint16_t blocks, uint64_t hint) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(blocks), "l"(hint)
      : "memory");
}

}  // namespace sluice::cuda
