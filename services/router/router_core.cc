#include "services/router/router_core.h"

#include <algorithm>
#include <optional>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/log.h"
#include "services/router/retry_hint.h"
#include "services/router/router_impl.h"

namespace sluice::router {
namespace {

constexpr absl::Duration kNoInstanceRetry = absl::Seconds(2);
constexpr absl::Duration kDrainingRetry = absl::Seconds(1);  // another router has it
// Ticks further apart mean that the process stood still, or was not scheduled.
constexpr absl::Duration kTickMax = absl::Milliseconds(200);
constexpr int64_t kSweptPerTick = 1 << 15;  // entries of the index: 64 ticks for all of 2 million

}  // namespace

absl::string_view InstanceStateName(InstanceState state) {
  switch (state) {
    case InstanceState::kLoading:
      return "loading";
    case InstanceState::kReady:
      return "ready";
    case InstanceState::kDraining:
      return "draining";
    case InstanceState::kWedged:
      return "wedged";
    case InstanceState::kDead:
      return "dead";
  }
  return "";
}

RouterCore::RouterCore(RouterOptions options, WorkerBus* bus, RouterProbe* probe)
    : impl_(std::make_unique<Impl>(std::move(options), bus, probe)) {}
RouterCore::~RouterCore() = default;

absl::StatusOr<RequestId> RouterCore::Submit(GenerationRequest request, GenerationSink* sink,
                                             absl::Time now) {
  return impl_->Submit(std::move(request), sink, now);
}
void RouterCore::Cancel(RequestId id, absl::Time now) { impl_->Cancel(id, now); }
absl::Status RouterCore::OnWorkerHello(WorkerId worker, const sluice::v1::Hello& hello,
                                       absl::Time now) {
  return impl_->OnWorkerHello(worker, hello, now);
}
void RouterCore::OnWorkerMessage(WorkerId worker, const sluice::v1::WorkerMessage& message,
                                 absl::Time now) {
  impl_->OnWorkerMessage(worker, message, now);
}
void RouterCore::OnWorkerGone(WorkerId worker, absl::Time now) { impl_->OnWorkerGone(worker, now); }
void RouterCore::OnTick(absl::Time now) { impl_->OnTick(now); }
void RouterCore::BeginDrain() { impl_->BeginDrain(); }
void RouterCore::EndAll(absl::Time now) { impl_->EndAll(now); }
bool RouterCore::idle() const { return impl_->idle(); }
bool RouterCore::CanPlace() const { return impl_->CanPlace(); }
RouterSnapshot RouterCore::Snapshot() const { return impl_->Snapshot(); }

std::string RouterCore::KvLayoutHash() const { return impl_->KvLayoutHash(); }

RouterCore::Impl::Impl(RouterOptions options, WorkerBus* bus, RouterProbe* probe)
    : options_(std::move(options)),
      bus_(bus),
      probe_(probe != nullptr ? probe : &no_probe_),
      index_(options_.indexed_pages_max),
      queue_(options_.queued_requests_max, options_.queued_tokens_max),
      matched_pages_(kIndexedWorkersMax) {}

absl::StatusOr<int64_t> RouterCore::Impl::CheckRequest(const GenerationRequest& request,
                                                       absl::Time now) const {
  const auto refuse = [this](absl::string_view reason, absl::Status status) {
    probe_->OnRejected(reason);
    return status;
  };
  if (draining_) {
    return refuse("draining", WithRetryAfter(absl::UnavailableError("this router is draining"),
                                             kDrainingRetry));
  }
  if (request.prompt == nullptr || request.prompt->ids.empty()) {
    return refuse("invalid", absl::InvalidArgumentError("prompt: no tokens"));
  }
  const Prompt& prompt = *request.prompt;
  const size_t hashes = prompt.ids.size() / kPageTokens * kPageHashBytes;
  if (prompt.page_hashes.size() != (prompt.page_hash_seed.empty() ? 0 : hashes)) {
    return refuse("invalid", absl::InvalidArgumentError(absl::StrCat(
                                 "page_hashes: ", prompt.page_hashes.size(), " bytes for ",
                                 prompt.ids.size(), " tokens, not ", hashes)));
  }
  if (request.sampling.max_tokens() < 1) {
    return refuse("invalid", absl::InvalidArgumentError("max_tokens: 0, at least 1 is needed"));
  }
  if (now >= request.deadline) {
    return refuse("timeout",
                  absl::DeadlineExceededError("the deadline had passed when the request came"));
  }
  if (!CanPlace()) {
    return refuse("no_endpoint",
                  WithRetryAfter(absl::UnavailableError("no instance is ready"), kNoInstanceRetry));
  }
  const SequenceLimit longest = LongestSequence(DescribeAll(/*placeable_only=*/false));
  if (static_cast<int64_t>(prompt.ids.size()) + 1 > longest.tokens) {
    return refuse("invalid", absl::OutOfRangeError(absl::StrCat(
                                 "the prompt's ", prompt.ids.size(),
                                 " tokens and one of output are more than the ", longest.tokens,
                                 " that the largest instances hold (", longest.limited_by, ")")));
  }
  const int64_t parked_tokens = parked_tokens_ + static_cast<int64_t>(prompt.ids.size());
  if (static_cast<int64_t>(parked_.size()) >= options_.queued_requests_max ||
      (!parked_.empty() && parked_tokens > options_.queued_tokens_max)) {
    return refuse(
        "queue_full",
        WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                           parked_.size(), " requests with ", parked_tokens_,
                           " prompt tokens wait for an instance that could take them to "
                           "come back; allowed are ",
                           options_.queued_requests_max, " with ", options_.queued_tokens_max)),
                       kNoInstanceRetry));
  }
  absl::Status room =
      queue_.CheckRoom(request.priority, static_cast<int64_t>(prompt.ids.size()), now);
  if (!room.ok()) return refuse("queue_full", std::move(room));
  const absl::Duration ttft = TargetsOf(request.priority).ttft;
  const absl::Duration wait = queue_.WaitOf(request.priority, now);
  if (ttft > absl::ZeroDuration() && wait > ttft) {
    return refuse(
        "ttft_target",
        WithRetryAfter(
            absl::ResourceExhaustedError(absl::StrCat(
                "class ", ClassOf(request.priority), " is to get its first token within ",
                absl::FormatDuration(ttft), ", and what waits before this request takes about ",
                absl::FormatDuration(absl::Trunc(wait, absl::Milliseconds(100))))),
            wait - ttft));
  }
  return longest.tokens;
}

