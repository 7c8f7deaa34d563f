// Where the arrays of a step lie: its inputs in one block of memory and its outputs in another,
// laid out in the same way on the host and on the device, so that each crosses over as one copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/tensor_view.h"
#include "services/engine/engine.h"
#include "services/model/model_config.h"

namespace sluice::engine {

// Rows of a step's arrays. Places follow from these alone, so that steps of one shape find
// everything where the last one did.
struct StepShape {
  int64_t tokens = 0;
  int64_t seqs = 0;
  int64_t samples = 0;
};

struct StepInputs {
  TensorView ids, positions, kv_rows, seq_of_token;       // i32 [tokens]
  TensorView page_table;                                  // i32 [seqs, pages of a sequence]
  TensorView sample_rows, sample_positions, sample_seqs;  // i32 [samples]
  TensorView sampling;                                    // SamplingRow [samples], as bytes
  size_t bytes = 0;                                       // of all above
  // Of any length up to what a step may have; copied apart from the rest, as far as used.
  TensorView bias_ids, bias_values, banned_ids;
};

struct StepOutputs {
  TensorView tokens;        // i32 [samples]
  TensorView logprobs;      // f32 [samples]
  TensorView top_ids;       // i32 [samples, top]
  TensorView top_logprobs;  // f32 [samples, top]
  TensorView not_finite;    // u8 [samples]
  size_t bytes = 0;
};

class StepLayout {
 public:
  StepLayout(const model::ModelConfig& config, const EngineOptions& options);

  size_t input_bytes_max() const { return input_bytes_max_; }
  size_t output_bytes_max() const { return output_bytes_max_; }
  StepInputs Inputs(void* block, const StepShape& shape) const;
  StepOutputs Outputs(void* block, int64_t samples) const;

 private:
  int64_t pages_per_seq_;
  int64_t top_;
  int64_t bias_max_;
  int64_t banned_max_;
  size_t main_bytes_max_ = 0;  // of inputs without the lists behind them
  size_t input_bytes_max_ = 0;
  size_t output_bytes_max_ = 0;
};

}  // namespace sluice::engine
