#include "services/instance/instance_core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/ops/attention.h"
#include "services/base/log.h"
#include "services/instance/wire.h"

namespace sluice::instance {
namespace {

bool Takes(v1::Role role, v1::Leg leg) {
  switch (role) {
    case v1::ROLE_PREFILL:
      return leg == v1::LEG_PREFILL;
    case v1::ROLE_DECODE:
      return leg == v1::LEG_DECODE;
    case v1::ROLE_MIXED:
      return leg == v1::LEG_BOTH;
    default:
      return false;
  }
}

uint32_t Milliseconds(absl::Duration duration) {
  return static_cast<uint32_t>(std::max<int64_t>(0, absl::ToInt64Milliseconds(duration)));
}

void AppendHashes(const std::vector<model::PageHash>& hashes, std::string* bytes) {
  for (const model::PageHash& hash : hashes) {
    bytes->append(reinterpret_cast<const char*>(hash.data()), hash.size());
  }
}

}  // namespace

InstanceCore::InstanceCore(const CoreOptions& options, CorePorts ports)
    : options_(options),
      ports_(std::move(ports)),
      scheduler_(options.scheduler),
      kv_push_(options.layers, ports_.sender),
      random_(options.random_seed) {}

// --- Routers come and go ---

void InstanceCore::OnRouterAttached(RouterId router, absl::Time now) {
  PublishKvEvents();  // so that the snapshot and the events after it fit
  kv_sequences_[router] = 0;
  SendSnapshot(router);
  v1::WorkerMessage message;
  *message.mutable_heartbeat() = MakeHeartbeat(now);
  ports_.routers->Send(router, std::move(message));
}

void InstanceCore::OnRouterGone(RouterId router, absl::Time) {
  kv_sequences_.erase(router);
  std::vector<Attempt*> gone;
  for (const auto& [key, attempt] : attempts_) {
    if (key.router == router) gone.push_back(attempt.get());
  }
  counters_.cancelled += static_cast<int64_t>(gone.size());
  for (Attempt* attempt : gone) Forget(attempt);
}

void InstanceCore::OnRouterMessage(RouterId router, const v1::RouterMessage& message,
                                   absl::Time now) {
  if (!kv_sequences_.contains(router)) return;  // late: it is gone
  switch (message.message_case()) {
    case v1::RouterMessage::kAdmit:
      Admit(router, message.admit(), now);
      return;
    case v1::RouterMessage::kGrantLease: {
      const v1::GrantLease& grant = message.grant_lease();
      Attempt* attempt = Find(router, grant.request(), grant.attempt());
      if (attempt != nullptr) GrantLease(grant, attempt);
      return;
    }
    case v1::RouterMessage::kStartDecode: {
      const v1::StartDecode& start = message.start_decode();
      Attempt* attempt = Find(router, start.request(), start.attempt());
      if (attempt != nullptr) StartDecode(start, attempt);
      return;
    }
    case v1::RouterMessage::kCancel: {
      Attempt* attempt = Find(router, message.cancel().request(), message.cancel().attempt());
      if (attempt == nullptr) return;
      ++counters_.cancelled;
      Forget(attempt);
      return;
    }
    case v1::RouterMessage::kRequestKvSnapshot:
      PublishKvEvents();
      SendSnapshot(router);
      return;
    case v1::RouterMessage::kWelcome:  // the stream's business
    case v1::RouterMessage::MESSAGE_NOT_SET:
      return;
  }
}

InstanceCore::Attempt* InstanceCore::Find(RouterId router, uint64_t request, uint32_t attempt) {
  const auto it = attempts_.find(Key{router, request, attempt});
  return it == attempts_.end() ? nullptr : it->second.get();
}

InstanceCore::Attempt* InstanceCore::FindById(uint64_t id) {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : it->second;
}

// --- Admission ---

void InstanceCore::Admit(RouterId router, const v1::Admit& admit, absl::Time now) {
  const Key key{router, admit.request(), admit.attempt()};
  if (attempts_.contains(key)) return;  // said twice: the first one counts
  if (draining_) return Refuse(key, v1::Refused::CODE_DRAINING, "draining");
  if (!failure_.ok()) return Refuse(key, v1::Refused::CODE_DRAINING, "the engine has failed");
  if (!Takes(options_.role, admit.leg())) {
    return Refuse(key, v1::Refused::CODE_INVALID,
                  absl::StrCat("leg ", v1::Leg_Name(admit.leg()), " is not for an instance of ",
                               v1::Role_Name(options_.role)));
  }
  auto attempt = std::make_unique<Attempt>();
  attempt->key = key;
  attempt->leg = admit.leg();
  attempt->id = next_id_++;
  attempt->request_id = admit.request_id();
  attempt->known_tokens = admit.prompt_ids_size() + admit.output_ids_size();
  attempt->next_output = admit.output_ids_size();
  attempt->num_logprobs = admit.sampling().num_logprobs();
  attempt->admitted = now;
  if (admit.deadline_ms() > 0) attempt->deadline = now + absl::Milliseconds(admit.deadline_ms());
  if (const absl::Status status = AdmitChecked(attempt.get(), admit); !status.ok()) {
    // Only what is wrong with the request itself is final; all else may work elsewhere, or later.
    const bool invalid = absl::IsInvalidArgument(status);
    return Refuse(key, invalid ? v1::Refused::CODE_INVALID : v1::Refused::CODE_NO_ROOM,
                  status.message());
  }
  ++counters_.admitted;
  by_id_.emplace(attempt->id, attempt.get());
  if (attempt->leg == v1::LEG_DECODE) ++num_waiting_kv_;
  attempts_.emplace(key, std::move(attempt));
}

absl::Status InstanceCore::AdmitChecked(Attempt* attempt, const v1::Admit& admit) {
  SLUICE_ASSIGN_OR_RETURN(engine::Request request, MakeRequest(admit));
  request.id = attempt->id;
  switch (attempt->leg) {
    case v1::LEG_DECODE:
      request.leg = engine::Leg::kDecode;
      request.may_hand_back = admit.may_hand_back();
      return AdmitDecode(attempt, std::move(request));
    case v1::LEG_PREFILL:
      request.leg = engine::Leg::kPrefill;
      SLUICE_RETURN_IF_ERROR(scheduler_.Add(std::move(request)));
      kv_push_.Add(attempt->id, attempt->known_tokens);
      return absl::OkStatus();
    default:
      request.leg = engine::Leg::kWhole;
      return scheduler_.Add(std::move(request));
  }
}

// Reserves pages and promises them to the prefill.
absl::Status InstanceCore::AdmitDecode(Attempt* attempt, engine::Request request) {
  RetryFences();  // a page cannot be leased while the receiver holds it for the lease before
  SLUICE_ASSIGN_OR_RETURN(const engine::Reservation reservation,
                          scheduler_.Reserve(std::move(request)));
  v1::WorkerMessage message;
  v1::Leased& leased = *message.mutable_leased();
  leased.set_request(attempt->key.request);
  leased.set_attempt(attempt->key.attempt);
  v1::Lease& lease = *leased.mutable_lease();
  attempt->lease = next_lease_++;
  lease.set_lease(attempt->lease);
  lease.set_checksum_key(random_());
  lease.set_first_page(static_cast<uint32_t>(reservation.first_page));
  for (const int32_t page : reservation.pages) lease.add_pages(static_cast<uint32_t>(page));
  lease.set_endpoint(ports_.receiver->endpoint());
  lease.set_incarnation(ports_.receiver->incarnation());
  const int64_t rows =
      std::max<int64_t>(0, attempt->known_tokens - reservation.first_page * kPageTokens);
  if (absl::Status status = ports_.receiver->Open(lease, rows, ports_.on_arrived); !status.ok()) {
    scheduler_.Cancel(attempt->id, engine::PageFate::kFree).IgnoreError();
    return status;
  }
  leases_.emplace(attempt->lease, attempt->id);
  ports_.routers->Send(attempt->key.router, std::move(message));
  return absl::OkStatus();
}

void InstanceCore::Refuse(const Key& key, v1::Refused::Code code, absl::string_view reason) {
  ++counters_.refused;
  v1::WorkerMessage message;
  v1::Refused& refused = *message.mutable_refused();
  refused.set_request(key.request);
  refused.set_attempt(key.attempt);
  refused.set_code(code);
  refused.set_reason(std::string(reason));
  ports_.routers->Send(key.router, std::move(message));
}

// --- KV ---

void InstanceCore::GrantLease(const v1::GrantLease& grant, Attempt* attempt) {
  if (attempt->leg != v1::LEG_PREFILL || attempt->granted) return;
  attempt->granted = true;
  const v1::Lease& lease = grant.lease();
  const int64_t end = int64_t{lease.first_page()} + lease.pages_size();
  if (end != PagesFor(attempt->known_tokens)) {
    EndAttempt(attempt, v1::AttemptEnded::REASON_KV_FAILED,
               absl::StrCat("the lease ends at page ", end, ", the KV at page ",
                            PagesFor(attempt->known_tokens)));
    return;
  }
  const auto transfer = ports_.sender->Begin(lease, options_.kv_timeout, ports_.on_sent);
  if (!transfer.ok()) {
    EndAttempt(attempt, v1::AttemptEnded::REASON_KV_FAILED, transfer.status().ToString());
    return;
  }
  attempt->transfer = *transfer;
  transfers_.emplace(*transfer, attempt->id);
  kv_push_.Grant(attempt->id, *transfer, lease.first_page());
}

void InstanceCore::OnKvSent(transport::TransferId transfer, const absl::Status& status,
                            absl::Time) {
  const auto it = transfers_.find(transfer);
  if (it == transfers_.end()) return;
  const uint64_t id = it->second;
  transfers_.erase(it);
  Attempt* attempt = FindById(id);
  if (attempt == nullptr) {  // was ended before; its pages waited for this
    scheduler_.ReleaseHeld(id);
    return;
  }
  attempt->transfer.reset();
  if (!status.ok()) {
    ++counters_.kv_failures;
    EndAttempt(attempt, v1::AttemptEnded::REASON_KV_FAILED, status.ToString());
    return;
  }
  attempt->kv_sent = true;
  if (attempt->has_output) Forget(attempt);
}

void InstanceCore::OnKvArrived(const transport::LeaseResult& result, absl::Time) {
  const auto it = leases_.find(result.lease);
  if (it == leases_.end()) return;
  Attempt* attempt = FindById(it->second);
  if (!result.status.ok()) {
    ++counters_.kv_failures;
    EndAttempt(attempt, v1::AttemptEnded::REASON_KV_FAILED, result.status.ToString());
    return;
  }
  leases_.erase(it);
  counters_.kv_bytes_received += result.bytes;
  // Nothing writes to its pages any more; if the receiver does not know yet, it is asked again.
  if (!CloseLease(attempt->lease)) fences_.push_back({attempt->lease, std::nullopt});
  attempt->lease = 0;
  attempt->kv_ready = true;
  v1::WorkerMessage message;
  v1::KvReady& ready = *message.mutable_kv_ready();
  ready.set_request(attempt->key.request);
  ready.set_attempt(attempt->key.attempt);
  ready.set_bytes(static_cast<uint64_t>(result.bytes));
  ready.set_transfer_ms(Milliseconds(result.duration));
  ports_.routers->Send(attempt->key.router, std::move(message));
  StartIfReady(attempt);
}

void InstanceCore::StartDecode(const v1::StartDecode& start, Attempt* attempt) {
  if (attempt->leg != v1::LEG_DECODE || attempt->start.has_value()) return;
  if (int64_t{start.first_output()} != attempt->next_output || start.token_ids().empty()) {
    EndAttempt(
        attempt, v1::AttemptEnded::REASON_UNSPECIFIED,
        absl::StrCat("StartDecode has ", start.token_ids_size(), " tokens from output ",
                     start.first_output(), " on; the next output is ", attempt->next_output));
    return;
  }
  attempt->start.emplace(start.token_ids().begin(), start.token_ids().end());
  StartIfReady(attempt);
}

void InstanceCore::StartIfReady(Attempt* attempt) {
  if (!attempt->kv_ready || !attempt->start.has_value()) return;
  if (const absl::Status status = scheduler_.Start(attempt->id, *attempt->start); !status.ok()) {
    const bool room = absl::IsResourceExhausted(status);
    EndAttempt(attempt,
               room ? v1::AttemptEnded::REASON_HANDED_BACK : v1::AttemptEnded::REASON_UNSPECIFIED,
               status.message());
    return;
  }
  attempt->started = true;
  attempt->next_output += static_cast<int64_t>(attempt->start->size());
  --num_waiting_kv_;
}

// True: the fence stands.
bool InstanceCore::CloseLease(uint64_t lease) {
  return ports_.receiver->Close(lease, absl::ZeroDuration()).ok();
}

void InstanceCore::RetryFences() {
  const auto stands = [&](const Fence& fence) {
    if (!CloseLease(fence.lease)) return false;
    if (fence.quarantined.has_value()) scheduler_.ReleaseQuarantined(*fence.quarantined);
    return true;
  };
  fences_.erase(std::remove_if(fences_.begin(), fences_.end(), stands), fences_.end());
}

// --- Steps ---

const engine::StepPlan* InstanceCore::NextPlan(absl::Time now) {
  if (!failure_.ok()) return nullptr;
  const engine::StepPlan* plan = scheduler_.NextPlan();
  if (plan != nullptr) OnPlanned(*plan, now);
  return plan;
}

void InstanceCore::OnPlanned(const engine::StepPlan& plan, absl::Time now) {
  int64_t prompt_tokens = 0;
  const absl::Span<const engine::PlannedChunk> planned = scheduler_.planned();
  for (size_t i = 0; i < planned.size(); ++i) {
    const engine::PlannedChunk& chunk = planned[i];
    Attempt* attempt = FindById(chunk.request_id);
    attempt->first_planned = std::min(attempt->first_planned, now);
    if (attempt->leg == v1::LEG_PREFILL) {
      kv_push_.OnPlanned(plan.number, chunk.request_id, chunk.first_position, chunk.count,
                         plan.chunks[i].pages);
    }
    if (attempt->leg != v1::LEG_DECODE) {
      const int64_t end = std::min(chunk.first_position + chunk.count, attempt->known_tokens);
      prompt_tokens += std::max<int64_t>(0, end - chunk.first_position);
    }
  }
  counters_.prompt_tokens_computed += prompt_tokens;
  step_times_.OnSubmit(now, prompt_tokens);
}

void InstanceCore::OnStepResult(const engine::StepResult& result, absl::Time now) {
  last_step_ = step_times_.OnResult(now);
  ++counters_.steps;
  events_.clear();
  scheduler_.OnResult(result, &events_);
  absl::flat_hash_map<RouterId, v1::StepTokens> messages;
  for (const engine::TokenEvent& event : events_) OnToken(event, now, &messages);
  for (auto& [router, tokens] : messages) {
    v1::WorkerMessage message;
    *message.mutable_step_tokens() = std::move(tokens);
    ports_.routers->Send(router, std::move(message));
  }
  PublishKvEvents();
}

void InstanceCore::OnToken(const engine::TokenEvent& event, absl::Time now,
                           absl::flat_hash_map<RouterId, v1::StepTokens>* messages) {
  Attempt* attempt = FindById(event.request_id);
  ++counters_.output_tokens;
  v1::StepTokens& step = (*messages)[attempt->key.router];
  // A step may give a request several tokens; they follow each other.
  v1::RequestTokens* tokens =
      step.requests_size() > 0 ? step.mutable_requests(step.requests_size() - 1) : nullptr;
  if (tokens == nullptr || tokens->request() != attempt->key.request ||
      tokens->attempt() != attempt->key.attempt) {
    tokens = step.add_requests();
    tokens->set_request(attempt->key.request);
    tokens->set_attempt(attempt->key.attempt);
    tokens->set_first_output(static_cast<uint32_t>(attempt->next_output));
  }
  AppendToken(event.token, attempt->num_logprobs, tokens);
  ++attempt->next_output;
  if (!attempt->has_output && attempt->leg != v1::LEG_DECODE) {
    counters_.prompt_tokens_cached += event.cached_tokens;
    tokens->set_cached_tokens(static_cast<uint32_t>(event.cached_tokens));
    tokens->set_queued_ms(Milliseconds(attempt->first_planned - attempt->admitted));
    tokens->set_compute_ms(Milliseconds(now - attempt->first_planned));
  }
  attempt->has_output = true;
  if (event.finish.has_value()) {
    tokens->set_finish(ToFinish(*event.finish));
    CountFinish(*event.finish);
    Forget(attempt);
  } else if (attempt->leg == v1::LEG_PREFILL && attempt->kv_sent) {
    Forget(attempt);
  }
}

void InstanceCore::CountFinish(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      ++counters_.finished_stop;
      return;
    case engine::FinishReason::kLength:
      ++counters_.finished_length;
      return;
    case engine::FinishReason::kDamaged:
      ++counters_.finished_damaged;
      return;
  }
}

