// What every family of CUDA ops is built from, and the factories of the families.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/memory_ledger.h"
#include "kernels/cuda/device_wait.h"
#include "kernels/ops/backend.h"
#include "kernels/ops/numerics.h"

namespace sluice {

// Owned by the backend; outlives the ops made from it.
struct CudaContext {
  int device = 0;
  cudaStream_t stream = nullptr;
  Numerics numerics = Numerics::kExact;
  int multiprocessors = 0;
  std::string name;                 // of the device, for messages
  cuda::WaitState* wait = nullptr;  // pinned; of all kernels on the stream
  std::shared_ptr<KernelCalls> calls = std::make_shared<KernelCalls>();
  std::shared_ptr<MemoryLedger> ledger = std::make_shared<MemoryLedger>();
};

// Zero-filled (on the stream) device memory that is written down in the ledger as `what`.
// ResourceExhausted, saying what has gone where, when there is no room.
absl::StatusOr<DeviceBuffer> AllocateCounted(const CudaContext& context, size_t bytes,
                                             const std::string& what);

// Zero-filled device memory.
struct CudaFree {
  void operator()(void* memory) const { cudaFree(memory); }
};
using CudaMemory = std::unique_ptr<void, CudaFree>;
absl::StatusOr<CudaMemory> AllocateCuda(size_t bytes);

// Memory that an op keeps for itself from call to call.
class CudaScratch {
 public:
  // At least so many bytes of it, zero-filled when new. When it grows, what there was stays as
  // well: work in flight and recordings name it. So the largest call had better come first.
  absl::StatusOr<void*> Reserve(size_t bytes);

  void* get() const { return memories_.empty() ? nullptr : memories_.back().get(); }
  template <typename T>
  T* As() const {
    return static_cast<T*>(get());
  }

 private:
  std::vector<CudaMemory> memories_;  // the newest is the largest
  size_t bytes_ = 0;
};

// Internal, naming what was tried, unless the call went well; ResourceExhausted when memory is out.
absl::Status CudaStatus(cudaError_t error, absl::string_view what);

std::unique_ptr<LinearOps> MakeCudaLinearOps(const CudaContext& context);
std::unique_ptr<ElementwiseOps> MakeCudaElementwiseOps(const CudaContext& context);
std::unique_ptr<AttentionOps> MakeCudaAttentionOps(const CudaContext& context);
std::unique_ptr<MoeOps> MakeCudaMoeOps(const CudaContext& context);
std::unique_ptr<SamplingOps> MakeCudaSamplingOps(const CudaContext& context);

}  // namespace sluice
