// The state of RouterCore. Its methods are in router_core.cc (clients, time, the queue),
// router_attempts.cc (an attempt's begin and end) and router_messages.cc (what workers say).
//
// A sink's call may come back into Submit and Cancel. So whoever calls a sink does it as the last
// thing with a request, and looks requests and workers up again by id afterwards.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "services/router/admission.h"
#include "services/router/placement.h"
#include "services/router/prefix_index.h"
#include "services/router/request.h"
#include "services/router/router_core.h"
#include "services/router/worker.h"

namespace sluice::router {

class RouterCore::Impl {
 public:
  Impl(RouterOptions options, WorkerBus* bus, RouterProbe* probe);

  absl::StatusOr<RequestId> Submit(GenerationRequest request, GenerationSink* sink, absl::Time now);
  void Cancel(RequestId id, absl::Time now);
  absl::Status OnWorkerHello(WorkerId worker, const sluice::v1::Hello& hello, absl::Time now);
  void OnWorkerMessage(WorkerId worker, const sluice::v1::WorkerMessage& message, absl::Time now);
  void OnWorkerGone(WorkerId worker, absl::Time now);
  void OnTick(absl::Time now);
  void BeginDrain() { draining_ = true; }
  void EndAll(absl::Time now);
  bool idle() const { return requests_.empty(); }
  bool CanPlace() const;
  RouterSnapshot Snapshot() const;
  std::string KvLayoutHash() const;

 private:
  // Why an attempt is over, and whom not to try again.
  struct Failure {
    absl::string_view reason;  // as RouterProbe::OnAttemptFailed names it
    std::string detail;
    std::vector<WorkerId> suspects;
  };

  // --- The queue (router_core.cc) ---
  // The longest sequence that there is room for, in tokens, if the request may come in.
  absl::StatusOr<int64_t> CheckRequest(const GenerationRequest& request, absl::Time now) const;
  void Enqueue(Request* request, absl::Time now);
  void Park(Request* request, absl::Time now);
  void Unpark(absl::Time now);
  // Places whoever can be placed, in order. Calls no sink.
  void Pump(absl::Time now);
  int64_t num_placed() const {
    return static_cast<int64_t>(requests_.size() - parked_.size()) - queue_.size();
  }
  void SetTimer(Request* request, absl::Time now);
  void OnTimer(RequestId id, absl::Time now);

  // --- Attempts (router_attempts.cc) ---
  PlacementVerdict TryPlace(Request* request, absl::Time now);
  void BeginAttempt(Request* request, Worker* prefill, Worker* decode, absl::Time now);
  void SendAdmits(const Request& request, absl::Time now);
  // Takes the request from its workers and tells them, but not the one that said itself that it is
  // over.
  void EndAttempt(Request* request, WorkerId not_told);
  // The prefill has done all that was wanted of it.
  void ReleasePrefill(Request* request);
  // Each ends with the request queued again, or over: the pointer is not to be used afterwards.
  void FailAttempt(Request* request, WorkerId not_told, Failure failure, absl::Time now);
  // Places the request anew, and not as a failure. `counted`: only so often.
  void HandBack(Request* request, Worker* worker, bool counted, absl::Time now);
  void Replace(Request* request, absl::Time now);
  // Over without an answer. Calls the sink.
  void EndWithError(Request* request, absl::Status status, absl::Time now);
  // Out of the tables, and its workers; the last owner of it gets it.
  std::unique_ptr<Request> Remove(Request* request, absl::StatusCode code, absl::Time now);
  // Everything that a worker has a part in, after it broke: gone, dead or wedged. Logs it.
  void FailAllOn(WorkerId worker, absl::string_view how, absl::Time now);

  // --- Messages (router_messages.cc) ---
  void OnHeartbeat(Worker* worker, const sluice::v1::Heartbeat& heartbeat, absl::Time now);
  void OnRefused(Worker* worker, const sluice::v1::Refused& refused, absl::Time now);
  void OnLeased(Worker* worker, const sluice::v1::Leased& leased, absl::Time now);
  void OnKvReady(Worker* worker, const sluice::v1::KvReady& ready, absl::Time now);
  void OnTokens(WorkerId worker, const sluice::v1::RequestTokens& tokens, absl::Time now);
  ClassTargets TargetsOf(uint32_t priority) const;
  void CountTargets(absl::StatusCode code, const Request& request);
  void OnFirstToken(Request* request, const sluice::v1::RequestTokens& tokens, absl::Time now);
  void OnAttemptEnded(Worker* worker, const sluice::v1::AttemptEnded& ended, absl::Time now);
  void OnKvEvents(Worker* worker, const sluice::v1::KvEvents& events);
  // Null unless the worker has a part in this very attempt: the message is dropped then.
  Request* Find(WorkerId worker, RequestId request, uint32_t attempt);

  Request* FindRequest(RequestId id);
  Worker* FindWorker(WorkerId id);
  void Send(WorkerId worker, sluice::v1::RouterMessage message) {
    bus_->Send(worker, std::move(message));
  }
  std::vector<Candidate> DescribeAll(bool placeable_only) const;

  const RouterOptions options_;
  WorkerBus* const bus_;
  RouterProbe* const probe_;
  RouterProbe no_probe_;

  PrefixIndex index_;
  std::map<WorkerId, Worker> workers_;
  absl::flat_hash_map<RequestId, std::unique_ptr<Request>> requests_;
  AdmissionQueue queue_;
  absl::btree_set<RequestId> parked_;
  int64_t parked_tokens_ = 0;  // of their prompts
  absl::btree_set<std::pair<absl::Time, RequestId>> timers_;
  RequestId next_id_ = 1;
  bool draining_ = false;
  bool ended_ = false;  // nothing is placed any more
  absl::Time last_tick_ = absl::InfinitePast();
  std::vector<uint32_t> matched_pages_;  // of the decision under way, by slot of the index
};

}  // namespace sluice::router
