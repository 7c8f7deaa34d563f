// Launches that overlap the end of the kernel before (programmatic dependent launch), for kernels
// so short that starting them is most of what they cost.
//
// A kernel launched by LaunchEarly may start before what was queued before it has ended: it calls
// StartAfterEarlier before it touches memory. From then on everything queued before has taken
// effect: each kernel of a chain waits for the one before it to end, not only to begin.
// Works under graph capture.
#pragma once

#include <cuda_runtime.h>

namespace sluice::cuda {

// Lets the next kernel start, and waits for the earlier ones. By every thread.
__device__ __forceinline__ void StartAfterEarlier() {
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
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
