#include "tests/bench/mock_instance.h"

#include <algorithm>
#include <utility>

namespace sluice::bench {
namespace {

constexpr uint64_t kPageTokens = 64;
constexpr size_t kHashBytes = 16;
constexpr uint64_t kAttemptsMax = 256;

uint64_t LeaseOf(const std::pair<uint64_t, uint32_t>& key) {
  return key.first * kAttemptsMax + key.second;
}

}  // namespace

MockInstance::MockInstance(MockOptions options, PushKv push)
    : options_(std::move(options)), push_(std::move(push)) {}

void MockInstance::OnAttached(instance::RouterId router) {
  const std::lock_guard lock(mutex_);
  router_ = router;
  BeginSnapshot();  // goes with the next step
}

void MockInstance::OnGone(instance::RouterId) {
  const std::lock_guard lock(mutex_);
  legs_.clear();
  pages_taken_ = 0;
}

bool MockInstance::OnMessage(instance::RouterId, v1::RouterMessage message) {
  const std::lock_guard lock(mutex_);
  switch (message.message_case()) {
    case v1::RouterMessage::kAdmit:
      Admit(message.admit());
      break;
    case v1::RouterMessage::kGrantLease: {
      const v1::GrantLease& grant = message.grant_lease();
      const auto it = legs_.find({grant.request(), grant.attempt()});
      if (it == legs_.end()) break;
      it->second.granted = true;
      it->second.lease = grant.lease().lease();
      it->second.lease_of = grant.lease().incarnation();
      break;
    }
    case v1::RouterMessage::kStartDecode: {
      const v1::StartDecode& start = message.start_decode();
      const auto it = legs_.find({start.request(), start.attempt()});
      if (it == legs_.end()) break;
      it->second.started = true;
      it->second.outputs = start.first_output() + static_cast<uint32_t>(start.token_ids_size());
      break;
    }
    case v1::RouterMessage::kCancel: {
      const auto it = legs_.find({message.cancel().request(), message.cancel().attempt()});
      if (it == legs_.end()) break;
      pages_taken_ -= PagesOf(it->second);
      legs_.erase(it);
      break;
    }
    case v1::RouterMessage::kRequestKvSnapshot:
      BeginSnapshot();
      break;
    case v1::RouterMessage::kWelcome:
    case v1::RouterMessage::MESSAGE_NOT_SET:
      break;
  }
  return true;
}

uint64_t MockInstance::PagesOf(const Leg& leg) const {
  return (leg.prompt_tokens + leg.max_tokens + kPageTokens - 1) / kPageTokens;
}

void MockInstance::Admit(const v1::Admit& admit) {
  Leg leg;
  leg.leg = admit.leg();
  leg.seed = admit.sampling().seed();
  leg.outputs = static_cast<uint32_t>(admit.output_ids_size());
  leg.max_tokens = admit.sampling().max_tokens();
  leg.prompt_tokens = static_cast<uint64_t>(admit.prompt_ids_size());
  leg.page_hashes = admit.page_hashes();

  v1::WorkerMessage message;
  const v1::Capacity& capacity = options_.hello.capacity();
  const bool slot = leg.leg != v1::LEG_DECODE || legs_.size() < capacity.slots();
  if (!slot || pages_taken_ + PagesOf(leg) > capacity.kv_pages()) {
    message.mutable_refused()->set_request(admit.request());
    message.mutable_refused()->set_attempt(admit.attempt());
    message.mutable_refused()->set_code(v1::Refused::CODE_NO_ROOM);
    return Send(std::move(message));
  }
  pages_taken_ += PagesOf(leg);
  if (leg.leg == v1::LEG_DECODE) {
    leg.lease = LeaseOf({admit.request(), admit.attempt()});
    v1::Leased* leased = message.mutable_leased();
    leased->set_request(admit.request());
    leased->set_attempt(admit.attempt());
    leased->mutable_lease()->set_lease(leg.lease);
    leased->mutable_lease()->set_checksum_key(leg.lease);
    for (uint64_t page = 0; page < leg.prompt_tokens / kPageTokens + 1; ++page) {
      leased->mutable_lease()->add_pages(static_cast<uint32_t>(page));
    }
    leased->mutable_lease()->set_endpoint(std::string(64, 'e'));  // about as long as a real one
    leased->mutable_lease()->set_incarnation(options_.hello.incarnation());
    Send(std::move(message));
  }
  legs_.emplace(Key(admit.request(), admit.attempt()), std::move(leg));
}

void MockInstance::OnKv(uint64_t lease) {
  const std::lock_guard lock(mutex_);
  const auto it = legs_.find({lease / kAttemptsMax, static_cast<uint32_t>(lease % kAttemptsMax)});
  if (it == legs_.end()) return;
  it->second.kv_ready = true;
  v1::WorkerMessage message;
  message.mutable_kv_ready()->set_request(it->first.first);
  message.mutable_kv_ready()->set_attempt(it->first.second);
  Store(it->second.page_hashes);
  Send(std::move(message));
}

void MockInstance::Step() {
  // The decode's lock is not taken while this one is held.
  std::vector<std::pair<uint64_t, uint64_t>> pushes;
  {
    const std::lock_guard lock(mutex_);
    ++progress_;
    v1::WorkerMessage message;
    v1::StepTokens* tokens = message.mutable_step_tokens();
    seeds_.clear();
    for (auto it = legs_.begin(); it != legs_.end();) {
      Leg& leg = it->second;
      bool over = StepLeg(it->first, &leg, tokens);
      if (leg.leg == v1::LEG_PREFILL && leg.sampled && leg.granted) {
        pushes.emplace_back(leg.lease_of, leg.lease);
        over = true;
      }
      if (!over) {
        ++it;
        continue;
      }
      pages_taken_ -= PagesOf(leg);
      legs_.erase(it++);
    }
    if (tokens->requests_size() > 0) {
      if (options_.emits != nullptr) {
        const int64_t now = NowNs();
        for (int i = 0; i < tokens->requests_size(); ++i) {
          options_.emits->Set(seeds_[static_cast<size_t>(i)], tokens->requests(i).first_output(),
                              now);
        }
      }
      Send(std::move(message));
    }
    const bool changed = !news_.stored_hashes().empty() || !news_.removed_hashes().empty();
    if (router_ != 0 && (changed || news_.snapshot())) SendKvEvents();
  }
  for (const auto& [incarnation, lease] : pushes) push_(incarnation, lease);
}

bool MockInstance::StepLeg(const Key& key, Leg* leg, v1::StepTokens* tokens) {
  switch (leg->leg) {
    case v1::LEG_PREFILL:
      if (leg->sampled) return false;
      leg->sampled = true;
      Store(leg->page_hashes);
      break;
    case v1::LEG_DECODE:
      if (!leg->started || !leg->kv_ready) return false;
      break;
    default:
      if (!leg->sampled) Store(leg->page_hashes);
      leg->sampled = true;
  }
  Sample(key, leg, tokens);
  return leg->outputs >= leg->max_tokens;
}

void MockInstance::Sample(const Key& key, Leg* leg, v1::StepTokens* tokens) {
  v1::RequestTokens* out = tokens->add_requests();
  out->set_request(key.first);
  out->set_attempt(key.second);
  out->set_first_output(leg->outputs);
  out->add_token_ids(options_.letters[static_cast<size_t>(LetterOf(leg->seed, leg->outputs))]);
  ++leg->outputs;
  if (leg->outputs >= leg->max_tokens) out->set_finish(v1::FINISH_LENGTH);
  seeds_.push_back(leg->seed);
}

// Pages beyond the capacity push the oldest out.
void MockInstance::Store(const std::string& hashes) {
  for (size_t at = 0; at + kHashBytes <= hashes.size(); at += kHashBytes) {
    std::string hash = hashes.substr(at, kHashBytes);
    if (!is_stored_.insert(hash).second) continue;
    news_.mutable_stored_hashes()->append(hash);
    stored_.push_back(std::move(hash));
    if (stored_.size() <= options_.hello.capacity().kv_pages()) continue;
    news_.mutable_removed_hashes()->append(stored_.front());
    is_stored_.erase(stored_.front());
    stored_.pop_front();
  }
}

void MockInstance::BeginSnapshot() {
  news_.Clear();
  news_.set_snapshot(true);
  for (const std::string& hash : stored_) news_.mutable_stored_hashes()->append(hash);
}

void MockInstance::SendKvEvents() {
  v1::WorkerMessage message;
  news_.set_sequence(++kv_sequence_);
  *message.mutable_kv_events() = std::exchange(news_, v1::KvEvents());
  Send(std::move(message));
}

void MockInstance::Heartbeat() {
  const std::lock_guard lock(mutex_);
  v1::WorkerMessage message;
  v1::Heartbeat* beat = message.mutable_heartbeat();
  beat->set_progress(++progress_);
  beat->set_longest_step_ms(20);
  beat->set_ready(true);
  beat->mutable_load()->set_running(static_cast<uint32_t>(legs_.size()));
  beat->mutable_load()->set_kv_pages_free(options_.hello.capacity().kv_pages() - pages_taken_);
  beat->mutable_load()->set_prompt_speed(1e6);
  Send(std::move(message));
}

}  // namespace sluice::bench
