// What penalties know of a slot, which tokens its prompt has and how often each was put out, set
// anew when a request takes the slot.
//
// The rows are made in pinned host memory and copied in stream order, so that the step before may
// still run, and the step queued next follows it without a gap.
//
// Threads: one call at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/base/tensor_view.h"
#include "kernels/ops/backend.h"

namespace sluice::engine {

class SlotResets {
 public:
  // Slots reset without waiting, in all steps that are under way together.
  static constexpr int64_t kAtOnce = 8;

  // prompt_mask: u8 [slots, vocab]; output_counts: i32 [slots, vocab]. `backend` and both must
  // outlive the object. ResourceExhausted when there is no pinned memory.
  static absl::StatusOr<std::unique_ptr<SlotResets>> Create(Backend* backend,
                                                            const TensorView& prompt_mask,
                                                            const TensorView& output_counts);

  // Ids are below vocab. Waits for the stream when kAtOnce resets before this one have not been
  // copied yet.
  absl::Status Reset(int32_t slot, absl::Span<const int32_t> prompt,
                     absl::Span<const int32_t> output, StreamId stream);

 private:
  struct Row {
    DeviceBuffer memory;                  // counts, then mask
    std::unique_ptr<StreamEvent> copied;  // marks nothing before its first use
  };

  SlotResets(Backend* backend, const TensorView& prompt_mask, const TensorView& output_counts)
      : backend_(backend), prompt_mask_(prompt_mask), output_counts_(output_counts) {}

  Backend* const backend_;
  const TensorView prompt_mask_, output_counts_;
  std::vector<Row> rows_;
  size_t next_ = 0;
};

}  // namespace sluice::engine
