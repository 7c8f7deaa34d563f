#include "kernels/cuda/bf16_copies.h"

#include <cstdint>
#include <utility>

#include "kernels/base/status.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/weight_tables.h"

namespace sluice {
namespace {

bool IsItself(const WeightView& w) {
  return w.dtype == DType::kBF16 && w.row_stride == w.cols &&
         reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
}

size_t CopyBytes(const WeightView& w) { return static_cast<size_t>(w.rows * w.cols) * 2; }

}  // namespace

absl::StatusOr<std::shared_ptr<const void>> Bf16Copies::Keep(const WeightView& w) {
  if (IsItself(w)) return nullptr;
  if (std::shared_ptr<const Copy> kept = Find(w); kept != nullptr) return kept;
  SLUICE_ASSIGN_OR_RETURN(DeviceBuffer memory,
                          AllocateCounted(context_, CopyBytes(w), "kv_b in bf16"));
  SLUICE_RETURN_IF_ERROR(Convert(w, memory.memory.get()));
  auto copy = std::make_shared<const Copy>(Copy{w, std::move(memory)});
  kept_[w.data] = copy;
  return copy;
}

absl::StatusOr<const __nv_bfloat16*> Bf16Copies::Get(const WeightView& w) {
  if (IsItself(w)) return static_cast<const __nv_bfloat16*>(w.data);
  if (const std::shared_ptr<const Copy> kept = Find(w); kept != nullptr) {
    return kept->memory.As<__nv_bfloat16>();
  }
  SLUICE_ASSIGN_OR_RETURN(void* const memory, scratch_.Reserve(CopyBytes(w)));
  SLUICE_RETURN_IF_ERROR(Convert(w, memory));
  return static_cast<const __nv_bfloat16*>(memory);
}

std::shared_ptr<const Bf16Copies::Copy> Bf16Copies::Find(const WeightView& w) const {
  const auto it = kept_.find(w.data);
  if (it == kept_.end()) return nullptr;
  std::shared_ptr<const Copy> copy = it->second.lock();
  return copy != nullptr && SameView(copy->of, w) ? copy : nullptr;
}

absl::Status Bf16Copies::Convert(const WeightView& w, void* to) const {
  return CudaStatus(cuda::LaunchToBf16({.w = ToWeight(w),
                                        .element = ToElement(w.dtype),
                                        .rows = static_cast<int32_t>(w.rows),
                                        .cols = static_cast<int32_t>(w.cols),
                                        .out = static_cast<__nv_bfloat16*>(to)},
                                       context_.stream),
                    "making weights bf16");
}

}  // namespace sluice
