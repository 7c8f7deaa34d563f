#include "services/engine/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/memory_ledger.h"
#include "kernels/base/status.h"
#include "services/engine/step_buffers.h"
#include "services/engine/step_runner.h"

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
  if (options.kv_dtype != DType::kF32 && options.kv_dtype != DType::kBF16 &&
      options.kv_dtype != DType::kF8E4M3) {
    return absl::InvalidArgumentError(absl::StrCat("engine option kv_dtype is ",
                                                   DTypeName(options.kv_dtype),
                                                   ", allowed are F32, BF16 and F8_E4M3"));
  }
  return absl::OkStatus();
}

// What was asked for beside the device's word that it has no room for it. Options have the names
// that they have in the cluster file.
absl::Status TooLarge(const absl::Status& status, const model::ModelConfig& config,
                      const EngineOptions& options) {
  if (!absl::IsResourceExhausted(status)) return status;
  const int64_t page_bytes =
      config.num_hidden_layers * kPageTokens *
      KvRowBytes(config.kv_lora_rank, config.qk_rope_head_dim, options.kv_dtype);
  return absl::ResourceExhaustedError(absl::StrCat(
      status.message(), ". KV is ", MemoryString(options.kv_pages * page_bytes),
      " in all (kv_pages ", options.kv_pages, " of ", MemoryString(page_bytes),
      "), activations and kernels' scratch grow with step_tokens, ", options.step_tokens_max,
      ", and slots, ", options.slots_max, ": lower one of them, or take a smaller model"));
}

absl::Status OfStep(const absl::Status& status, uint64_t number) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("step ", number, ": ", status.message()));
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
  auto runner = StepRunner::Create(config, std::move(weights), backend, options);
  if (!runner.ok()) return TooLarge(runner.status(), config, options);
  engine->runner_ = *std::move(runner);
  for (auto& buffers : engine->buffers_) {
    SLUICE_ASSIGN_OR_RETURN(buffers, engine->runner_->MakeBuffers());
  }
  const size_t counters = engine->buffers_[0]->expert_load.bytes / sizeof(int64_t);
  engine->expert_load_.resize(counters);
  engine->taken_load_.resize(counters);
  engine->queuer_ = std::thread([raw = engine.get()] { raw->QueueSteps(); });
  engine->awaiter_ = std::thread([raw = engine.get()] { raw->AwaitSteps(); });
  return engine;
}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (queuer_.joinable()) queuer_.join();
  if (awaiter_.joinable()) awaiter_.join();
  // What a step that failed had queued may still run, on memory that goes now.
  if (!failure_.ok()) backend_->Sync(StreamId{}).IgnoreError();
}

void Engine::Abandon() { backend_->StopWaiting(); }

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
      .row_bytes = KvRowBytes(config_.kv_lora_rank, config_.qk_rope_head_dim, options_.kv_dtype),
      .handle = runner_->forward().kv_memory().handle,
      .why_no_handle = runner_->forward().kv_memory().why_no_handle};
  for (const TensorView& layer : runner_->forward().kv_cache()) {
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

absl::Duration Engine::step_limit() const {
  if (backend_->reads_host_memory()) return absl::Minutes(30);
  // The fast kernels of attention read bf16; the general one takes its time.
  return options_.kv_dtype == DType::kBF16 ? absl::Minutes(1) : absl::Minutes(10);
}

size_t Engine::memory_bytes() const { return runner_->memory_bytes(); }

void Engine::QueueSteps() {
  const absl::Status bound = backend_->BindThread();
  while (true) {
    uint64_t number = 0;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || submitted_ > queued_ || !failure_.ok(); });
      if (submitted_ == queued_ || !failure_.ok()) return;  // stopping, and nothing left to queue
      number = queued_ + 1;
    }
    StepBuffers* const step = buffers_[number % kStepsInFlightMax].get();
    const PassObservers observers{.listener = listener_.has_listener() ? &listener_ : nullptr,
                                  .tap = tap_};
    const absl::Status status =
        OfStep(bound.ok() ? runner_->Queue(step, observers) : bound, number);
    {
      const std::lock_guard lock(mutex_);
      if (status.ok()) queued_ = number;
      if (failure_.ok()) failure_ = status;
    }
    changed_.notify_all();
  }
}

void Engine::AwaitSteps() {
  const absl::Status bound = backend_->BindThread();
  while (true) {
    uint64_t number = 0;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] {
        return queued_ > completed_ || !failure_.ok() || (stopping_ && submitted_ == completed_);
      });
      if (queued_ == completed_) return;
      number = completed_ + 1;
    }
    StepBuffers* const step = buffers_[number % kStepsInFlightMax].get();
    const absl::Status status = OfStep(bound.ok() ? backend_->Wait(*step->done) : bound, number);
    {
      const std::lock_guard lock(mutex_);
      if (status.ok()) {
        completed_ = number;
        const int64_t* load = step->expert_load.As<int64_t>();
        expert_load_.assign(load, load + expert_load_.size());
      } else if (failure_.ok()) {
        failure_ = status;
      }
    }
    changed_.notify_all();
    if (!status.ok()) return;
  }
}

}  // namespace sluice::engine
