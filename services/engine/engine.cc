#include "services/engine/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/engine/step_buffers.h"

namespace sluice::engine {
namespace {

// What the standard library's clocks can add to now without overflow.
constexpr absl::Duration kWaitMax = absl::Hours(24 * 365);

absl::Status CheckOption(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("engine option ", name, " is ", value, ", allowed is ", low, " to ", high));
}

absl::Status CheckOptions(const EngineOptions& options) {
  SLUICE_RETURN_IF_ERROR(CheckOption("slots_max", options.slots_max, 1, 4096));
  SLUICE_RETURN_IF_ERROR(
      CheckOption("step_tokens_max", options.step_tokens_max, options.slots_max, 1 << 20));
  SLUICE_RETURN_IF_ERROR(CheckOption("positions_max", options.positions_max, 1, 1 << 24));
  // Rows of the cache are numbered with 32 bits.
  SLUICE_RETURN_IF_ERROR(CheckOption("kv_pages", options.kv_pages, 1, INT32_MAX / kPageTokens));
  if (options.kv_dtype != DType::kF32 && options.kv_dtype != DType::kBF16) {
    return absl::InvalidArgumentError(absl::StrCat(
        "engine option kv_dtype is ", DTypeName(options.kv_dtype), ", allowed are F32 and BF16"));
  }
  return absl::OkStatus();
}

}  // namespace

Engine::Engine(const model::ModelConfig& config, Backend* backend, const EngineOptions& options)
    : config_(config), backend_(backend), options_(options) {}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(
    const model::ModelConfig& config, std::shared_ptr<const model::ModelWeights> weights,
    Backend* backend, const EngineOptions& options_in) {
  EngineOptions options = options_in;
  if (options.positions_max == 0) options.positions_max = config.max_position_embeddings;
  SLUICE_RETURN_IF_ERROR(CheckOptions(options));
  std::unique_ptr<Engine> engine(new Engine(config, backend, options));
  SLUICE_ASSIGN_OR_RETURN(engine->forward_,
                          ForwardPass::Create(config, std::move(weights), backend,
                                              {.tokens_max = options.step_tokens_max,
                                               .samples_max = options.slots_max,
                                               .positions_max = options.positions_max,
                                               .num_pages = options.kv_pages,
                                               .kv_dtype = options.kv_dtype}));
  for (auto& buffers : engine->buffers_) {
    SLUICE_ASSIGN_OR_RETURN(buffers, StepBuffers::Create(backend, config, options));
  }
  engine->slot_state_ = std::make_unique<Workspace>(backend);
  Workspace* state = engine->slot_state_.get();
  const int64_t slots = options.slots_max;
  SLUICE_ASSIGN_OR_RETURN(engine->tokens_by_slot_,
                          state->Tensor("tokens by slot", DType::kI32, {slots}));
  SLUICE_ASSIGN_OR_RETURN(engine->prompt_mask_, state->Tensor("prompt tokens by slot", DType::kU8,
                                                              {slots, config.vocab_size}));
  SLUICE_ASSIGN_OR_RETURN(
      engine->output_counts_,
      state->Tensor("output counts by slot", DType::kI32, {slots, config.vocab_size}));
  const TensorView& load = engine->forward_->expert_load();
  for (std::vector<int64_t>* counts :
       {&engine->copied_load_, &engine->expert_load_, &engine->taken_load_}) {
    counts->resize(load.data == nullptr ? 0 : load.rows() * load.row_elements());
  }
  engine->thread_ = std::thread([raw = engine.get()] { raw->RunSteps(); });
  return engine;
}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

absl::StatusOr<StepHandle> Engine::Submit(const StepPlan& plan) {
  {
    const std::lock_guard lock(mutex_);
    SLUICE_RETURN_IF_ERROR(failure_);
    if (submitted_ - read_ >= kStepsInFlightMax) {
      return absl::FailedPreconditionError(
          absl::StrCat("step ", plan.number, " submitted while ", kStepsInFlightMax,
                       " steps are in flight; wait for step ", read_ + 1, " first"));
    }
    if (plan.number != submitted_ + 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("step plan has number ", plan.number, ", the next is ", submitted_ + 1));
    }
  }
  SLUICE_RETURN_IF_ERROR(buffers_[plan.number % kStepsInFlightMax]->Fill(plan, config_, options_));
  {
    const std::lock_guard lock(mutex_);
    submitted_ = plan.number;
  }
  changed_.notify_all();
  return StepHandle{plan.number};
}

absl::Status Engine::Wait(StepHandle handle, absl::Duration timeout, StepResult* result) {
  {
    std::unique_lock lock(mutex_);
    if (handle.number != read_ + 1 || handle.number > submitted_) {
      return absl::InvalidArgumentError(absl::StrCat("waiting for step ", handle.number,
                                                     ", but the next to read is ", read_ + 1,
                                                     " of ", submitted_, " submitted"));
    }
    const auto done = [&] { return completed_ >= handle.number || !failure_.ok(); };
    if (!changed_.wait_for(lock, absl::ToChronoNanoseconds(std::min(timeout, kWaitMax)), done)) {
      return absl::DeadlineExceededError(absl::StrCat("step ", handle.number, " still runs after ",
                                                      absl::FormatDuration(timeout)));
    }
    if (completed_ < handle.number) return failure_;
  }
  buffers_[handle.number % kStepsInFlightMax]->ReadResult(result);
  const std::lock_guard lock(mutex_);
  read_ = handle.number;
  return absl::OkStatus();
}