ClassTargets RouterCore::Impl::TargetsOf(uint32_t priority) const {
  const size_t klass = ClassOf(priority);
  return klass < options_.class_targets.size() ? options_.class_targets[klass] : ClassTargets();
}

void RouterCore::Impl::CountTargets(absl::StatusCode code, const Request& request) {
  const ClassTargets targets = TargetsOf(request.spec.priority);
  const uint32_t klass = ClassOf(request.spec.priority);
  const Timings& timings = request.timings;
  const int64_t tokens = request.usage.output_tokens;
  // Who gave up before a token came says nothing; who was let down before one has missed it.
  if (targets.ttft > absl::ZeroDuration() && (tokens > 0 || code != absl::StatusCode::kCancelled)) {
    probe_->OnTarget("ttft", klass, tokens > 0 && timings.first_token <= targets.ttft);
  }
  if (code == absl::StatusCode::kOk && tokens > 1 && targets.tpot > absl::ZeroDuration()) {
    const absl::Duration per_token = (timings.total - timings.first_token) / (tokens - 1);
    probe_->OnTarget("tpot", klass, per_token <= targets.tpot);
  }
}

absl::StatusOr<RequestId> RouterCore::Impl::Submit(GenerationRequest spec, GenerationSink* sink,
                                                   absl::Time now) {
  SLUICE_ASSIGN_OR_RETURN(const int64_t longest, CheckRequest(spec, now));
  auto request = std::make_unique<Request>();
  const int64_t prompt = static_cast<int64_t>(spec.prompt->ids.size());
  spec.sampling.set_max_tokens(
      static_cast<uint32_t>(std::min<int64_t>(spec.sampling.max_tokens(), longest - prompt)));
  if (spec.sampling.min_tokens() > spec.sampling.max_tokens()) {
    return absl::InvalidArgumentError(absl::StrCat("min_tokens: is ", spec.sampling.min_tokens(),
                                                   ", and only ", spec.sampling.max_tokens(),
                                                   " tokens can follow a prompt of ", prompt));
  }
  request->id = next_id_++;
  request->spec = std::move(spec);
  request->sink = sink;
  request->submitted = now;
  request->timer = absl::InfiniteFuture();
  request->usage.prompt_tokens = static_cast<uint32_t>(prompt);
  Request* added = request.get();
  requests_.emplace(added->id, std::move(request));
  const RequestId id = added->id;
  Enqueue(added, now);
  Pump(now);
  return id;
}

