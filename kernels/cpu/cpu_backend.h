// The CPU backend: defines "right" for every op, and is fast enough to use.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/ops/backend.h"
#include "kernels/ops/numerics.h"

namespace sluice {

// Which instructions kernels may use; each level includes those above it.
enum class CpuIsa {
  kGeneric,
  kAvx2,        // AVX2, FMA, F16C
  kAvx512,      // F, BW, DQ, VL
  kAvx512Bf16,  // and BF16, VBMI, GFNI
  kAmx,         // and AMX tiles with bf16
};

// The best level of this machine (the kernel's permission for AMX state included).
CpuIsa DetectCpuIsa();

struct CpuBackendOptions {
  int threads = 0;  // 0: one per core this process may run on
  Numerics numerics = Numerics::kExact;
  CpuIsa isa = DetectCpuIsa();  // lower it to compare; raising it above the machine's is an error
};

// InvalidArgument when options ask for what the machine lacks.
absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuBackendOptions& options);

}  // namespace sluice
