// An attempt's begin and end: placement, cancels, what follows from a failure.
#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/base/log.h"
#include "services/router/retry_hint.h"
#include "services/router/router_impl.h"

namespace sluice::router {
namespace {

constexpr absl::Duration kFailedRetry = absl::Seconds(2);
// Only instances that say again and again that they have room, and have not, lead here.
constexpr int kRefusalsMax = 16;

bool Contains(const std::vector<WorkerId>& workers, WorkerId worker) {
  return std::find(workers.begin(), workers.end(), worker) != workers.end();
}

uint32_t DeadlineMs(absl::Time deadline, absl::Time now) {
  if (deadline == absl::InfiniteFuture()) return 0;
  return static_cast<uint32_t>(std::clamp<int64_t>(absl::ToInt64Milliseconds(deadline - now), 1,
                                                   std::numeric_limits<uint32_t>::max()));
}

}  // namespace

PlacementVerdict RouterCore::Impl::TryPlace(Request* request, absl::Time now) {
  probe_->OnDecisionBegin();
  const Prompt& prompt = *request->spec.prompt;
  index_.Match(prompt.page_hashes, absl::MakeSpan(matched_pages_));
  std::vector<Candidate> candidates;
  std::vector<Worker*> workers;
  for (auto& [id, worker] : workers_) {
    if (!worker.placeable()) continue;
    Candidate candidate = worker.Describe();
    if (worker.kv().slot()) candidate.cached_pages = matched_pages_[*worker.kv().slot()];
    candidate.failed_before = Contains(request->failed_on, id);
    candidates.push_back(candidate);
    workers.push_back(&worker);
  }
  const PlacementNeed need = {
      .tokens = request->known_tokens(),
      .tokens_max = static_cast<int64_t>(prompt.ids.size()) + request->spec.sampling.max_tokens(),
      .step_seconds_max = absl::ToDoubleSeconds(TargetsOf(request->spec.priority).tpot),
  };
  const Placement placement = Place(need, candidates);
  probe_->OnDecisionEnd();
  if (placement.verdict != PlacementVerdict::kPlaced) return placement.verdict;

  const Candidate& prefill = candidates[placement.prefill];
  const int64_t cached = std::min(prefill.cached_pages * kPageTokens, need.tokens - 1);
  const int64_t pages = (need.tokens + kPageTokens) / kPageTokens;  // with the next token
  probe_->OnPrefixMatch(static_cast<double>(cached) / static_cast<double>(prompt.ids.size()));
  Attempt& attempt = request->attempt.emplace();
  attempt.mixed = placement.prefill == placement.decode;
  attempt.prefill_share = {
      .requests = 1, .pages = attempt.mixed ? pages : 0, .tokens = need.tokens - cached};
  if (!attempt.mixed) attempt.decode_share = {.requests = 1, .pages = pages};
  BeginAttempt(request, workers[placement.prefill], workers[placement.decode], now);
  return PlacementVerdict::kPlaced;
}

void RouterCore::Impl::BeginAttempt(Request* request, Worker* prefill, Worker* decode,
                                    absl::Time now) {
  Attempt& attempt = *request->attempt;
  attempt.number = ++request->attempts;
  attempt.prefill = prefill->id();
  attempt.decode = decode->id();
  prefill->Take(request->id, attempt.prefill_share);
  if (!attempt.mixed) decode->Take(request->id, attempt.decode_share);

  const absl::Duration queued = now - request->queued_at;
  if (request->output.empty()) request->timings.queue += queued;
  probe_->OnPlaced(queued);
  if (attempt.number > 1) {
    probe_->OnMigration(request->output.empty() ? Migration::kNew : Migration::kOngoing);
  }
  queue_.CountPlaced(request->usage.prompt_tokens, now);
  SendAdmits(*request, now);
}

void RouterCore::Impl::SendAdmits(const Request& request, absl::Time now) {
  const GenerationRequest& spec = request.spec;
  const Attempt& attempt = *request.attempt;
  sluice::v1::RouterMessage message;
  sluice::v1::Admit* admit = message.mutable_admit();
  admit->set_request(request.id);
  admit->set_attempt(attempt.number);
  admit->set_request_id(spec.name);
  admit->mutable_prompt_ids()->Add(spec.prompt->ids.begin(), spec.prompt->ids.end());
  admit->mutable_output_ids()->Add(request.output.begin(), request.output.end());
  *admit->mutable_sampling() = spec.sampling;
  admit->set_page_hashes(spec.prompt->page_hashes);
  admit->set_page_hash_seed(spec.prompt->page_hash_seed);
  admit->set_priority(spec.priority);
  admit->set_deadline_ms(DeadlineMs(spec.deadline, now));
  admit->set_may_hand_back(request.handbacks < kHandbacksMax);
  if (attempt.mixed) {
    admit->set_leg(sluice::v1::LEG_BOTH);
    Send(attempt.prefill, std::move(message));
    return;
  }
  // The decode first: the prefill is to hear of the lease early.
  admit->set_leg(sluice::v1::LEG_DECODE);
  Send(attempt.decode, message);
  admit->set_leg(sluice::v1::LEG_PREFILL);
  Send(attempt.prefill, std::move(message));
}

void RouterCore::Impl::EndAttempt(Request* request, WorkerId not_told) {
  const Attempt& attempt = *request->attempt;
  sluice::v1::RouterMessage message;
  message.mutable_cancel()->set_request(request->id);
  message.mutable_cancel()->set_attempt(attempt.number);
  const auto release = [&](WorkerId id, const Share& share) {
    if (id == 0) return;
    FindWorker(id)->Release(request->id, share);
    if (id != not_told) Send(id, message);
  };
  release(attempt.prefill, attempt.prefill_share);
  if (!attempt.mixed) release(attempt.decode, attempt.decode_share);
  request->attempt.reset();
}

void RouterCore::Impl::ReleasePrefill(Request* request) {
  Attempt& attempt = *request->attempt;
  if (attempt.mixed || attempt.prefill == 0) return;
  FindWorker(attempt.prefill)->Release(request->id, attempt.prefill_share);
  attempt.prefill = 0;
}

void RouterCore::Impl::FailAttempt(Request* request, WorkerId not_told, Failure failure,
                                   absl::Time now) {
  LogInfo("attempt failed", {{"request_id", request->spec.name},
                             {"attempt", request->attempts},
                             {"reason", failure.reason},
                             {"detail", failure.detail}});
  EndAttempt(request, not_told);
  probe_->OnAttemptFailed(failure.reason);
  ++request->failed;
  for (WorkerId suspect : failure.suspects) {
    if (suspect != 0 && !Contains(request->failed_on, suspect))
      request->failed_on.push_back(suspect);
  }
  if (request->failed < kFailedAttemptsMax) return Replace(request, now);
  EndWithError(request,
               WithRetryAfter(absl::UnavailableError(
                                  absl::StrCat(request->failed, " attempts have failed, the last: ",
                                               failure.reason, " ", failure.detail)),
                              kFailedRetry),
               now);
}

void RouterCore::Impl::HandBack(Request* request, Worker* worker, bool counted, absl::Time now) {
  if (counted && request->handbacks >= kHandbacksMax) {
    return FailAttempt(
        request, worker->id(),
        {.reason = "protocol", .detail = "handed back too often", .suspects = {worker->id()}}, now);
  }
  worker->CloseUntilHeartbeat();
  EndAttempt(request, worker->id());
  probe_->OnHandedBack();
  if (counted) ++request->handbacks;
  Replace(request, now);
}

void RouterCore::Impl::Replace(Request* request, absl::Time now) {
  if (request->refusals <= kRefusalsMax) return Enqueue(request, now);
  EndWithError(
      request,
      WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                         "instances have refused the request ", request->refusals, " times")),
                     kFailedRetry),
      now);
}

