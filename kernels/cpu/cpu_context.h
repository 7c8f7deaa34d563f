// What every family of CPU ops is built from, and the factories of the families.
#pragma once

#include <memory>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/kernel_calls.h"

namespace sluice {

// Owned by the backend; outlives the ops made from it.
struct CpuContext {
  ThreadPool& pool;
  CpuIsa isa;
  Numerics numerics;
  std::shared_ptr<KernelCalls> calls = std::make_shared<KernelCalls>();
};

std::unique_ptr<LinearOps> MakeCpuLinearOps(const CpuContext& context);
std::unique_ptr<ElementwiseOps> MakeCpuElementwiseOps(const CpuContext& context);
std::unique_ptr<AttentionOps> MakeCpuAttentionOps(const CpuContext& context);
std::unique_ptr<MoeOps> MakeCpuMoeOps(const CpuContext& context);
std::unique_ptr<SamplingOps> MakeCpuSamplingOps(const CpuContext& context);

}  // namespace sluice
