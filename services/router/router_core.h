// The router's decisions: which request runs where, what follows from what a worker says or does
// not say, and what the client gets. Pure: no sockets, no threads, no clock; the time is an
// argument and never runs backwards. The state machines stand in docs/protocol.md.
//
// A request: queued -> placed (attempt k) -> answered, failed, cancelled or out of time. Its token
// log (prompt, output so far) is here, so that an attempt which breaks is followed by another one
// elsewhere that goes on behind the last token sent: the client sees a pause at most. Three failed
// attempts are an error; instances that refuse or hand back a request have not failed it.
//
// Threads: one; every method runs on it. Sinks are called from within methods.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/router/admission.h"
#include "services/router/generation.h"
#include "services/router/router_probe.h"
#include "services/router/worker_bus.h"
#include "sluice/v1/control.pb.h"

namespace sluice::router {

inline constexpr int kFailedAttemptsMax = 3;
inline constexpr int kHandbacksMax = 2;

struct RouterOptions {
  std::string router;        // its name in logs of workers
  uint64_t incarnation = 0;  // drawn at start
  std::string model_hash;    // 16 bytes: workers with another one are refused
  // Placed on instances at the same time; the others wait.
  int64_t active_requests_max = 1 << 20;
  // Of each class: what may wait for a place. More is refused at once.
  int64_t queued_requests_max = 4096;
  int64_t queued_tokens_max = 16 << 20;
  std::vector<ClassTargets> class_targets;  // by class; those that are missing have none
  // What a request may wait for a place, if its deadline does not come first.
  absl::Duration queue_wait_max = absl::Minutes(10);
  // While no instance at all can take requests, new ones are refused; those that were accepted
  // before wait so long for one to come back.
  absl::Duration no_instance_wait_max = absl::Seconds(30);
  int64_t indexed_pages_max = 1 << 20;  // of the prefix index: 84 MB when full
};

enum class InstanceState { kLoading, kReady, kDraining, kWedged, kDead };
absl::string_view InstanceStateName(InstanceState state);  // as in admin.proto

struct InstanceSnapshot {
  WorkerId worker = 0;
  sluice::v1::Hello hello;
  sluice::v1::Load load;  // of the last heartbeat
  InstanceState state = InstanceState::kLoading;
  int64_t legs = 0;  // attempts of this router that it has a part in
};

struct RouterSnapshot {
  std::vector<InstanceSnapshot> instances;  // by name
  int64_t queued = 0;
  int64_t prefilling = 0;    // placed, no token of this attempt yet
  int64_t transferring = 0;  // first token there, KV not yet
  int64_t decoding = 0;
  int64_t queued_tokens = 0;
  int64_t indexed_pages = 0;
  bool draining = false;
  bool can_place = false;     // what /health and the list of models say
  int64_t positions_max = 0;  // of a sequence on the largest instances that are there, or 0
  std::string model_name;     // as workers name it; empty before the first one came
};

class RouterCore {
 public:
  // The bus and the probe outlive the core. The probe may be null.
  RouterCore(RouterOptions options, WorkerBus* bus, RouterProbe* probe);
  ~RouterCore();
  RouterCore(const RouterCore&) = delete;
  RouterCore& operator=(const RouterCore&) = delete;

  // --- For clients ---

  // Takes the request, or says at once why not: OutOfRange (no instance could ever hold its
  // prompt), InvalidArgument (a field is wrong), Unavailable (no instance, draining) or
  // ResourceExhausted (queue full), the last two with RetryAfter. The sink outlives the request:
  // until its last call, or Cancel.
  absl::StatusOr<RequestId> Submit(GenerationRequest request, GenerationSink* sink, absl::Time now);
  // Ends it everywhere; its sink is not called any more. Unknown or ended requests are ignored.
  void Cancel(RequestId id, absl::Time now);

  // --- For workers ---

  // The first message of a stream. A refusal is to end the stream: FailedPrecondition (protocol
  // version, model), InvalidArgument (a field is wrong), AlreadyExists (another process attached
  // under this name and is alive). When accepted, Welcome has been sent.
  absl::Status OnWorkerHello(WorkerId worker, const sluice::v1::Hello& hello, absl::Time now);
  // Every later message. Those of unknown workers are dropped.
  void OnWorkerMessage(WorkerId worker, const sluice::v1::WorkerMessage& message, absl::Time now);
  // The stream is over. Unknown workers are ignored.
  void OnWorkerGone(WorkerId worker, absl::Time now);

  // --- For the process ---

  // Deadlines, liveness, waiting requests: every 50 ms or so.
  void OnTick(absl::Time now);
  // From now on Submit refuses; what was accepted is finished.
  void BeginDrain();
  // Ends what is left of it with an error, Unavailable: the time to drain is over.
  void EndAll(absl::Time now);
  bool idle() const;  // no request is queued or placed
  // CanPlace alone is cheap.
  bool CanPlace() const;
  RouterSnapshot Snapshot() const;
  // Of the instance that attached last, for the seeds of page hashes; empty before the first.
  std::string KvLayoutHash() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::router
