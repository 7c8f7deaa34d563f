#include "kernels/cuda/bf16_copies.h"

#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/weight_tables.h"

namespace sluice {

absl::StatusOr<const __nv_bfloat16*> Bf16Copies::Get(const WeightView& w) {
  if (w.dtype == DType::kBF16 && w.row_stride == w.cols &&
      reinterpret_cast<uintptr_t>(w.data) % 16 == 0) {
    return static_cast<const __nv_bfloat16*>(w.data);
  }
  Copy& copy = copies_[w.data];
  if (copy.memory.get() != nullptr && SameView(copy.of, w)) {
    return copy.memory.As<__nv_bfloat16>();
  }
  SLUICE_ASSIGN_OR_RETURN(void* const memory,
                          copy.memory.Reserve(static_cast<size_t>(w.rows * w.cols) * 2));
  SLUICE_RETURN_IF_ERROR(CudaStatus(cuda::LaunchToBf16({.w = ToWeight(w),
                                                        .element = ToElement(w.dtype),
                                                        .rows = static_cast<int32_t>(w.rows),
                                                        .cols = static_cast<int32_t>(w.cols),
                                                        .out = static_cast<__nv_bfloat16*>(memory)},
                                                       context_.stream),
                                    "making weights bf16"));
  copy.of = w;
  return static_cast<const __nv_bfloat16*>(memory);
}

}  // namespace sluice
