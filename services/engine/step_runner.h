// Queues steps on a backend: inputs in, the pass over the model, sampling, outputs out.
//
// Where the backend records, Create runs the largest steps once, so that ops have all the memory
// they will need, and records one decode step for each DecodeBucket; Queue replays those.
//
// Threads: one call at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops/backend.h"
#include "services/engine/engine.h"
#include "services/engine/forward_pass.h"
#include "services/engine/slot_resets.h"
#include "services/engine/step_buffers.h"
#include "services/engine/step_layout.h"

namespace sluice::engine {

class StepRunner {
 public:
  // ResourceExhausted, saying for what, when memory does not suffice. `backend` must outlive the
  // object. Leaves the calling thread bound to the backend.
  static absl::StatusOr<std::unique_ptr<StepRunner>> Create(
      const model::ModelConfig& config, std::shared_ptr<const model::ModelWeights> weights,
      Backend* backend, const EngineOptions& options);

  absl::StatusOr<std::unique_ptr<StepBuffers>> MakeBuffers() const;

  // Queues the step and marks step->done. Waits for the backend only where penalties of more slots
  // are reset than SlotResets takes at once, or an observer is told.
  absl::Status Queue(StepBuffers* step, const PassObservers& observers);

  const ForwardPass& forward() const { return *forward_; }
  // Of the device, weights apart.
  size_t memory_bytes() const { return forward_->workspace_bytes() + workspace_.bytes(); }

 private:
  StepRunner(const model::ModelConfig& config, Backend* backend, const EngineOptions& options);
  absl::Status AllocateMemory();
  absl::Status WarmUp();
  absl::Status RecordDecodeSteps();

  ForwardBatch Batch(const StepBuffers& step) const;
  absl::Status Sample(const StepBuffers& step);
  // The pass and sampling.
  absl::Status Compute(const StepBuffers& step, const PassObservers& observers);

  const model::ModelConfig config_;
  Backend* const backend_;
  const EngineOptions options_;
  const StepLayout layout_;
  std::unique_ptr<ForwardPass> forward_;
  Workspace workspace_;
  void* input_block_ = nullptr;  // of the device; steps follow each other on the stream
  void* output_block_ = nullptr;
  TensorView resolved_ids_;
  // By slot, and one more slot for padding.
  TensorView tokens_by_slot_, prompt_mask_, output_counts_;
  std::unique_ptr<SlotResets> resets_;                          // of the last two
  std::map<int64_t, std::unique_ptr<Recording>> decode_steps_;  // by DecodeBucket
};

}  // namespace sluice::engine
