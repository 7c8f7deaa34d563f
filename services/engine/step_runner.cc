#include "services/engine/step_runner.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/base/status.h"
#include "services/engine/decode_bucket.h"

namespace sluice::engine {
namespace {

constexpr StreamId kStream;

// Positions before a prompt's chunk in the warm-up: enough for ops that work through them in pieces
// to have met their largest piece.
constexpr int64_t kWarmUpPrefixMax = 16384;

}  // namespace

StepRunner::StepRunner(const model::ModelConfig& config, Backend* backend,
                       const EngineOptions& options)
    : config_(config),
      backend_(backend),
      options_(options),
      layout_(config, options),
      workspace_(backend) {}

absl::StatusOr<std::unique_ptr<StepRunner>> StepRunner::Create(
    const model::ModelConfig& config, std::shared_ptr<const model::ModelWeights> weights,
    Backend* backend, const EngineOptions& options) {
  SLUICE_RETURN_IF_ERROR(backend->BindThread());
  std::unique_ptr<StepRunner> runner(new StepRunner(config, backend, options));
  SLUICE_ASSIGN_OR_RETURN(runner->forward_,
                          ForwardPass::Create(config, std::move(weights), backend,
                                              {.tokens_max = options.step_tokens_max,
                                               .samples_max = options.slots_max,
                                               .positions_max = options.positions_max,
                                               .num_pages = options.kv_pages,
                                               .kv_dtype = options.kv_dtype,
                                               .even_experts = options.even_experts}));
  SLUICE_RETURN_IF_ERROR(runner->AllocateMemory());
  if (backend->records()) {
    SLUICE_RETURN_IF_ERROR(runner->WarmUp());
    SLUICE_RETURN_IF_ERROR(runner->RecordDecodeSteps());
  }
  return runner;
}

absl::Status StepRunner::AllocateMemory() {
  const int64_t slots = options_.slots_max;
  SLUICE_ASSIGN_OR_RETURN(input_block_, workspace_.Bytes("step inputs", layout_.input_bytes_max()));
  SLUICE_ASSIGN_OR_RETURN(output_block_,
                          workspace_.Bytes("step outputs", layout_.output_bytes_max()));
  SLUICE_ASSIGN_OR_RETURN(
      resolved_ids_, workspace_.Tensor("resolved ids", DType::kI32, {options_.step_tokens_max}));
  SLUICE_ASSIGN_OR_RETURN(tokens_by_slot_,
                          workspace_.Tensor("tokens by slot", DType::kI32, {slots + 1}));
  SLUICE_ASSIGN_OR_RETURN(prompt_mask_, workspace_.Tensor("prompt tokens by slot", DType::kU8,
                                                          {slots + 1, config_.vocab_size}));
  SLUICE_ASSIGN_OR_RETURN(output_counts_, workspace_.Tensor("output counts by slot", DType::kI32,
                                                            {slots + 1, config_.vocab_size}));
  SLUICE_ASSIGN_OR_RETURN(resets_, SlotResets::Create(backend_, prompt_mask_, output_counts_));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StepBuffers>> StepRunner::MakeBuffers() const {
  return StepBuffers::Create(backend_, config_, options_, layout_, backend_->records());
}

absl::Status StepRunner::WarmUp() {
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<StepBuffers> step, MakeBuffers());
  const int64_t slots = options_.slots_max;
  // Sequences as long as may be, until the step has no room for more tokens.
  const int64_t tokens = options_.step_tokens_max;
  const int64_t each = std::min(tokens, options_.positions_max);
  step->FillWithPadding({tokens, std::min(slots, (tokens + each - 1) / each), 0});
  if (!options_.absorb_prompts) {
    step->num_absorbed = 0;
    for (int64_t begin = 0; begin < tokens; begin += each) {
      const int64_t count = std::min(each, tokens - begin);
      step->prompts.push_back(
          {.token_begin = begin,
           .num_tokens = count,
           .first_position = std::min(options_.positions_max - count, kWarmUpPrefixMax)});
    }
  }
  SLUICE_RETURN_IF_ERROR(step->CopyInputs(backend_, input_block_, kStream));
  SLUICE_RETURN_IF_ERROR(forward_->WarmUp(Batch(*step), kStream));
  SLUICE_RETURN_IF_ERROR(backend_->Sync(kStream));

  // Chunks too short for prompt attention, in every slot.
  const int64_t absorbed = std::min(tokens, slots * (kPromptChunkMin - 1));
  step->FillWithPadding({absorbed, std::min(slots, absorbed), 0});
  SLUICE_RETURN_IF_ERROR(step->CopyInputs(backend_, input_block_, kStream));
  SLUICE_RETURN_IF_ERROR(forward_->WarmUp(Batch(*step), kStream));
  SLUICE_RETURN_IF_ERROR(backend_->Sync(kStream));

  // Every size for real: fewer tokens may take other kernels, with scratch memory of their own.
  std::vector<int64_t> buckets = DecodeBuckets(slots);
  std::reverse(buckets.begin(), buckets.end());
  for (const int64_t bucket : buckets) {
    step->FillWithPadding({bucket, bucket, bucket});
    SLUICE_RETURN_IF_ERROR(step->CopyInputs(backend_, input_block_, kStream));
    SLUICE_RETURN_IF_ERROR(Compute(*step, {}));
    SLUICE_RETURN_IF_ERROR(backend_->Sync(kStream));
  }
  return absl::OkStatus();
}

absl::Status StepRunner::RecordDecodeSteps() {
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<StepBuffers> step, MakeBuffers());
  for (const int64_t bucket : DecodeBuckets(options_.slots_max)) {
    step->FillWithPadding({bucket, bucket, bucket});
    SLUICE_ASSIGN_OR_RETURN(decode_steps_[bucket],
                            backend_->Record([&] { return Compute(*step, {}); }, kStream));
  }
  return absl::OkStatus();
}