void InstanceCore::OnEngineFailed(const absl::Status& status, absl::Time) {
  failure_ = status;
  EndAll(v1::AttemptEnded::REASON_ENGINE, status.ToString());
}

// --- Attempts end ---

void InstanceCore::EndAttempt(Attempt* attempt, v1::AttemptEnded::Reason reason,
                              absl::string_view detail) {
  v1::WorkerMessage message;
  v1::AttemptEnded& ended = *message.mutable_attempt_ended();
  ended.set_request(attempt->key.request);
  ended.set_attempt(attempt->key.attempt);
  ended.set_reason(reason);
  ended.set_detail(std::string(detail));
  ports_.routers->Send(attempt->key.router, std::move(message));
  LogInfo("attempt ended", {{kRequestIdField, attempt->request_id},
                            {"attempt", attempt->key.attempt},
                            {"reason", v1::AttemptEnded::Reason_Name(reason)},
                            {"detail", detail}});
  switch (reason) {
    case v1::AttemptEnded::REASON_KV_FAILED:
      ++counters_.ended_kv_failed;
      break;
    case v1::AttemptEnded::REASON_HANDED_BACK:
    case v1::AttemptEnded::REASON_DRAINING:
      ++counters_.ended_handed_back;
      break;
    case v1::AttemptEnded::REASON_DEADLINE:
      ++counters_.ended_deadline;
      break;
    case v1::AttemptEnded::REASON_ENGINE:
      ++counters_.ended_engine;
      break;
    default:
      ++counters_.ended_other;
      break;
  }
  Forget(attempt);
}

