// Continuous batching: which requests take part in the next step, with how many tokens, in which
// pages.
//
// Pure: no threads, no clock, no device; what it decides depends on the calls made and nothing
// else. Plans run ahead of their results: while a step runs the next is planned, with kSampledToken
// for what is not known yet. A request that turns out to have ended in the meantime wastes its
// share of one step.
//
// Order: requests that decode come first, then prompts in order of arrival, cut to what the step's
// token budget leaves. When pages run out, the request admitted last gives all of its pages back
// and is computed again later (its tokens stay as they are).
//
// Threads: one.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "services/engine/kv_pool.h"
#include "services/engine/step_plan.h"

namespace sluice::engine {

struct Request {
  uint64_t id = 0;              // unique among the scheduler's requests
  std::vector<int32_t> prompt;  // at least one token
  // Tokens that a former attempt has sent already: computed like the prompt, never sampled again.
  // They count for max_tokens, penalties and the sampling position.
  std::vector<int32_t> output;
  SamplingParams sampling;
};

enum class FinishReason {
  kStop,     // a stop token
  kLength,   // max_tokens, or the context limit
  kDamaged,  // the logits were not finite; the token means nothing
};

struct TokenEvent {
  uint64_t request_id = 0;
  SampledToken token;
  std::optional<FinishReason> finish;  // set on the last token
};

struct SchedulerOptions {
  int64_t slots_max = 32;
  int64_t step_tokens_max = 512;
  int64_t positions_max = 0;
  int64_t kv_pages = 0;
  int64_t vocab_size = 0;
  int64_t steps_in_flight_max = 2;  // 1 or 2
  int64_t requests_max = 4096;      // waiting and running
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // InvalidArgument names what is wrong with the request; ResourceExhausted when too many wait.
  absl::Status Add(Request request);
  // Its pages come back once no step in flight uses them. NotFound if unknown or ended.
  absl::Status Cancel(uint64_t id);

  // The next step's plan, or null when there is nothing to do before a result comes. It must be
  // submitted; what it points to stays until the next call of any method.
  const StepPlan* NextPlan();
  // The result of the oldest plan not yet answered. Appends events, in order.
  void OnResult(const StepResult& result, std::vector<TokenEvent>* events);

  bool idle() const { return requests_.empty() && in_flight_.empty(); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }
  const KvPool& kv_pool() const { return pool_; }

 private:
  struct Entry {
    Request request;
    std::vector<int32_t> tokens;  // prompt and every output read so far
    int64_t scheduled = 0;        // positions that plans have covered
    int64_t pending = 0;          // sampled in steps in flight, not read yet
    int32_t slot = -1;
    uint64_t last_step = 0;  // newest plan that uses its pages
    std::vector<int32_t> pages;
    bool ended = false;  // only results in flight keep it

    int64_t num_outputs() const {
      return static_cast<int64_t>(tokens.size() - request.prompt.size());
    }
    // At most one token to compute before the next is sampled.
    bool decoding() const {
      return num_outputs() + pending > 0 && scheduled + 1 >= static_cast<int64_t>(tokens.size());
    }
  };
  struct StepRecord {
    uint64_t number = 0;
    std::vector<uint64_t> samples;  // request ids, in the order of the step's results
  };
  struct DeferredFree {
    uint64_t step = 0;  // free once this step has been answered
    std::vector<int32_t> pages;
  };

  int64_t positions_limit(const Entry& entry) const;
  bool WantsChunk(const Entry& entry) const;
  void PlanChunk(Entry* entry);
  bool EnsurePages(Entry* entry, int64_t positions);
  void AdmitWaiting();
  void Preempt(Entry* entry);
  void Release(Entry* entry);
  void End(Entry* entry);
  void OnToken(Entry* entry, const SampledToken& token, std::vector<TokenEvent>* events);

  const SchedulerOptions options_;
  KvPool pool_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Entry>> requests_;
  std::deque<Entry*> waiting_;
  std::vector<Entry*> running_;  // in order of admission
  std::vector<int32_t> free_slots_;
  std::deque<StepRecord> in_flight_;
  std::vector<DeferredFree> deferred_;
  int64_t num_preemptions_ = 0;
  uint64_t next_number_ = 1;

  // The plan under construction.
  StepPlan plan_;
  std::vector<StepChunk> chunks_;
  std::vector<SlotReset> resets_;
  int64_t plan_tokens_ = 0;
  bool short_of_pages_ = false;  // some running request could not get what its chunk needs
};

}  // namespace sluice::engine
