// Continuous batching: which requests take part in the next step, with how many tokens, in which
// pages; and which KV is kept for whom.
//
// Pure: no threads, no clock, no device; what it decides depends on the calls made and nothing
// else. Plans run ahead of their results: while a step runs the next is planned, with kSampledToken
// for what is not known yet. A request that turns out to have ended in the meantime wastes its
// share of one step.
//
// Order: requests that decode come first, then prompts, both by class and in a class by arrival,
// prompts cut to what the step's token budget leaves. A request gets pages for all tokens that are
// known when it gets its slot; only decoding takes more. When there is none, the youngest request
// of the last class gives its pages up: it is handed back if it may be, else computed again later
// (its tokens stay as they are). Prefill legs, whose pages somebody else may be reading, are
// spared.
//
// Prefix cache: full pages, of prompts and of outputs, are named as steps complete; a request that
// gets its slot starts behind the longest prefix that the cache has. Its last known token is always
// computed. With exact numerics, results are the same bits with and without.
//
// Threads: one.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "services/engine/kv_pool.h"
#include "services/engine/request.h"
#include "services/engine/sequence_pages.h"
#include "services/engine/step_plan.h"
#include "services/model/page_hash.h"

namespace sluice::engine {

enum class FinishReason {
  kStop,     // a stop token
  kLength,   // max_tokens, or the context limit
  kDamaged,  // the logits were not finite; the token means nothing
};

struct TokenEvent {
  uint64_t request_id = 0;
  SampledToken token;
  std::optional<FinishReason> finish;  // set on the last token; a prefill leg may end without
  int64_t cached_tokens = 0;           // prompt tokens that the cache had when it first got pages
};

// A decode leg's pages. The first `first_page` pages of the sequence came from the cache; `pages`
// are those after it whose KV has to come from elsewhere (none when the cache had all).
struct Reservation {
  int64_t first_page = 0;
  std::vector<int32_t> pages;
};

// What becomes of a cancelled request's pages.
enum class PageFate {
  kFree,        // back to the pool, once no step in flight uses them
  kHold,        // as they are, until ReleaseHeld: somebody may still read them
  kQuarantine,  // of a reservation: apart until ReleaseQuarantined: somebody may still write them
};

// A request's share of a plan.
struct PlannedChunk {
  uint64_t request_id = 0;
  int64_t first_position = 0;
  int64_t count = 0;
};

struct SchedulerOptions {
  int64_t slots_max = 32;
  int64_t step_tokens_max = 512;
  int64_t positions_max = 0;
  int64_t kv_pages = 0;
  int64_t vocab_size = 0;
  int64_t steps_in_flight_max = 2;  // 1 or 2
  int64_t requests_max = 4096;      // waiting, running, reserved and held
};

struct SchedulerLoad {
  int64_t running = 0;         // with a slot, reservations apart
  int64_t reserved = 0;        // decode legs that have not started
  int64_t held = 0;            // ended, their pages still wanted
  int64_t waiting = 0;         // without a slot
  int64_t waiting_tokens = 0;  // known tokens that no plan has covered yet
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // Of kWhole and kPrefill. InvalidArgument names what is wrong with the request; ResourceExhausted
  // when too many wait.
  absl::Status Add(Request request);

  // Of kDecode: pages for all known tokens and the next one, and a slot. The caller fills the pages
  // with KV. Errors as Add; ResourceExhausted also when pages or slots are not free, or when
  // requests wait that come first.
  absl::StatusOr<Reservation> Reserve(Request request);
  // The KV of all tokens known at Reserve is there, in its pages. `outputs` were sampled after
  // them, at least one and not the last; the next plan goes on from there. NotFound when nothing is
  // reserved for `id`; ResourceExhausted when so many outputs need more pages than are free.
  absl::Status Start(uint64_t id, absl::Span<const int32_t> outputs);

  // NotFound if unknown or ended. kQuarantine of anything but a reservation is InvalidArgument.
  absl::Status Cancel(uint64_t id, PageFate fate = PageFate::kFree);
  // Prefill legs keep their pages, though not their slot, when they have given their token. Does
  // nothing when nothing is held for `id`.
  void ReleaseHeld(uint64_t id);
  // Nobody writes any more. Does nothing when no page of `id` is in quarantine.
  void ReleaseQuarantined(uint64_t id);

  // The next step's plan, or null when there is nothing to do before a result comes. It must be
  // submitted; what it points to stays until the next call of any method that is not const.
  const StepPlan* NextPlan();
  // What the newest plan computes, in its order.
  absl::Span<const PlannedChunk> planned() const { return planned_; }
  // The result of the oldest plan not yet answered. Appends events, in order.
  void OnResult(const StepResult& result, std::vector<TokenEvent>* events);
  // Requests that NextPlan gave up since the last call: forgotten here, to be placed elsewhere.
  std::vector<uint64_t> TakeHandedBack() { return std::exchange(handed_back_, {}); }

