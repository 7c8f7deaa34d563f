// What a prefill, a decode or a mixed instance does with what routers ask of it: attempts, leases,
// KV pushes, deadlines, drain. docs/protocol.md has the state machines as tables.
//
// Pure: no threads, no sockets, no clock. The owner hands in messages, step results, transfer
// results and the time, submits the plans that NextPlan gives, and carries away what comes out of
// the ports. What it decides depends on these calls alone.
//
// Threads: one, but for kv_push(), whose OnKvWritten belongs to the engine's.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/engine/scheduler.h"
#include "services/instance/kv_push.h"
#include "services/instance/router_port.h"
#include "services/instance/step_times.h"
#include "services/transport/kv_transfer.h"
#include "sluice/v1/control.pb.h"

namespace sluice::instance {

struct CorePorts {
  RouterPort* routers = nullptr;
  // Prefill needs the sender, decode the receiver, mixed neither. All outlive the core.
  transport::KvSender* sender = nullptr;
  transport::KvReceiver* receiver = nullptr;
  // Called on the transport's threads; they must lead to OnKvArrived and OnKvSent on the core's.
  transport::LeaseDone on_arrived;
  transport::SentDone on_sent;
};

struct CoreOptions {
  v1::Role role = v1::ROLE_UNSPECIFIED;
  engine::SchedulerOptions scheduler;
  int64_t layers = 0;        // of KV
  uint64_t random_seed = 0;  // for checksum keys
  // A decode leg whose KV is not complete so long after the lease ends, and so does a push. The
  // computation of the prompt is in it, so the cluster file has it.
  absl::Duration kv_timeout = absl::Minutes(10);
  // A prefill leg that has no lease so long after it was admitted ends. A decode answers at once,
  // whatever its load, so nobody needs another value.
  absl::Duration lease_timeout = absl::Seconds(10);
  // Draining: what has not ended by itself in this time is handed back.
  absl::Duration drain_grace = absl::Seconds(30);
};

// Sums since the start, for metrics.
struct CoreCounters {
  int64_t steps = 0;
  int64_t prompt_tokens_computed = 0;
  int64_t prompt_tokens_cached = 0;
  int64_t output_tokens = 0;
  int64_t admitted = 0;
  int64_t refused = 0;
  int64_t finished_stop = 0, finished_length = 0, finished_damaged = 0;
  int64_t ended_kv_failed = 0, ended_handed_back = 0, ended_deadline = 0, ended_engine = 0,
          ended_other = 0;
  int64_t cancelled = 0;
  int64_t kv_bytes_received = 0;
  int64_t kv_failures = 0;
};

class InstanceCore {
 public:
  InstanceCore(const CoreOptions& options, CorePorts ports);

  // After its Welcome. It is told what the prefix cache holds.
  void OnRouterAttached(RouterId router, absl::Time now);
  // All that it had placed here is cancelled.
  void OnRouterGone(RouterId router, absl::Time now);
  void OnRouterMessage(RouterId router, const v1::RouterMessage& message, absl::Time now);

  // The next step, or null when there is nothing to do before something comes in. It must be
  // submitted; what it points to stays until the next call.
  const engine::StepPlan* NextPlan(absl::Time now);
  void OnStepResult(const engine::StepResult& result, absl::Time now);
  // The engine has failed for good: every attempt ends, nothing is taken any more.
  void OnEngineFailed(const absl::Status& status, absl::Time now);

  void OnKvArrived(const transport::LeaseResult& result, absl::Time now);
  void OnKvSent(transport::TransferId transfer, const absl::Status& status, absl::Time now);

  // Timeouts, fences, KV events. To be called at least every kTick while anything is here.
  static constexpr absl::Duration kTick = absl::Milliseconds(20);
  void OnTick(absl::Time now);

  // Takes no new work from now on.
  void BeginDrain(absl::Time now);
  // Nothing is left: no attempt, no transfer, no page in quarantine.
  bool drained() const;
  bool draining() const { return draining_; }
  // Ok unless the engine has failed.
  const absl::Status& failure() const { return failure_; }

  // All but `progress`.
  v1::Heartbeat MakeHeartbeat(absl::Time now) const;
  const CoreCounters& counters() const { return counters_; }
  const engine::Scheduler& scheduler() const { return scheduler_; }
  KvPush& kv_push() { return kv_push_; }
  int64_t num_attempts() const { return static_cast<int64_t>(attempts_.size()); }
  // Attempts of decode legs that wait for KV or for StartDecode.
  int64_t num_waiting_kv() const { return num_waiting_kv_; }
  int64_t num_transfers() const { return static_cast<int64_t>(transfers_.size()); }
  int64_t num_leases() const { return static_cast<int64_t>(leases_.size()); }  // waiting for KV
  // The newest result's.
  const StepTimes::Taken& last_step() const { return last_step_; }
  bool steps_in_flight() const { return step_times_.in_flight(); }