void InstanceCore::EndAll(v1::AttemptEnded::Reason reason, absl::string_view detail) {
  while (!attempts_.empty()) EndAttempt(attempts_.begin()->second.get(), reason, detail);
}

void InstanceCore::Forget(Attempt* attempt) {
  switch (attempt->leg) {
    case v1::LEG_PREFILL:
      ForgetPrefill(attempt);
      break;
    case v1::LEG_DECODE:
      ForgetDecode(attempt);
      break;
    default:  // NotFound: it has just finished
      scheduler_.Cancel(attempt->id, engine::PageFate::kFree).IgnoreError();
      break;
  }
  by_id_.erase(attempt->id);
  attempts_.erase(Key(attempt->key));  // a copy: the map must not look at what it destroys
}

// Pages that the transport may still read stay until it says that it does not.
void InstanceCore::ForgetPrefill(Attempt* attempt) {
  kv_push_.Drop(attempt->id);
  const bool reading = attempt->transfer.has_value();
  if (reading) ports_.sender->Abort(*attempt->transfer);
  // Fails when its pages are held already, because it has given its token.
  scheduler_.Cancel(attempt->id, engine::PageFate::kHold).IgnoreError();
  if (!reading) scheduler_.ReleaseHeld(attempt->id);
}

// Pages that the receiver may still write to stay in quarantine until the fence stands.
void InstanceCore::ForgetDecode(Attempt* attempt) {
  if (!attempt->started) --num_waiting_kv_;
  leases_.erase(attempt->lease);
  const bool writing = attempt->lease != 0 && !CloseLease(attempt->lease);
  if (writing) fences_.push_back({attempt->lease, attempt->id});
  scheduler_.Cancel(attempt->id, writing ? engine::PageFate::kQuarantine : engine::PageFate::kFree)
      .IgnoreError();  // NotFound: it has just finished, or was handed back
}