absl::Status StepRunner::Queue(StepBuffers* step, const PassObservers& observers) {
  for (const StepBuffers::Reset& reset : step->resets) {
    SLUICE_RETURN_IF_ERROR(resets_->Reset(reset.slot, reset.prompt, reset.output, kStream));
  }
  SLUICE_RETURN_IF_ERROR(step->CopyInputs(backend_, input_block_, kStream));
  const bool observed = observers.listener != nullptr || observers.tap != nullptr;
  SLUICE_RETURN_IF_ERROR(step->is_decode && !observed
                             ? backend_->Replay(*decode_steps_.at(step->shape.tokens), kStream)
                             : Compute(*step, observers));
  SLUICE_RETURN_IF_ERROR(step->CopyOutputs(backend_, output_block_, kStream));
  if (const TensorView& load = forward_->expert_load(); load.data != nullptr) {
    SLUICE_RETURN_IF_ERROR(backend_->CopyToHost(step->expert_load.memory.get(), load.data,
                                                step->expert_load.bytes, kStream));
  }
  return backend_->Mark(step->done.get(), kStream);
}

ForwardBatch StepRunner::Batch(const StepBuffers& step) const {
  const StepInputs inputs = layout_.Inputs(input_block_, step.shape);
  return {.step = step.number,
          .num_tokens = step.shape.tokens,
          .num_absorbed = step.num_absorbed,
          .prompts = step.prompts,
          .num_samples = step.shape.samples,
          .is_padded = step.is_padded,
          .ids = inputs.ids,
          .tokens_by_slot = tokens_by_slot_,
          .resolved_ids = resolved_ids_.Prefix(step.shape.tokens),
          .positions = inputs.positions,
          .kv_rows = inputs.kv_rows,
          .seq_of_token = inputs.seq_of_token,
          .page_table = inputs.page_table,
          .sample_rows = inputs.sample_rows,
          .sample_positions = inputs.sample_positions,
          .sample_seqs = inputs.sample_seqs};
}

absl::Status StepRunner::Sample(const StepBuffers& step) {
  if (step.shape.samples == 0) return absl::OkStatus();
  const StepInputs inputs = layout_.Inputs(input_block_, step.shape);
  const StepOutputs outputs = layout_.Outputs(output_block_, step.shape.samples);
  return backend_->sampling().Sample({.logits = forward_->logits().Prefix(step.shape.samples),
                                      .rows = inputs.sampling.As<const SamplingRow>(),
                                      .bias_ids = inputs.bias_ids,
                                      .bias_values = inputs.bias_values,
                                      .banned_ids = inputs.banned_ids,
                                      .prompt_mask = prompt_mask_,
                                      .output_counts = output_counts_,
                                      .tokens = outputs.tokens,
                                      .tokens_by_slot = tokens_by_slot_,
                                      .logprobs = outputs.logprobs,
                                      .top_ids = outputs.top_ids,
                                      .top_logprobs = outputs.top_logprobs,
                                      .not_finite = outputs.not_finite},
                                     kStream);
}

absl::Status StepRunner::Compute(const StepBuffers& step, const PassObservers& observers) {
  SLUICE_RETURN_IF_ERROR(forward_->Run(Batch(step), kStream, observers));
  return Sample(step);
}

}  // namespace sluice::engine
