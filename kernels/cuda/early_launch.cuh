// Launches that overlap the end of the kernel before (programmatic dependent launch): for kernels
// so short that starting them is most of what they cost, and for those that have something to do
// that depends on nobody. All launches of that kind are LaunchEarly's, and all waits are these.
//
// A kernel launched by LaunchEarly may start before what was queued before it has ended: it waits
// before it touches memory that earlier kernels write or read. From then on everything queued
// before has taken effect: each kernel of a chain waits for the one before it to end, not only to
// begin. Works under graph capture.
//
// A kernel's blocks start only when all blocks of the kernel before have started: so no kernel
// keeps room from blocks of an earlier one of its stream.
// Source: PTX ISA, section "griddepcontrol".
#pragma once

#include <cuda_runtime.h>

namespace sluice::cuda {

// Waits until all kernels queued before have ended and their writes can be seen. Returns at once
// in a kernel that was launched the ordinary way.
__device__ __forceinline__ void WaitForEarlierKernels() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
// Lets the next kernel start, if it was launched so, once a thread of every block has said this or
// the block has ended. What it may touch before its own wait is for the two to agree.
__device__ __forceinline__ void LetNextKernelStart() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
// Both, for kernels that neither do anything before, nor are followed by one that does. By every
// thread.
__device__ __forceinline__ void StartAfterEarlier() {
  LetNextKernelStart();
  WaitForEarlierKernels();
}

struct LaunchShape {
  dim3 grid;
  int threads;
  size_t shared_bytes = 0;
  int cluster = 1;  // blocks along x
};

template <typename... Parameters, typename... Arguments>
cudaError_t LaunchEarly(void (*kernel)(Parameters...), const LaunchShape& shape,
                        cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace sluice::cuda
