// What workers say, and what follows from it.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/router/router_impl.h"

namespace sluice::router {

namespace v1 = sluice::v1;

void RouterCore::Impl::OnWorkerMessage(WorkerId id, const v1::WorkerMessage& message,
                                       absl::Time now) {
  Worker* worker = FindWorker(id);
  if (worker == nullptr) return;
  switch (message.message_case()) {
    case v1::WorkerMessage::kHeartbeat:
      return OnHeartbeat(worker, message.heartbeat(), now);
    case v1::WorkerMessage::kRefused:
      return OnRefused(worker, message.refused(), now);
    case v1::WorkerMessage::kLeased:
      return OnLeased(worker, message.leased(), now);
    case v1::WorkerMessage::kKvReady:
      return OnKvReady(worker, message.kv_ready(), now);
    case v1::WorkerMessage::kStepTokens:
      // By id: a sink may do anything in between.
      for (const v1::RequestTokens& tokens : message.step_tokens().requests())
        OnTokens(id, tokens, now);
      return Pump(now);
    case v1::WorkerMessage::kAttemptEnded:
      return OnAttemptEnded(worker, message.attempt_ended(), now);
    case v1::WorkerMessage::kKvEvents:
      return OnKvEvents(worker, message.kv_events());
    case v1::WorkerMessage::kHello:
    case v1::WorkerMessage::MESSAGE_NOT_SET:
      return;
  }
}

Request* RouterCore::Impl::Find(WorkerId worker, RequestId id, uint32_t attempt) {
  Request* request = FindRequest(id);
  if (request == nullptr || !request->attempt || request->attempt->number != attempt)
    return nullptr;
  const bool has_part = request->attempt->prefill == worker || request->attempt->decode == worker;
  return has_part ? request : nullptr;
}

void RouterCore::Impl::OnHeartbeat(Worker* worker, const v1::Heartbeat& heartbeat, absl::Time now) {
  const bool placeable_before = worker->placeable();
  worker->OnHeartbeat(heartbeat, now);
  if (worker->placeable() && !placeable_before) Unpark(now);
  Pump(now);
}

void RouterCore::Impl::OnRefused(Worker* worker, const v1::Refused& refused, absl::Time now) {
  Request* request = Find(worker->id(), refused.request(), refused.attempt());
  if (request == nullptr) return;
  probe_->OnRefusedByWorker();
  EndAttempt(request, worker->id());
  ++request->refusals;
  if (refused.code() == v1::Refused::CODE_INVALID) {
    EndWithError(request, absl::InvalidArgumentError(refused.reason()), now);
    return Pump(now);
  }
  worker->CloseUntilHeartbeat();
  if (refused.code() == v1::Refused::CODE_DRAINING) worker->SetDraining();
  Replace(request, now);
  Pump(now);
}

void RouterCore::Impl::OnLeased(Worker* worker, const v1::Leased& leased, absl::Time now) {
  Request* request = Find(worker->id(), leased.request(), leased.attempt());
  if (request == nullptr) return;
  Attempt& attempt = *request->attempt;
  if (attempt.mixed || worker->id() != attempt.decode || attempt.leased) {
    FailAttempt(request, /*not_told=*/0,
                {.reason = "protocol",
                 .detail = "a lease that nobody waits for",
                 .suspects = {worker->id()}},
                now);
    return Pump(now);
  }
  attempt.leased = true;
  v1::RouterMessage message;
  message.mutable_grant_lease()->set_request(request->id);
  message.mutable_grant_lease()->set_attempt(attempt.number);
  *message.mutable_grant_lease()->mutable_lease() = leased.lease();
  Send(attempt.prefill, std::move(message));
}

void RouterCore::Impl::OnKvReady(Worker* worker, const v1::KvReady& ready, absl::Time now) {
  Request* request = Find(worker->id(), ready.request(), ready.attempt());
  if (request == nullptr) return;
  Attempt& attempt = *request->attempt;
  if (worker->id() != attempt.decode || !attempt.leased) {
    FailAttempt(request, /*not_told=*/0,
                {.reason = "protocol", .detail = "KV of no lease", .suspects = {worker->id()}},
                now);
    return Pump(now);
  }
  attempt.kv_ready = true;
  request->timings.transfer = absl::Milliseconds(ready.transfer_ms());
  probe_->OnKvTransfer(static_cast<int64_t>(ready.bytes()), request->timings.transfer);
  if (attempt.first_token) ReleasePrefill(request);
}

void RouterCore::Impl::OnTokens(WorkerId worker, const v1::RequestTokens& message, absl::Time now) {
  Request* request = Find(worker, message.request(), message.attempt());
  if (request == nullptr) return;
  Attempt& attempt = *request->attempt;
  const auto fail = [&](absl::string_view reason, std::string detail) {
    FailAttempt(request, /*not_told=*/0,
                {.reason = reason, .detail = std::move(detail), .suspects = {worker}}, now);
  };

  if (message.finish() == v1::FINISH_DAMAGED) return fail("damaged", "logits that are not finite");
  const absl::Span<const uint32_t> tokens(message.token_ids().data(), message.token_ids_size());
  const uint32_t max_tokens = request->spec.sampling.max_tokens();
  const absl::StatusOr<size_t> known =
      CheckAgainstLog(request->output, message.first_output(), tokens, max_tokens);
  if (!known.ok()) return fail("protocol", std::string(known.status().message()));
  const int64_t news = static_cast<int64_t>(tokens.size() - *known);
  const bool of_prefill = !attempt.mixed && worker == attempt.prefill;
  if (news == 0) {
    if (message.finish() != v1::FINISH_UNSPECIFIED) fail("protocol", "an end without a token");
    return;
  }
  if (of_prefill && (news != 1 || attempt.first_token))
    return fail("protocol", "a prefill samples one token");
  if (!of_prefill && !attempt.mixed && !(attempt.first_token && attempt.kv_ready)) {
    return fail("protocol", "a decoded token before the prefill's first or without KV");
  }
  const bool wants_logprobs = request->spec.sampling.num_logprobs() >= 0;
  if (wants_logprobs && message.logprobs_size() != message.token_ids_size()) {
    return fail("protocol",
                absl::StrCat(message.logprobs_size(), " logprobs for ", tokens.size(), " tokens"));
  }

  if (!attempt.first_token) {
    OnFirstToken(request, message, now);
  } else {
    probe_->OnTokens(news, now - request->last_output);
  }
  request->last_output = now;
  request->output.insert(request->output.end(), tokens.begin() + *known, tokens.end());
  request->usage.output_tokens = static_cast<uint32_t>(request->output.size());
  v1::Finish finish = message.finish();
  // Whoever sampled it did not see that it was the last.
  if (request->output.size() >= max_tokens && finish == v1::FINISH_UNSPECIFIED)
    finish = v1::FINISH_LENGTH;
  // An instance that holds less than others do has come to its end, not the request.
  const bool cut_short = finish == v1::FINISH_LENGTH && request->output.size() < max_tokens;
  if (cut_short) finish = v1::FINISH_UNSPECIFIED;

  if (of_prefill && finish == v1::FINISH_UNSPECIFIED) {
    v1::RouterMessage start;
    start.mutable_start_decode()->set_request(request->id);
    start.mutable_start_decode()->set_attempt(attempt.number);
    start.mutable_start_decode()->set_first_output(message.first_output() +
                                                   static_cast<uint32_t>(*known));
    start.mutable_start_decode()->add_token_ids(tokens.back());
    Send(attempt.decode, std::move(start));
    if (attempt.kv_ready) ReleasePrefill(request);
  }

  request->timings.total = now - request->submitted;
  Output output;
  output.token_ids = tokens.subspan(*known);
  output.logprobs = wants_logprobs ? &message.logprobs() : nullptr;
  output.logprobs_offset = static_cast<int>(*known);
  output.finish = finish;
  output.usage = request->usage;
  output.timings = request->timings;
  GenerationSink* const sink = request->sink;
  if (finish != v1::FINISH_UNSPECIFIED) {
    EndAttempt(request, message.finish() == finish ? worker : 0);
    Remove(request, absl::StatusCode::kOk, now);
  }
  const RequestId id = message.request();
  sink->OnOutput(output);
  // The sink may have cancelled it.
  if (cut_short && !of_prefill && FindRequest(id) == request && request->attempt) {
    HandBack(request, FindWorker(worker), /*counted=*/true, now);
  }
}

void RouterCore::Impl::OnFirstToken(Request* request, const v1::RequestTokens& message,
                                    absl::Time now) {
  Attempt& attempt = *request->attempt;
  attempt.first_token = true;
  // Its prompt has been computed: it does not wait for that any more.
  FindWorker(attempt.prefill)->Computed(attempt.prefill_share.tokens);
  attempt.prefill_share.tokens = 0;
  if (!request->output.empty()) {  // only of a later attempt
    probe_->OnTokens(1, now - request->last_output);
    return;
  }
  request->usage.cached_tokens = std::min(message.cached_tokens(), request->usage.prompt_tokens);
  request->timings.queue += absl::Milliseconds(message.queued_ms());
  request->timings.prefill = absl::Milliseconds(message.compute_ms());
  request->timings.first_token = now - request->submitted;
  probe_->OnFirstToken(request->timings.first_token);
}

void RouterCore::Impl::OnAttemptEnded(Worker* worker, const v1::AttemptEnded& ended,
                                      absl::Time now) {
  Request* request = Find(worker->id(), ended.request(), ended.attempt());
  if (request == nullptr) return;
  const Attempt& attempt = *request->attempt;
  switch (ended.reason()) {
    case v1::AttemptEnded::REASON_HANDED_BACK:
    case v1::AttemptEnded::REASON_DRAINING:
      HandBack(request, worker, ended.reason() == v1::AttemptEnded::REASON_HANDED_BACK, now);
      break;
    case v1::AttemptEnded::REASON_DEADLINE:
      if (request->spec.deadline != absl::InfiniteFuture()) {
        EndAttempt(request, worker->id());
        EndWithError(request, absl::DeadlineExceededError("the deadline has passed on an instance"),
                     now);
        break;
      }
      FailAttempt(request, worker->id(),
                  {.reason = "protocol",
                   .detail = "a deadline that is not set",
                   .suspects = {worker->id()}},
                  now);
      break;
    case v1::AttemptEnded::REASON_KV_FAILED:
      // Between the two: either may be at fault.
      FailAttempt(request, worker->id(),
                  {.reason = "kv_failed",
                   .detail = ended.detail(),
                   .suspects = {attempt.prefill, attempt.decode}},
                  now);
      break;
    default:
      worker->CloseUntilHeartbeat();
      FailAttempt(request, worker->id(),
                  {.reason = "engine", .detail = ended.detail(), .suspects = {worker->id()}}, now);
  }
  Pump(now);
}

void RouterCore::Impl::OnKvEvents(Worker* worker, const v1::KvEvents& events) {
  switch (worker->kv().Apply(events)) {
    case KvEventsResult::kApplied:
      return probe_->OnKvEvents("applied");
    case KvEventsResult::kSnapshot:
      return probe_->OnKvEvents("snapshot");
    case KvEventsResult::kWaiting:
      return probe_->OnKvEvents("waiting");
    case KvEventsResult::kGap:
      break;
  }
  probe_->OnKvEvents("gap");
  v1::RouterMessage message;
  message.mutable_request_kv_snapshot();
  Send(worker->id(), std::move(message));
}

}  // namespace sluice::router