void RouterCore::Impl::Cancel(RequestId id, absl::Time now) {
  Request* request = FindRequest(id);
  if (request == nullptr) return;
  Remove(request, absl::StatusCode::kCancelled, now);
  Pump(now);
}

void RouterCore::Impl::Enqueue(Request* request, absl::Time now) {
  request->queued_at = now;
  queue_.Push(request->waiting());
  SetTimer(request, now);
}

// It must not stand in the way of others until somebody comes who can take it.
void RouterCore::Impl::Park(Request* request, absl::Time now) {
  request->parked_at = now;
  parked_.insert(request->id);
  parked_tokens_ += request->usage.prompt_tokens;
}

void RouterCore::Impl::Unpark(absl::Time now) {
  parked_tokens_ = 0;
  for (RequestId id : std::exchange(parked_, {})) {
    Request* request = FindRequest(id);
    request->parked_at.reset();
    queue_.Push(request->waiting());
    SetTimer(request, now);
  }
}

void RouterCore::Impl::Pump(absl::Time now) {
  while (!ended_ && num_placed() < options_.active_requests_max) {
    const std::optional<Waiting> next = queue_.Next(now);
    if (!next) return;
    Request* request = FindRequest(next->id);
    const PlacementVerdict verdict = TryPlace(request, now);
    if (verdict == PlacementVerdict::kWait) return;
    queue_.Erase(*next);
    if (verdict == PlacementVerdict::kNone) Park(request, now);
    SetTimer(request, now);
  }
}

void RouterCore::Impl::SetTimer(Request* request, absl::Time now) {
  absl::Time timer = request->spec.deadline;
  if (!request->attempt) {
    timer = std::min(timer, request->queued_at + options_.queue_wait_max);
    if (request->parked_at)
      timer = std::min(timer, *request->parked_at + options_.no_instance_wait_max);
  }
  timer = std::max(timer, now);
  if (timer == request->timer) return;
  timers_.erase({request->timer, request->id});
  request->timer = timer;
  if (timer != absl::InfiniteFuture()) timers_.insert({timer, request->id});
}

void RouterCore::Impl::OnTimer(RequestId id, absl::Time now) {
  Request* request = FindRequest(id);
  if (now >= request->spec.deadline) {
    EndWithError(
        request,
        absl::DeadlineExceededError(absl::StrCat(
            "the deadline has passed after ", absl::FormatDuration(now - request->submitted),
            " with ", request->output.size(), " tokens of output")),
        now);
  } else if (request->parked_at) {
    EndWithError(
        request,
        WithRetryAfter(absl::UnavailableError("no instance that could take the request came back"),
                       kNoInstanceRetry),
        now);
  } else {
    EndWithError(
        request,
        WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                           "no place within ", absl::FormatDuration(options_.queue_wait_max))),
                       kNoInstanceRetry),
        now);
  }
}

