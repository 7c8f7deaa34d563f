// One rank's view of an instance: takes numbered step plans, runs them in order, gives back tokens.
//
// The seam is asynchronous: up to kStepsInFlightMax plans may be submitted before the first is
// read, and a plan may refer to tokens that an earlier one has yet to sample (kSampledToken).
// Logits never leave the device.
//
// Threads: Submit from one thread (the owner of the scheduler), Wait from one, which may be
// another; steps run on threads of the engine's own. KV memory may be read, and pages of it
// written, by other threads while steps run, as KvCacheView says. The destructor waits for the
// steps in flight, and for what is left of one that failed. Errors: a bad plan is InvalidArgument
// and changes nothing. A step that fails makes the engine unusable: its Wait and everything after
// return that error.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/ops/backend.h"
#include "services/engine/layer_listener.h"
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
  DType kv_dtype = DType::kF32;   // kF32, kBF16, or kF8E4M3 on devices that have it (attention.h)
  // Absorbed attention for prompts too. Needed where results must not depend on how a prompt was
  // cut; otherwise chunks of kPromptChunkMin tokens and more use the unabsorbed form.
  bool absorb_prompts = true;
  // For measuring one rank of many by itself: choice k of token t goes to the expert in slot
  // (t * top_k + k) % slots of the rank, whatever the gate chose, so that each slot has its even
  // share.
  bool even_experts = false;
};

inline constexpr int64_t kPromptChunkMin = 32;

struct StepHandle {
  uint64_t number = 0;
};

// Where the KV lies, which the engine owns: page p of layer l is the page_bytes() bytes at
// layers[l] + p * page_bytes(), row by row; row r of a sequence's i-th page is position
// i * page_tokens + r. Layers follow each other without gaps.
// A step reads the rows of the positions before those it computes, in pages that its plan names,
// and writes the rows of those it computes. Any thread may at the same time write pages that no
// step in flight names (a reservation before Start), and read rows that no step in flight computes,
// or that it has computed already (LayerListener). Where the processor does not reach the memory,
// all of this is a PageMover's.
struct KvCacheView {
  std::vector<std::byte*> layers;
  int64_t pages = 0;
  int64_t page_tokens = 0;
  int64_t row_bytes = 0;  // one token in one layer
  // How other processes of this host map the memory, layer 0's first byte at offset 0; null where
  // they cannot, with the reason if they were to. The engine's.
  std::shared_ptr<const MemoryHandle> handle;
  std::string why_no_handle;

  int64_t page_bytes() const { return page_tokens * row_bytes; }
};

struct StepBuffers;  // services/engine/step_buffers.h
class StepRunner;    // services/engine/step_runner.h

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

  // Nobody waits for the steps in flight any more: a device that hangs in one gives up if it can,
  // and is of no more use to the process. From any thread.
  void Abandon();

  // For steps that are submitted from now on. Null takes it away: then it is not called any more,
  // not even by a step that is in flight.
  void SetLayerListener(LayerListener* listener);
  // For tests, while no step is in flight. Null takes it away.
  void SetTap(StepTap* tap);

  KvCacheView kv_cache() const;

  // Tokens that each logical expert was chosen for since the last call, as of the last step that
  // has completed: [layers, n_routed_experts], empty for models without experts. In the last layer
  // only tokens count whose logits were wanted: others do not reach its experts. From any thread.
  void TakeExpertLoad(std::vector<int64_t>* tokens);

  const EngineOptions& options() const { return options_; }
  const model::ModelConfig& config() const { return config_; }
  size_t memory_bytes() const;
  // Which kernels have served the backend's ops. From any thread. Null if it does not count.
  const KernelCalls* kernel_calls() const { return backend_->kernel_calls(); }
  // What takes longer hangs: a minute on a device that holds the weights, ten where it computes
  // with exact numerics; half an hour where the first step of a large model may read them from a
  // disk.
  absl::Duration step_limit() const;

 private:
  Engine(const model::ModelConfig& config, Backend* backend, const EngineOptions& options);

  void QueueSteps();
  void AwaitSteps();

  const model::ModelConfig config_;
  Backend* const backend_;
  const EngineOptions options_;
  std::unique_ptr<StepRunner> runner_;
  // Plan n uses buffers n % kStepsInFlightMax: filled by Submit, then the engine's until the step
  // has completed, then Wait's.
  std::array<std::unique_ptr<StepBuffers>, kStepsInFlightMax> buffers_;
  LayerListenerGate listener_;
  StepTap* tap_ = nullptr;

  // std::mutex and not absl::Mutex: the packaged Abseil is not built for the thread sanitizer.
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  uint64_t submitted_ = 0;  // numbers of the newest step that was …
  uint64_t queued_ = 0;
  uint64_t completed_ = 0;
  uint64_t read_ = 0;
  bool stopping_ = false;
  absl::Status failure_;
  std::vector<int64_t> expert_load_;  // since the start, as of step completed_
  std::vector<int64_t> taken_load_;   // as of the last TakeExpertLoad
  // Last: they start when everything else stands. One queues steps on the backend, so that a step
  // is there when the one before it ends; the other waits for them.
  std::thread queuer_, awaiter_;
};

}  // namespace sluice::engine
