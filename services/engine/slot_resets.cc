#include "services/engine/slot_resets.h"

#include <algorithm>
#include <utility>

#include "kernels/base/status.h"

namespace sluice::engine {

absl::StatusOr<std::unique_ptr<SlotResets>> SlotResets::Create(Backend* backend,
                                                               const TensorView& prompt_mask,
                                                               const TensorView& output_counts) {
  std::unique_ptr<SlotResets> resets(new SlotResets(backend, prompt_mask, output_counts));
  const int64_t vocab = prompt_mask.dims[1];
  const auto bytes = static_cast<size_t>(vocab) * (sizeof(int32_t) + sizeof(uint8_t));
  for (int64_t i = 0; i < std::min(kAtOnce, prompt_mask.rows()); ++i) {
    Row row;
    SLUICE_ASSIGN_OR_RETURN(row.memory, backend->AllocateHost(bytes, "penalties of a slot"));
    SLUICE_ASSIGN_OR_RETURN(row.copied, backend->MakeEvent());
    resets->rows_.push_back(std::move(row));
  }
  return resets;
}

absl::Status SlotResets::Reset(int32_t slot, absl::Span<const int32_t> prompt,
                               absl::Span<const int32_t> output, StreamId stream) {
  Row& row = rows_[next_];
  next_ = (next_ + 1) % rows_.size();
  SLUICE_RETURN_IF_ERROR(backend_->Wait(*row.copied));

  const auto vocab = static_cast<size_t>(prompt_mask_.dims[1]);
  auto* const counts = row.memory.As<int32_t>();
  auto* const mask = reinterpret_cast<uint8_t*>(counts + vocab);
  std::fill_n(counts, vocab, 0);
  std::fill_n(mask, vocab, uint8_t{0});
  for (const int32_t id : prompt) mask[id] = 1;
  for (const int32_t id : output) ++counts[id];
  SLUICE_RETURN_IF_ERROR(
      backend_->CopyToDevice(prompt_mask_.Row<uint8_t>(slot), mask, vocab, stream));
  SLUICE_RETURN_IF_ERROR(backend_->CopyToDevice(output_counts_.Row<int32_t>(slot), counts,
                                                vocab * sizeof(int32_t), stream));
  return backend_->Mark(row.copied.get(), stream);
}

}  // namespace sluice::engine