absl::Status RouterCore::Impl::OnWorkerHello(WorkerId id, const sluice::v1::Hello& hello,
                                             absl::Time now) {
  if (hello.protocol_version() != sluice::v1::PROTOCOL_VERSION_CURRENT) {
    return absl::FailedPreconditionError(
        absl::StrCat("protocol_version: ", hello.protocol_version(), ", this router speaks ",
                     sluice::v1::PROTOCOL_VERSION_CURRENT));
  }
  if (hello.model_hash() != options_.model_hash) {
    return absl::FailedPreconditionError(
        absl::StrCat("model_hash: ", absl::BytesToHexString(hello.model_hash()),
                     ", this router serves ", absl::BytesToHexString(options_.model_hash)));
  }
  if (hello.instance().empty())
    return absl::InvalidArgumentError("instance: empty, a name is needed");
  if (hello.role() < sluice::v1::ROLE_PREFILL || hello.role() > sluice::v1::ROLE_MIXED) {
    return absl::InvalidArgumentError(
        absl::StrCat("role: ", hello.role(), ", not prefill, decode or mixed"));
  }
  const sluice::v1::Capacity& capacity = hello.capacity();
  if (capacity.slots() == 0 || capacity.kv_pages() == 0 || capacity.positions() == 0 ||
      capacity.step_tokens() == 0) {
    return absl::InvalidArgumentError(absl::StrCat("capacity: ", capacity.ShortDebugString(),
                                                   ", every field must be at least 1"));
  }
  std::optional<WorkerId> before;
  for (const auto& [other, worker] : workers_) {
    if (worker.hello().instance() != hello.instance()) continue;
    if (worker.hello().incarnation() != hello.incarnation() && !worker.broken()) {
      return absl::AlreadyExistsError(absl::StrCat(
          "instance: another process is attached as ", hello.instance(), " and alive, incarnation ",
          worker.hello().incarnation(), ", this is ", hello.incarnation()));
    }
    before = other;
  }
  // The same process over a new stream, or one that came for one that is dead or wedged.
  if (before) {
    bus_->End(*before, absl::AbortedError(absl::StrCat("instance: ", hello.instance(),
                                                       " has attached over a new stream as ",
                                                       "incarnation ", hello.incarnation())));
    OnWorkerGone(*before, now);
  }
  if (!workers_.try_emplace(id, id, hello, &index_, now).second) {
    return absl::InternalError(absl::StrCat("worker ", id, " said hello twice"));
  }
  int64_t pages = 0;
  for (const auto& [_, worker] : workers_)
    pages += static_cast<int64_t>(worker.hello().capacity().kv_pages());
  index_.Reserve(pages);

  sluice::v1::RouterMessage message;
  message.mutable_welcome()->set_router(options_.router);
  message.mutable_welcome()->set_incarnation(options_.incarnation);
  Send(id, std::move(message));
  return absl::OkStatus();
}

void RouterCore::Impl::OnWorkerGone(WorkerId id, absl::Time now) {
  Worker* worker = FindWorker(id);
  if (worker == nullptr) return;
  // A router that drains ends the streams itself.
  const bool expected =
      draining_ || worker->state() == InstanceState::kDraining || worker->broken_logged;
  if (expected && worker->requests().empty()) {
    LogInfo("worker left", {{"worker", worker->hello().instance()}});
  } else {
    worker->SetDead();
    FailAllOn(id, "gone", now);
  }
  workers_.erase(id);
  Pump(now);
}