void RouterCore::Impl::EndWithError(Request* request, absl::Status status, absl::Time now) {
  LogInfo("request failed", {{"request_id", request->spec.name}, {"error", status.ToString()}});
  const std::unique_ptr<Request> ended = Remove(request, status.code(), now);
  ended->sink->OnError(status);
}

std::unique_ptr<Request> RouterCore::Impl::Remove(Request* request, absl::StatusCode code,
                                                  absl::Time now) {
  if (request->attempt) {
    EndAttempt(request, /*not_told=*/0);
  } else if (request->parked_at) {
    parked_.erase(request->id);
    parked_tokens_ -= request->usage.prompt_tokens;
  } else {
    queue_.Erase(request->waiting());
  }
  timers_.erase({request->timer, request->id});
  request->timings.total = now - request->submitted;
  CountTargets(code, *request);
  probe_->OnRequestEnd(code, request->usage, request->timings);
  auto node = requests_.extract(request->id);
  return std::move(node.mapped());
}

void RouterCore::Impl::FailAllOn(WorkerId worker, absl::string_view how, absl::Time now) {
  // A worker whose stream is gone hears nothing any more; one that only stands still is told.
  const WorkerId not_told = how == "gone" ? worker : 0;
  const std::string reason = absl::StrCat("worker_", how);
  const absl::btree_set<RequestId> requests = FindWorker(worker)->requests();
  LogWarn("worker failed", {{"worker", FindWorker(worker)->hello().instance()},
                            {"reason", how},
                            {"requests", requests.size()}});
  for (RequestId id : requests) {
    // A sink may have cancelled it, or what it was on may be over.
    Request* request = FindRequest(id);
    if (request == nullptr || !request->attempt) continue;
    if (request->attempt->prefill != worker && request->attempt->decode != worker) continue;
    FailAttempt(
        request, not_told,
        {.reason = reason, .detail = FindWorker(worker)->hello().instance(), .suspects = {worker}},
        now);
  }
}

}  // namespace sluice::router