// --- Time ---

void InstanceCore::OnTick(absl::Time now) {
  for (const uint64_t id : scheduler_.TakeHandedBack()) {
    Attempt* attempt = FindById(id);  // null: cancelled since
    if (attempt == nullptr) continue;
    EndAttempt(attempt, v1::AttemptEnded::REASON_HANDED_BACK, "out of KV pages");
  }
  RetryFences();
  EndOverdue(now);
  if (now >= drain_until_) {
    drain_until_ = absl::InfiniteFuture();
    EndAll(v1::AttemptEnded::REASON_DRAINING, "draining");
  }
  PublishKvEvents();
}

void InstanceCore::EndOverdue(absl::Time now) {
  std::vector<Attempt*> overdue;
  for (const auto& [key, attempt] : attempts_) {
    if (now >= std::min(attempt->deadline, PatienceEnd(*attempt))) overdue.push_back(attempt.get());
  }
  for (Attempt* attempt : overdue) {
    if (now >= attempt->deadline) {
      EndAttempt(attempt, v1::AttemptEnded::REASON_DEADLINE, "past its deadline");
    } else {
      ++counters_.kv_failures;
      EndAttempt(attempt, v1::AttemptEnded::REASON_KV_FAILED,
                 attempt->leg == v1::LEG_PREFILL ? "no lease came"
                 : attempt->kv_ready             ? "no StartDecode came"
                                                 : "KV did not come in time");
    }
  }
}