void RouterCore::Impl::OnTick(absl::Time now) {
  const absl::Duration pause =
      last_tick_ == absl::InfinitePast() ? absl::ZeroDuration() : now - last_tick_;
  last_tick_ = now;
  bool came_back = false;
  std::vector<std::pair<WorkerId, InstanceState>> broken;
  for (auto& [id, worker] : workers_) {
    const bool placeable_before = worker.placeable();
    if (pause > kTickMax) worker.Forgive(pause);
    worker.CheckLiveness(now);
    came_back |= worker.placeable() && !placeable_before;
    if (worker.broken() && (!worker.broken_logged || !worker.requests().empty())) {
      broken.push_back({id, worker.state()});
    } else if (!worker.broken() && worker.broken_logged) {
      LogInfo("worker is back", {{"worker", worker.hello().instance()}});
    }
    worker.broken_logged = worker.broken();
  }
  if (came_back) Unpark(now);
  for (const auto& [id, state] : broken) {
    FailAllOn(id, InstanceStateName(state), now);
  }
  while (!timers_.empty() && timers_.begin()->first <= now) OnTimer(timers_.begin()->second, now);
  index_.Sweep(kSweptPerTick);
  Pump(now);
}

void RouterCore::Impl::EndAll(absl::Time now) {
  draining_ = ended_ = true;
  std::vector<RequestId> ids;
  for (const auto& [id, _] : requests_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (const RequestId id : ids) {
    Request* request = FindRequest(id);
    if (request == nullptr) continue;  // a sink that heard of another's end has cancelled it
    EndWithError(
        request,
        WithRetryAfter(absl::UnavailableError("this router ends: its time to drain is over "
                                              "and the answer is not complete"),
                       kDrainingRetry),
        now);
  }
}

bool RouterCore::Impl::CanPlace() const {
  return !draining_ && LongestSequence(DescribeAll(/*placeable_only=*/true)).tokens > 0;
}

std::string RouterCore::Impl::KvLayoutHash() const {
  return workers_.empty() ? "" : workers_.rbegin()->second.hello().kv_layout_hash();
}

RouterSnapshot RouterCore::Impl::Snapshot() const {
  RouterSnapshot snapshot;
  for (const auto& [id, worker] : workers_) {
    snapshot.instances.push_back({.worker = id,
                                  .hello = worker.hello(),
                                  .load = worker.load(),
                                  .state = worker.state(),
                                  .legs = static_cast<int64_t>(worker.requests().size())});
    snapshot.model_name = worker.hello().model_name();
  }
  std::sort(snapshot.instances.begin(), snapshot.instances.end(),
            [](const InstanceSnapshot& a, const InstanceSnapshot& b) {
              return a.hello.instance() < b.hello.instance();
            });
  for (const auto& [_, request] : requests_) {
    if (!request->attempt) continue;
    const Attempt& attempt = *request->attempt;
    if (!attempt.first_token) {
      ++snapshot.prefilling;
    } else if (!attempt.mixed && !attempt.kv_ready) {
      ++snapshot.transferring;
    } else {
      ++snapshot.decoding;
    }
  }
  snapshot.queued = queue_.size() + static_cast<int64_t>(parked_.size());
  snapshot.queued_tokens = queue_.tokens() + parked_tokens_;
  snapshot.indexed_pages = index_.size();
  snapshot.draining = draining_;
  snapshot.can_place = CanPlace();
  snapshot.positions_max = LongestSequence(DescribeAll(/*placeable_only=*/false)).tokens;
  return snapshot;
}

Request* RouterCore::Impl::FindRequest(RequestId id) {
  const auto it = requests_.find(id);
  return it != requests_.end() ? it->second.get() : nullptr;
}

Worker* RouterCore::Impl::FindWorker(WorkerId id) {
  const auto it = workers_.find(id);
  return it != workers_.end() ? &it->second : nullptr;
}

std::vector<Candidate> RouterCore::Impl::DescribeAll(bool placeable_only) const {
  std::vector<Candidate> candidates;
  candidates.reserve(workers_.size());
  for (const auto& [_, worker] : workers_) {
    if (!placeable_only || worker.placeable()) candidates.push_back(worker.Describe());
  }
  return candidates;
}

}  // namespace sluice::router
