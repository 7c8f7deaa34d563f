#include "tests/sim/sim_worker.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace sluice::sim {
namespace {

constexpr uint64_t kPageTokens = 64;
constexpr uint64_t kStepTokens = 128;
constexpr uint64_t kPositions = 1024;
constexpr absl::Duration kKvTimeout = absl::Seconds(3);

uint64_t PagesOf(uint64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace

uint32_t SimWorker::Leg::Next() {
  ++outputs;
  last_token = NextToken(hash);
  hash = Fold(hash, last_token);
  return last_token;
}

SimWorker::SimWorker(World* world, Options options, Send send, PushKv push)
    : world_(world), options_(std::move(options)), send_(std::move(send)), push_(std::move(push)) {}

v1::Hello SimWorker::hello() const {
  v1::Hello hello;
  hello.set_protocol_version(v1::PROTOCOL_VERSION_CURRENT);
  hello.set_instance(options_.instance);
  hello.set_incarnation(options_.incarnation);
  hello.set_role(options_.role);
  hello.set_model_name("sim");
  hello.set_model_hash("0123456789abcdef");
  hello.set_kv_layout_hash("layout");
  hello.mutable_capacity()->set_slots(options_.slots);
  hello.mutable_capacity()->set_kv_pages(options_.kv_pages);
  hello.mutable_capacity()->set_positions(kPositions);
  hello.mutable_capacity()->set_step_tokens(kStepTokens);
  return hello;
}

uint64_t SimWorker::pages_taken() const {
  uint64_t pages = 0;
  for (const auto& [key, leg] : legs_) pages += leg.pages;
  return pages;
}

void SimWorker::OnMessage(const v1::RouterMessage& message) {
  switch (message.message_case()) {
    case v1::RouterMessage::kAdmit:
      return OnAdmit(message.admit());
    case v1::RouterMessage::kGrantLease: {
      const v1::GrantLease& grant = message.grant_lease();
      const auto it = legs_.find({grant.request(), grant.attempt()});
      if (it == legs_.end()) return;
      EXPECT_EQ(it->second.leg, v1::LEG_PREFILL);
      EXPECT_FALSE(it->second.granted) << "a second lease";
      it->second.granted = true;
      it->second.lease = grant.lease().lease();
      it->second.lease_of = grant.lease().incarnation();
      return;
    }
    case v1::RouterMessage::kStartDecode: {
      const v1::StartDecode& start = message.start_decode();
      const auto it = legs_.find({start.request(), start.attempt()});
      if (it == legs_.end()) return;
      Leg& leg = it->second;
      EXPECT_EQ(leg.leg, v1::LEG_DECODE);
      EXPECT_FALSE(leg.started);
      EXPECT_EQ(start.first_output(), leg.outputs);
      for (uint32_t token : start.token_ids()) EXPECT_EQ(token, leg.Next());
      leg.started = true;
      return;
    }
    case v1::RouterMessage::kCancel:
      legs_.erase({message.cancel().request(), message.cancel().attempt()});
      return;
    case v1::RouterMessage::kWelcome:
    case v1::RouterMessage::kRequestKvSnapshot: {
      v1::WorkerMessage snapshot;
      snapshot.mutable_kv_events()->set_sequence(++kv_sequence_);
      snapshot.mutable_kv_events()->set_snapshot(true);
      return send_(std::move(snapshot));
    }
    case v1::RouterMessage::MESSAGE_NOT_SET:
      ADD_FAILURE() << "an empty message";
  }
}

void SimWorker::OnAdmit(const v1::Admit& admit) {
  const Key key(admit.request(), admit.attempt());
  EXPECT_FALSE(legs_.contains(key)) << "admitted twice";
  const v1::Leg wanted = options_.role == v1::ROLE_PREFILL  ? v1::LEG_PREFILL
                         : options_.role == v1::ROLE_DECODE ? v1::LEG_DECODE
                                                            : v1::LEG_BOTH;
  EXPECT_EQ(admit.leg(), wanted);
  Leg leg;
  leg.leg = admit.leg();
  for (uint32_t token : admit.prompt_ids()) leg.hash = Fold(leg.hash, token);
  for (uint32_t token : admit.output_ids())
    EXPECT_EQ(token, leg.Next()) << "the log is not what was sent";
  leg.first_output = leg.outputs;
  leg.max_tokens = admit.sampling().max_tokens();
  EXPECT_LT(leg.outputs, leg.max_tokens) << "nothing is left to do";
  leg.wants_logprobs = admit.sampling().num_logprobs() >= 0;
  leg.to_compute = static_cast<uint64_t>(admit.prompt_ids_size()) + leg.outputs;
  EXPECT_LT(leg.to_compute, kPositions);
  leg.pages = PagesOf(leg.to_compute + 1);
  leg.may_hand_back = admit.may_hand_back();
  leg.patience = world_->now() + kKvTimeout;
  if (admit.deadline_ms() > 0)
    leg.deadline = world_->now() + absl::Milliseconds(admit.deadline_ms());

  if (draining_) return Refuse(admit, v1::Refused::CODE_DRAINING);
  const bool slot = options_.role != v1::ROLE_DECODE || legs_.size() < options_.slots;
  const bool room = slot && pages_taken() + leg.pages <= options_.kv_pages;
  if (!room || world_->Chance(options_.faults.refuse))
    return Refuse(admit, v1::Refused::CODE_NO_ROOM);
  if (leg.leg == v1::LEG_DECODE) {
    leg.lease = next_lease_++;
    v1::WorkerMessage message;
    message.mutable_leased()->set_request(key.first);
    message.mutable_leased()->set_attempt(key.second);
    message.mutable_leased()->mutable_lease()->set_lease(leg.lease);
    message.mutable_leased()->mutable_lease()->set_incarnation(options_.incarnation);
    send_(std::move(message));
  }
  legs_.emplace(key, leg);
}

void SimWorker::Refuse(const v1::Admit& admit, v1::Refused::Code code) {
  v1::WorkerMessage message;
  message.mutable_refused()->set_request(admit.request());
  message.mutable_refused()->set_attempt(admit.attempt());
  message.mutable_refused()->set_code(code);
  send_(std::move(message));
}

void SimWorker::OnKv(uint64_t lease, bool fails) {
  for (auto& [key, leg] : legs_) {
    if (leg.leg != v1::LEG_DECODE || leg.lease != lease) continue;
    if (fails) {
      End(key, v1::AttemptEnded::REASON_KV_FAILED);
      legs_.erase(key);
      return;
    }
    leg.kv_ready = true;
    v1::WorkerMessage message;
    message.mutable_kv_ready()->set_request(key.first);
    message.mutable_kv_ready()->set_attempt(key.second);
    return send_(std::move(message));
  }
}

void SimWorker::Step() {
  if (wedged_) return;
  ++progress_;
  v1::WorkerMessage message;
  int64_t slots = options_.slots;
  for (auto it = legs_.begin(); it != legs_.end();) {
    const bool takes_part = slots-- > 0;
    const bool over = takes_part && StepLeg(it->first, &it->second, message.mutable_step_tokens());
    it = over ? legs_.erase(it) : std::next(it);
  }
  if (message.step_tokens().requests_size() > 0) send_(std::move(message));
  if (world_->Chance(0.05)) SendKvEvents();
}

bool SimWorker::StepLeg(const Key& key, Leg* leg, v1::StepTokens* tokens) {
  if (world_->now() >= leg->deadline) return End(key, v1::AttemptEnded::REASON_DEADLINE);
  const bool waits =
      leg->leg == v1::LEG_PREFILL ? !leg->kv_sent : leg->leg == v1::LEG_DECODE && !leg->kv_ready;
  if (waits && world_->now() >= leg->patience) return End(key, v1::AttemptEnded::REASON_KV_FAILED);
  if (leg->may_hand_back && world_->Chance(options_.faults.hand_back)) {
    return End(key, v1::AttemptEnded::REASON_HANDED_BACK);
  }
  if (leg->leg == v1::LEG_DECODE) {
    if (!leg->started || !leg->kv_ready) return false;
    return Sample(key, leg, tokens);
  }
  if (leg->to_compute > 0) {
    leg->to_compute -= std::min(leg->to_compute, kStepTokens);
    if (leg->to_compute > 0) return false;
  }
  if (leg->leg == v1::LEG_BOTH) return Sample(key, leg, tokens);
  if (!leg->sampled) {
    leg->sampled = true;
    if (Sample(key, leg, tokens)) return true;
  }
  MaybePush(leg);
  return leg->kv_sent;
}

void SimWorker::MaybePush(Leg* leg) {
  if (!leg->granted || leg->kv_sent) return;
  leg->kv_sent = true;
  if (world_->Chance(options_.faults.kv_is_lost)) return;
  push_(leg->lease_of, leg->lease, world_->Chance(options_.faults.kv_fails));
}

// One token, or a few, as speculation would give.
bool SimWorker::Sample(const Key& key, Leg* leg, v1::StepTokens* tokens) {
  const Faults& faults = options_.faults;
  v1::RequestTokens* out = tokens->add_requests();
  out->set_request(key.first);
  out->set_attempt(key.second);
  const bool repeats = leg->outputs > leg->first_output && world_->Chance(faults.repeats);
  out->set_first_output(static_cast<uint32_t>(leg->outputs - (repeats ? 1 : 0)));
  if (repeats) out->add_token_ids(leg->last_token);
  const uint64_t most = leg->leg == v1::LEG_PREFILL ? 1 : 1 + world_->Random(3);
  for (uint64_t i = 0; i < most && leg->outputs < leg->max_tokens; ++i) {
    out->add_token_ids(leg->Next());
  }
  if (leg->outputs == leg->max_tokens) out->set_finish(v1::FINISH_LENGTH);
  if (leg->wants_logprobs) {
    for (int i = 0; i < out->token_ids_size(); ++i) out->add_logprobs()->set_logprob(-1);
  }
  if (world_->Chance(faults.damaged)) out->set_finish(v1::FINISH_DAMAGED);
  if (repeats && world_->Chance(faults.contradicts)) out->set_token_ids(0, out->token_ids(0) + 1);
  if (!repeats && world_->Chance(faults.gap)) out->set_first_output(out->first_output() + 1);
  return out->finish() != v1::FINISH_UNSPECIFIED;
}

bool SimWorker::End(const Key& key, v1::AttemptEnded::Reason reason) {
  v1::WorkerMessage message;
  message.mutable_attempt_ended()->set_request(key.first);
  message.mutable_attempt_ended()->set_attempt(key.second);
  message.mutable_attempt_ended()->set_reason(reason);
  send_(std::move(message));
  return true;
}

void SimWorker::SendKvEvents() {
  if (world_->Chance(options_.faults.kv_gap)) ++kv_sequence_;
  v1::WorkerMessage message;
  message.mutable_kv_events()->set_sequence(++kv_sequence_);
  for (int i = 0; i < 16; ++i) {
    message.mutable_kv_events()->mutable_stored_hashes()->push_back(
        static_cast<char>(world_->Random(4)));
  }
  send_(std::move(message));
}

void SimWorker::Heartbeat() {
  v1::WorkerMessage message;
  v1::Heartbeat* beat = message.mutable_heartbeat();
  beat->set_progress(progress_);
  beat->set_longest_step_ms(20);
  beat->set_ready(!draining_);
  beat->set_draining(draining_);
  beat->mutable_load()->set_running(static_cast<uint32_t>(legs_.size()));
  uint64_t waiting_tokens = 0;
  for (const auto& [key, leg] : legs_)
    waiting_tokens += leg.leg == v1::LEG_DECODE ? 0 : leg.to_compute;
  beat->mutable_load()->set_waiting_tokens(waiting_tokens);
  beat->mutable_load()->set_kv_pages_free(options_.kv_pages - pages_taken());
  beat->mutable_load()->set_prompt_speed(5000);
  send_(std::move(message));
}

void SimWorker::BeginDrain() {
  draining_ = true;
  for (const auto& [key, leg] : legs_) {
    End(key, v1::AttemptEnded::REASON_DRAINING);
  }
  legs_.clear();
}

}  // namespace sluice::sim