// Until when it may wait for somebody else.
absl::Time InstanceCore::PatienceEnd(const Attempt& attempt) const {
  if (attempt.leg == v1::LEG_PREFILL && !attempt.granted) {
    return attempt.admitted + options_.lease_timeout;
  }
  if (attempt.leg == v1::LEG_DECODE && !attempt.started) {
    return attempt.admitted + options_.kv_timeout;
  }
  return absl::InfiniteFuture();
}

void InstanceCore::BeginDrain(absl::Time now) {
  if (draining_) return;
  draining_ = true;
  drain_until_ = now + options_.drain_grace;
}

bool InstanceCore::drained() const {
  return draining_ && attempts_.empty() && transfers_.empty() && fences_.empty();
}

// --- What routers are told ---

v1::Heartbeat InstanceCore::MakeHeartbeat(absl::Time now) const {
  v1::Heartbeat heartbeat;
  heartbeat.set_longest_step_ms(Milliseconds(step_times_.longest(now)));
  heartbeat.set_ready(!draining_ && failure_.ok());
  heartbeat.set_draining(draining_);
  v1::Load& load = *heartbeat.mutable_load();
  const engine::SchedulerLoad scheduler = scheduler_.Load();
  const engine::KvPool& pool = scheduler_.kv_pool();
  load.set_running(static_cast<uint32_t>(scheduler.running + scheduler.reserved));
  load.set_waiting(static_cast<uint32_t>(scheduler.waiting));
  load.set_waiting_tokens(static_cast<uint64_t>(scheduler.waiting_tokens));
  load.set_kv_pages_free(static_cast<uint64_t>(pool.num_free()));
  load.set_kv_pages_cached(static_cast<uint64_t>(pool.num_cached()));
  load.set_kv_pages_quarantined(static_cast<uint64_t>(pool.num_quarantined()));
  load.set_prompt_speed(step_times_.prompt_speed());
  load.set_step_seconds(step_times_.step_seconds());
  load.set_preemptions(static_cast<uint64_t>(scheduler_.num_preemptions()));
  return heartbeat;
}

void InstanceCore::PublishKvEvents() {
  std::vector<model::PageHash> stored, removed;
  scheduler_.TakeKvEvents(&stored, &removed);
  if (stored.empty() && removed.empty()) return;
  v1::WorkerMessage message;
  v1::KvEvents& events = *message.mutable_kv_events();
  AppendHashes(stored, events.mutable_stored_hashes());
  AppendHashes(removed, events.mutable_removed_hashes());
  for (auto& [router, sequence] : kv_sequences_) {
    events.set_sequence(++sequence);
    ports_.routers->Send(router, message);
  }
}

// All that the cache has, as of the last PublishKvEvents.
void InstanceCore::SendSnapshot(RouterId router) {
  v1::WorkerMessage message;
  v1::KvEvents& events = *message.mutable_kv_events();
  events.set_sequence(++kv_sequences_.at(router));
  events.set_snapshot(true);
  AppendHashes(scheduler_.KvSnapshot(), events.mutable_stored_hashes());
  ports_.routers->Send(router, std::move(message));
}

}  // namespace sluice::instance
