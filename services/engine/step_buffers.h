// The host's side of one step in flight: the plan flattened into arrays, and the step's outputs.
// Sized once for the largest step, so that a step allocates nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/engine/engine.h"
#include "services/engine/forward_pass.h"
#include "services/engine/step_layout.h"
#include "services/engine/step_plan.h"

namespace sluice::engine {

struct StepBuffers {
  // `pads_decode`: steps in which every sequence goes on by one sampled token are padded to a
  // DecodeBucket.
  static absl::StatusOr<std::unique_ptr<StepBuffers>> Create(Backend* backend,
                                                             const model::ModelConfig& config,
                                                             const EngineOptions& options,
                                                             const StepLayout& layout,
                                                             bool pads_decode);

  // Flattens the plan. InvalidArgument, naming chunk and field, when it breaks a limit; then the
  // buffers hold nothing usable.
  absl::Status Fill(const StepPlan& plan, const model::ModelConfig& config,
                    const EngineOptions& options);
  // As if a plan had only padding: rows that read position 0 of page 0 and leave no trace.
  void FillWithPadding(const StepShape& rows);

  // Queues the copies of everything Fill wrote to a block of the device, and back.
  absl::Status CopyInputs(Backend* backend, void* block, StreamId stream);
  absl::Status CopyOutputs(Backend* backend, const void* block, StreamId stream);
  // After the copies have taken effect.
  void ReadResult(StepResult* result) const;

  struct Reset {
    int32_t slot;
    std::vector<int32_t> prompt, output;
  };

  uint64_t number = 0;
  std::vector<Reset> resets;
  std::vector<ForwardBatch::Prompt> prompts;
  StepShape shape;           // with padding
  int64_t num_absorbed = 0;  // with padding
  int64_t num_samples = 0;   // without
  bool is_decode = false;    // every sequence goes on by one sampled token: shape is a DecodeBucket
  bool is_padded = false;    // some rows are padding
  int64_t num_bias = 0, num_banned = 0;

  StepInputs inputs;                                    // in input_block, of `shape`
  StepOutputs outputs;                                  // in output_block, of `shape`
  DeviceBuffer input_block, output_block, expert_load;  // of the host
  std::unique_ptr<StreamEvent> done;                    // marks the last copy of outputs

 private:
  StepBuffers(const StepLayout& layout, int64_t slots_max, bool pads_decode);
  absl::Status CheckChunk(size_t index, const StepChunk& chunk, const model::ModelConfig& config,
                          const EngineOptions& options);
  void LayOut(const StepShape& rows);
  void AddTokens(const StepChunk& chunk, int64_t seq);
  void AddSample(const StepChunk& chunk, int64_t seq, int64_t row);
  void AddPadding();

  const StepLayout layout_;
  const int64_t slots_max_;
  const bool pads_decode_;
  int64_t num_tokens_ = 0, num_seqs_ = 0;  // filled so far
  std::vector<bool> slot_used_;
  std::vector<int64_t> last_row_of_chunk_;
};

}  // namespace sluice::engine
