#include "services/engine/step_layout.h"

#include <algorithm>
#include <initializer_list>

#include "kernels/ops/attention.h"
#include "kernels/ops/sampling_row.h"
#include "services/engine/sampling_params.h"

namespace sluice::engine {
namespace {

// Hands out aligned pieces of a block, one after the other; of none, to learn their bytes.
class Carver {
 public:
  Carver(void* block, size_t used) : block_(static_cast<std::byte*>(block)), used_(used) {}

  TensorView Take(DType dtype, std::initializer_list<int64_t> shape) {
    constexpr size_t kAlignment = 64;
    used_ = (used_ + kAlignment - 1) / kAlignment * kAlignment;
    TensorView view(block_ == nullptr ? nullptr : block_ + used_, dtype, shape);
    used_ += static_cast<size_t>(view.rows() * view.row_elements()) * DTypeBytes(dtype);
    return view;
  }
  size_t used() const { return used_; }

 private:
  std::byte* block_;
  size_t used_;
};

}  // namespace

StepLayout::StepLayout(const model::ModelConfig& config, const EngineOptions& options)
    : pages_per_seq_(PagesFor(options.positions_max)),
      top_(std::min<int64_t>(kLogprobsMax, config.vocab_size)),
      bias_max_(options.slots_max * static_cast<int64_t>(kLogitBiasMax)),
      banned_max_(options.slots_max * static_cast<int64_t>(kStopTokensMax)) {
  const StepShape largest{options.step_tokens_max, options.slots_max, options.slots_max};
  main_bytes_max_ = Inputs(nullptr, largest).bytes;
  Carver lists(nullptr, main_bytes_max_);
  lists.Take(DType::kI32, {bias_max_});
  lists.Take(DType::kF32, {bias_max_});
  lists.Take(DType::kI32, {banned_max_});
  input_bytes_max_ = lists.used();
  output_bytes_max_ = Outputs(nullptr, options.slots_max).bytes;
}

StepInputs StepLayout::Inputs(void* block, const StepShape& shape) const {
  Carver carver(block, 0);
  StepInputs inputs;
  for (TensorView* view : {&inputs.ids, &inputs.positions, &inputs.kv_rows, &inputs.seq_of_token}) {
    *view = carver.Take(DType::kI32, {shape.tokens});
  }
  for (TensorView* view : {&inputs.sample_rows, &inputs.sample_positions, &inputs.sample_seqs}) {
    *view = carver.Take(DType::kI32, {shape.samples});
  }
  inputs.sampling =
      carver.Take(DType::kU8, {shape.samples, static_cast<int64_t>(sizeof(SamplingRow))});
  inputs.page_table = carver.Take(DType::kI32, {shape.seqs, pages_per_seq_});
  inputs.bytes = carver.used();
  Carver lists(block, main_bytes_max_);
  inputs.bias_ids = lists.Take(DType::kI32, {bias_max_});
  inputs.bias_values = lists.Take(DType::kF32, {bias_max_});
  inputs.banned_ids = lists.Take(DType::kI32, {banned_max_});
  return inputs;
}

StepOutputs StepLayout::Outputs(void* block, int64_t samples) const {
  Carver carver(block, 0);
  StepOutputs outputs;
  outputs.tokens = carver.Take(DType::kI32, {samples});
  outputs.logprobs = carver.Take(DType::kF32, {samples});
  outputs.top_ids = carver.Take(DType::kI32, {samples, top_});
  outputs.top_logprobs = carver.Take(DType::kF32, {samples, top_});
  outputs.not_finite = carver.Take(DType::kU8, {samples});
  outputs.bytes = carver.used();
  return outputs;
}

}  // namespace sluice::engine