void Engine::SetLayerListener(LayerListener* listener) { listener_.Set(listener); }

void Engine::SetTap(StepTap* tap) { tap_ = tap; }

KvCacheView Engine::kv_cache() const {
  KvCacheView view{
      .pages = options_.kv_pages,
      .page_tokens = kPageTokens,
      .row_bytes = config_.kv_dim() * static_cast<int64_t>(DTypeBytes(options_.kv_dtype)),
      .handle = forward_->kv_memory().handle};
  for (const TensorView& layer : forward_->kv_cache()) {
    view.layers.push_back(static_cast<std::byte*>(layer.data));
  }
  return view;
}

void Engine::TakeExpertLoad(std::vector<int64_t>* tokens) {
  const std::lock_guard lock(mutex_);
  tokens->resize(expert_load_.size());
  for (size_t i = 0; i < tokens->size(); ++i) (*tokens)[i] = expert_load_[i] - taken_load_[i];
  taken_load_ = expert_load_;
}

size_t Engine::memory_bytes() const {
  size_t bytes = forward_->workspace_bytes() + slot_state_->bytes();
  for (const auto& buffers : buffers_) bytes += buffers->workspace->bytes();
  return bytes;
}

void Engine::RunSteps() {
  const absl::Status bound = backend_->BindThread();
  while (true) {
    uint64_t number = 0;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || submitted_ > completed_; });
      if (submitted_ == completed_) return;  // stopping, and nothing left to run
      number = completed_ + 1;
    }
    const absl::Status status =
        bound.ok() ? RunStep(buffers_[number % kStepsInFlightMax].get()) : bound;
    {
      const std::lock_guard lock(mutex_);
      completed_ = status.ok() ? number : completed_;
      failure_ = status;
      if (status.ok()) expert_load_.swap(copied_load_);
    }
    changed_.notify_all();
    if (!status.ok()) return;
  }
}

absl::Status Engine::RunStep(StepBuffers* step) {
  const StreamId stream;
  for (const StepBuffers::Reset& reset : step->resets) {
    std::vector<uint8_t> mask(config_.vocab_size, 0);
    std::vector<int32_t> counts(config_.vocab_size, 0);
    for (const int32_t id : reset.prompt) mask[id] = 1;
    for (const int32_t id : reset.output) ++counts[id];
    SLUICE_RETURN_IF_ERROR(backend_->CopyToDevice(prompt_mask_.Row<uint8_t>(reset.slot),
                                                  mask.data(), mask.size(), stream));
    SLUICE_RETURN_IF_ERROR(backend_->CopyToDevice(output_counts_.Row<int32_t>(reset.slot),
                                                  counts.data(), counts.size() * sizeof(int32_t),
                                                  stream));
    SLUICE_RETURN_IF_ERROR(backend_->Sync(stream));
  }
  SLUICE_RETURN_IF_ERROR(step->CopyInputs(backend_, stream));
  const int64_t tokens = step->num_tokens;
  const int64_t samples = step->num_samples;
  SLUICE_RETURN_IF_ERROR(forward_->Run(
      {.step = step->number,
       .num_tokens = tokens,
       .num_absorbed = step->num_absorbed,
       .prompts = step->prompts,
       .num_samples = samples,
       .ids = step->ids.device.Prefix(tokens),
       .tokens_by_slot = tokens_by_slot_,
       .resolved_ids = step->resolved_ids.Prefix(tokens),
       .positions = step->positions.device.Prefix(tokens),
       .kv_rows = step->kv_rows.device.Prefix(tokens),
       .seq_of_token = step->seq_of_token.device.Prefix(tokens),
       .page_table = step->page_table.device.Prefix(step->num_seqs),
       .sample_rows = step->sample_rows.device.Prefix(samples),
       .sample_positions = step->sample_positions.device.Prefix(samples),
       .sample_seqs = step->sample_seqs.device.Prefix(samples)},
      stream, {.listener = listener_.has_listener() ? &listener_ : nullptr, .tap = tap_}));
  if (samples > 0) {
    SampleParams params{
        .logits = forward_->logits().Prefix(samples),
        .rows = step->sampling.device.As<const SamplingRow>(),
        .bias_ids = step->bias_ids.device.Prefix(step->num_bias),
        .bias_values = step->bias_values.device.Prefix(step->num_bias),
        .banned_ids = step->banned_ids.device.Prefix(step->num_banned),
        .tokens = step->tokens.device.Prefix(samples),
        .tokens_by_slot = tokens_by_slot_,
        .logprobs = step->logprobs.device.Prefix(samples),
        .top_ids = step->top_ids.device.Prefix(samples),
        .top_logprobs = step->top_logprobs.device.Prefix(samples),
        .not_finite = step->not_finite.device.Prefix(samples),
    };
    if (step->any_penalties) {
      params.prompt_mask = prompt_mask_;
      params.output_counts = output_counts_;
    }
    SLUICE_RETURN_IF_ERROR(backend_->sampling().Sample(params, stream));
  }
  SLUICE_RETURN_IF_ERROR(step->CopyOutputs(backend_, stream));
  if (!copied_load_.empty()) {
    SLUICE_RETURN_IF_ERROR(backend_->CopyToHost(copied_load_.data(), forward_->expert_load().data,
                                                copied_load_.size() * sizeof(int64_t), stream));
  }
  return backend_->Sync(stream);
}

}  // namespace sluice::engine