 private:
  struct Key {
    RouterId router = 0;
    uint64_t request = 0;
    uint32_t attempt = 0;
    bool operator==(const Key&) const = default;
    template <typename H>
    friend H AbslHashValue(H hash, const Key& key) {
      return H::combine(std::move(hash), key.router, key.request, key.attempt);
    }
  };

  // One leg of one attempt. docs/protocol.md names the states that the fields add up to.
  struct Attempt {
    Key key;
    v1::Leg leg = v1::LEG_UNSPECIFIED;
    uint64_t id = 0;  // the scheduler's
    std::string request_id;
    int64_t known_tokens = 0;  // prompt and outputs, when admitted
    int64_t next_output = 0;   // index of the next token among the outputs
    int32_t num_logprobs = -1;
    absl::Time admitted;
    absl::Time deadline = absl::InfiniteFuture();
    absl::Time first_planned = absl::InfiniteFuture();
    bool has_output = false;  // a token was sampled here

    // Prefill: granted -> transfer -> kv_sent.
    std::optional<transport::TransferId> transfer;
    bool granted = false;
    bool kv_sent = false;

    // Decode: kv_ready and `start` in any order, then started.
    uint64_t lease = 0;
    bool kv_ready = false;
    bool started = false;
    std::optional<std::vector<int32_t>> start;
  };
  using AttemptMap = absl::flat_hash_map<Key, std::unique_ptr<Attempt>>;

  // A lease that ended, and whether its pages wait for the fence.
  struct Fence {
    uint64_t lease = 0;
    std::optional<uint64_t> quarantined;  // the scheduler's id
  };

  Attempt* Find(RouterId router, uint64_t request, uint32_t attempt);
  Attempt* FindById(uint64_t id);

  void Admit(RouterId router, const v1::Admit& admit, absl::Time now);
  absl::Status AdmitChecked(Attempt* attempt, const v1::Admit& admit);
  absl::Status AdmitDecode(Attempt* attempt, engine::Request request);
  void Refuse(const Key& key, v1::Refused::Code code, absl::string_view reason);
  void GrantLease(const v1::GrantLease& grant, Attempt* attempt);
  void StartDecode(const v1::StartDecode& start, Attempt* attempt);
  void StartIfReady(Attempt* attempt);

  void OnPlanned(const engine::StepPlan& plan, absl::Time now);
  void OnToken(const engine::TokenEvent& event, absl::Time now,
               absl::flat_hash_map<RouterId, v1::StepTokens>* messages);
  void CountFinish(engine::FinishReason reason);

  // Tells the router, then forgets the attempt.
  void EndAttempt(Attempt* attempt, v1::AttemptEnded::Reason reason, absl::string_view detail);
  void EndAll(v1::AttemptEnded::Reason reason, absl::string_view detail);
  // Stops its work, gives its pages back (behind the fence, where there is one), forgets it.
  void Forget(Attempt* attempt);
  void ForgetPrefill(Attempt* attempt);
  void ForgetDecode(Attempt* attempt);
  bool CloseLease(uint64_t lease);
  void RetryFences();
  void EndOverdue(absl::Time now);
  absl::Time PatienceEnd(const Attempt& attempt) const;
  void PublishKvEvents();
  void SendSnapshot(RouterId router);

  const CoreOptions options_;
  const CorePorts ports_;
  engine::Scheduler scheduler_;
  KvPush kv_push_;

  AttemptMap attempts_;
  absl::flat_hash_map<uint64_t, Attempt*> by_id_;
  absl::flat_hash_map<uint64_t, uint64_t> leases_;  // lease -> id, while KV may come
  // transfer -> id, until it has ended; the attempt may have ended before.
  absl::flat_hash_map<transport::TransferId, uint64_t> transfers_;
  std::vector<Fence> fences_;
  absl::flat_hash_map<RouterId, uint64_t> kv_sequences_;  // of the last KvEvents to each router
  StepTimes step_times_;
  StepTimes::Taken last_step_;
  uint64_t next_id_ = 1;
  uint64_t next_lease_ = 1;
  std::mt19937_64 random_;
  bool draining_ = false;
  absl::Time drain_until_ = absl::InfiniteFuture();
  absl::Status failure_;

  int64_t num_waiting_kv_ = 0;
  CoreCounters counters_;

  std::vector<engine::TokenEvent> events_;
};

}  // namespace sluice::instance