  // Where the sequence lies, page by page; empty for requests without pages. Stays until the next
  // call of any method that is not const.
  absl::Span<const int32_t> PagesOf(uint64_t id) const;

  // What the prefix cache gained and lost, and all of it as of the last such call.
  void TakeKvEvents(std::vector<model::PageHash>* stored, std::vector<model::PageHash>* removed) {
    pool_.TakeEvents(stored, removed);
  }
  std::vector<model::PageHash> KvSnapshot() const { return pool_.Snapshot(); }

  // No request is known and no step in flight. Pages may still be in quarantine.
  bool idle() const { return requests_.empty() && in_flight_.empty(); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }  // computed again or handed back
  // Counts through all requests.
  SchedulerLoad Load() const;
  const KvPool& kv_pool() const { return pool_; }

 private:
  enum class State {
    kWaiting,
    kRunning,
    kReserved,  // has slot and pages, waits for Start
    kHeld,      // has pages alone, waits for ReleaseHeld
    kEnded,     // only results in flight keep it
  };
  using Key = std::pair<uint32_t, uint64_t>;  // class, arrival: who comes first

  struct Entry {
    Entry(Request r, uint64_t arrival);

    Request request;
    const Key key;
    SequencePages pages;
    State state = State::kWaiting;
    std::vector<int32_t> tokens;  // prompt and every output read so far
    int64_t scheduled = 0;        // positions that plans have covered, or that came as KV
    int64_t pending = 0;          // sampled in steps in flight, not read yet
    int32_t slot = -1;
    bool slot_is_new = false;  // no plan has used it
    uint64_t last_step = 0;    // newest plan that uses its pages
    uint64_t placement = 0;    // unique number of this stay in these pages
    int64_t cached_tokens = 0;

    int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
    int64_t num_outputs() const {
      return num_tokens() - static_cast<int64_t>(request.prompt.size());
    }
    // At most one token to compute before the next is sampled.
    bool decoding() const { return num_outputs() + pending > 0 && scheduled + 1 >= num_tokens(); }
  };
  struct ComesFirst {
    bool operator()(const Entry* a, const Entry* b) const { return a->key < b->key; }
  };
  struct StepRecord {
    struct Chunk {
      uint64_t request_id = 0;
      uint64_t placement = 0;
      int64_t end = 0;  // positions computed when the step has run
    };
    uint64_t number = 0;
    std::vector<Chunk> chunks;
    std::vector<uint64_t> samples;  // request ids, in the order of the step's results
  };
  struct DeferredRelease {
    uint64_t step = 0;  // release once this step has been answered
    std::vector<int32_t> pages;
  };

  // Requests coming and going.
  absl::Status Check(const Request& request) const;
  Entry* Insert(Request request);
  Entry* Find(uint64_t id) const;  // null if unknown or ended
  void TakeSlot(Entry* entry);
  void AddToRunning(Entry* entry);
  void Detach(Entry* entry);  // takes it out of waiting_ or running_, and its slot away
  void ReleasePages(Entry* entry);
  void End(Entry* entry);

  // Planning.
  bool WantsChunk(const Entry& entry) const;
  void PlanDecodes();
  void PlanPrompts();
  bool Admit(Entry* entry);
  bool EnsurePages(Entry* entry, int64_t positions);
  Entry* Victim(Entry* needing) const;
  void Preempt(Entry* entry);
  void PlanChunk(Entry* entry);

  // Results.
  void OfferComputed(const StepRecord& record);
  bool OnToken(Entry* entry, const SampledToken& token, std::vector<TokenEvent>* events);

  const SchedulerOptions options_;
  KvPool pool_;
  model::PageHasher hasher_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Entry>> requests_;
  std::set<Entry*, ComesFirst> waiting_;
  std::vector<Entry*> running_;  // in the order of ComesFirst
  std::vector<int32_t> free_slots_;
  std::deque<StepRecord> in_flight_;
  std::vector<DeferredRelease> deferred_;
  absl::flat_hash_map<uint64_t, std::vector<int32_t>> quarantined_;  // pages by request id
  std::vector<uint64_t> handed_back_;
  int64_t num_preemptions_ = 0;
  uint64_t next_number_ = 1;
  uint64_t next_arrival_ = 1;
  uint64_t next_placement_ = 1;

  // The plan under construction.
  StepPlan plan_;
  std::vector<StepChunk> chunks_;
  std::vector<SlotReset> resets_;
  std::vector<PlannedChunk> planned_;
  std::vector<Entry*> prompts_;
  int64_t plan_tokens_ = 0;
  std::optional<Key> first_short_;  // of those running that could not get a page, the first
};

}  // namespace sluice::engine
