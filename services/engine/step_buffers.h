// The memory of one step in flight: the plan flattened into arrays on the host, their copies on the
// device, and the step's outputs. Sized once for the largest step, so that a step allocates
// nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/engine/engine.h"
#include "services/engine/forward_pass.h"
#include "services/engine/step_plan.h"

namespace sluice::engine {

// An array that the host fills and the device reads (or the other way round).
struct MirroredArray {
  TensorView host;  // points into host_memory
  TensorView device;
  std::vector<std::byte> host_memory;
};

struct StepBuffers {
  static absl::StatusOr<std::unique_ptr<StepBuffers>> Create(Backend* backend,
                                                             const model::ModelConfig& config,
                                                             const EngineOptions& options);

  // Flattens the plan. InvalidArgument, naming chunk and field, when it breaks a limit; then the
  // buffers hold nothing usable.
  absl::Status Fill(const StepPlan& plan, const model::ModelConfig& config,
                    const EngineOptions& options);
  // Queues the copies of everything Fill wrote.
  absl::Status CopyInputs(Backend* backend, StreamId stream);
  // Queues the copies of the outputs.
  absl::Status CopyOutputs(Backend* backend, StreamId stream);
  // After the copies have taken effect.
  void ReadResult(StepResult* result) const;

  struct Reset {
    int32_t slot;
    std::vector<int32_t> prompt, output;
  };

  uint64_t number = 0;
  std::vector<Reset> resets;
  std::vector<ForwardBatch::Prompt> prompts;
  int64_t num_tokens = 0, num_absorbed = 0, num_seqs = 0, num_samples = 0;
  int64_t num_bias = 0, num_banned = 0;
  bool any_penalties = false;

  // Inputs.
  MirroredArray ids, positions, kv_rows, seq_of_token, page_table;
  MirroredArray sample_rows, sample_positions, sample_seqs;
  MirroredArray sampling;  // SamplingRow, as bytes
  MirroredArray bias_ids, bias_values, banned_ids;
  // Outputs.
  MirroredArray tokens, logprobs, top_ids, top_logprobs, not_finite;
  TensorView resolved_ids;

  std::unique_ptr<Workspace> workspace;

 private:
  absl::Status CheckChunk(size_t index, const StepChunk& chunk, const model::ModelConfig& config,
                          const EngineOptions& options);
  void AddTokens(const StepChunk& chunk, int64_t seq);
  void AddSample(const StepChunk& chunk, int64_t seq, int64_t row);

  std::vector<bool> slot_used_;
  std::vector<int64_t> last_row_of_chunk_;
};

}  // namespace sluice::engine
