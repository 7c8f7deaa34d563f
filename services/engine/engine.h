// One rank's view of an instance: takes numbered step plans, runs them in order, gives back tokens.
//
// The seam is asynchronous: up to kStepsInFlightMax plans may be submitted before the first is
// read, and a plan may refer to tokens that an earlier one has yet to sample (kSampledToken).
// Logits never leave the device.
//
// Threads: Submit and Wait from one thread (the owner of the scheduler); steps run on a thread of
// the engine's own. The destructor waits for the steps in flight. Errors: a bad plan is
// InvalidArgument and changes nothing. A step that fails makes the engine unusable: its Wait and
// everything after return that error.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/ops/backend.h"
#include "services/engine/forward_pass.h"
#include "services/engine/step_plan.h"
#include "services/engine/step_tap.h"
#include "services/model/model_config.h"
#include "services/model/weights.h"

namespace sluice::engine {

struct EngineOptions {
  int64_t slots_max = 32;         // requests in one step
  int64_t step_tokens_max = 512;  // tokens in one step, at least slots_max
  int64_t positions_max = 0;      // of one sequence; 0: the model's max_position_embeddings
  int64_t kv_pages = 256;         // of kPageTokens tokens each
  DType kv_dtype = DType::kF32;   // kF32 or kBF16
  // Absorbed attention for prompts too. Needed where results must not depend on how a prompt was
  // cut; otherwise chunks of kPromptChunkMin tokens and more use the unabsorbed form.
  bool absorb_prompts = true;
};

inline constexpr int64_t kPromptChunkMin = 32;

struct StepHandle {
  uint64_t number = 0;
};

struct StepBuffers;  // services/engine/step_buffers.h

class Engine {
 public:
  static constexpr int kStepsInFlightMax = 2;

  // `backend` must outlive the engine. InvalidArgument for options out of range, ResourceExhausted
  // when memory does not suffice (the message says for what).
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      const model::ModelConfig& config, std::shared_ptr<const model::ModelWeights> weights,
      Backend* backend, const EngineOptions& options);
  ~Engine();

  // Queues the step. FailedPrecondition when kStepsInFlightMax are in flight already.
  absl::StatusOr<StepHandle> Submit(const StepPlan& plan);

  // Waits until the step has run, and gives its tokens. Each step is waited for once, in order.
  // DeadlineExceeded leaves the step in flight.
  absl::Status Wait(StepHandle handle, absl::Duration timeout, StepResult* result);

  // For tests; only while no step is in flight. Null takes it away.
  void SetTap(StepTap* tap);

  const EngineOptions& options() const { return options_; }
  const model::ModelConfig& config() const { return config_; }
  size_t memory_bytes() const;

 private:
  Engine(const model::ModelConfig& config, Backend* backend, const EngineOptions& options);

  void RunSteps();
  absl::Status RunStep(StepBuffers* step);

  const model::ModelConfig config_;
  Backend* const backend_;
  const EngineOptions options_;
  std::unique_ptr<ForwardPass> forward_;
  // Plan n uses buffers n % kStepsInFlightMax: filled by Submit, then the step thread's until it
  // has completed, then Wait's.
  std::array<std::unique_ptr<StepBuffers>, kStepsInFlightMax> buffers_;
  TensorView tokens_by_slot_, prompt_mask_, output_counts_;  // device state of the slots
  std::unique_ptr<Workspace> slot_state_;
  StepTap* tap_ = nullptr;

  // std::mutex and not absl::Mutex: the packaged Abseil is not built for the thread sanitizer.
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  uint64_t submitted_ = 0;  // numbers of the newest step that was …
  uint64_t completed_ = 0;
  uint64_t read_ = 0;
  bool stopping_ = false;
  absl::Status failure_;
  std::thread thread_;  // last: starts when everything else stands
};

}  // namespace sluice::engine
