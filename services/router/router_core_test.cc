// The core's answers to scripted workers, message by message. Random faults: tests/sim.
#include "services/router/router_core.h"

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/router/request.h"
#include "services/router/retry_hint.h"

namespace sluice::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using v1::RouterMessage;

constexpr WorkerId kP = 1;
constexpr WorkerId kD = 2;
constexpr WorkerId kP2 = 3;
constexpr WorkerId kD2 = 4;

class RecordingBus final : public WorkerBus {
 public:
  void Send(WorkerId worker, RouterMessage message) override {
    sent.push_back({worker, std::move(message)});
  }
  void End(WorkerId worker, const absl::Status& why) override { ended.push_back({worker, why}); }
  std::deque<std::pair<WorkerId, RouterMessage>> sent;
  std::vector<std::pair<WorkerId, absl::Status>> ended;
};

class RecordingSink final : public GenerationSink {
 public:
  void OnOutput(const Output& output) override {
    tokens.insert(tokens.end(), output.token_ids.begin(), output.token_ids.end());
    EXPECT_FALSE(output.token_ids.empty());
    EXPECT_EQ(finish, v1::FINISH_UNSPECIFIED) << "after the end";
    finish = output.finish;
    usage = output.usage;
    timings = output.timings;
    if (output.logprobs != nullptr) {
      for (size_t i = 0; i < output.token_ids.size(); ++i) {
        logprobs.push_back(
            output.logprobs->Get(output.logprobs_offset + static_cast<int>(i)).logprob());
      }
    }
    if (on_output) on_output();
  }
  void OnError(const absl::Status& status) override {
    EXPECT_TRUE(error.ok()) << "twice";
    error = status;
    if (on_error) on_error();
  }
  bool ended() const { return finish != v1::FINISH_UNSPECIFIED || !error.ok(); }

  std::vector<uint32_t> tokens;
  std::vector<float> logprobs;
  v1::Finish finish = v1::FINISH_UNSPECIFIED;
  Usage usage;
  Timings timings;
  absl::Status error;
  std::function<void()> on_output;
  std::function<void()> on_error;
};

class CountingProbe final : public RouterProbe {
 public:
  void OnRejected(absl::string_view reason) override {
    ++counts["rejected " + std::string(reason)];
  }
  void OnRequestEnd(absl::StatusCode code, const Usage&, const Timings&) override {
    ++counts["end " + absl::StatusCodeToString(code)];
  }
  void OnAttemptFailed(absl::string_view reason) override {
    ++counts["failed " + std::string(reason)];
  }
  void OnTarget(absl::string_view target, uint32_t klass, bool met) override {
    ++counts[absl::StrCat(target, " of ", klass, met ? " met" : " missed")];
  }
  void OnKvEvents(absl::string_view status) override { ++counts["kv " + std::string(status)]; }
  void OnMigration(Migration kind) override {
    ++counts[kind == Migration::kNew ? "migrated new" : "migrated ongoing"];
  }
  std::map<std::string, int> counts;
};

class RouterCoreTest : public testing::Test {
 protected:
  RouterCoreTest() { Restart({}); }

  void Restart(RouterOptions options) {
    options.router = "router-1";
    options.model_hash = "0123456789abcdef";
    core = std::make_unique<RouterCore>(options, &bus, &probe);
    bus.sent.clear();
  }

  static v1::Hello HelloOf(const std::string& name, v1::Role role) {
    v1::Hello hello;
    hello.set_protocol_version(v1::PROTOCOL_VERSION_CURRENT);
    hello.set_instance(name);
    hello.set_incarnation(17);
    hello.set_role(role);
    hello.set_model_name("tiny");
    hello.set_model_hash("0123456789abcdef");
    hello.set_kv_layout_hash("layout");
    hello.mutable_capacity()->set_slots(4);
    hello.mutable_capacity()->set_kv_pages(32);
    hello.mutable_capacity()->set_positions(1024);
    hello.mutable_capacity()->set_step_tokens(256);
    return hello;
  }

  void Beat(WorkerId worker, bool ready = true) {
    v1::WorkerMessage message;
    v1::Heartbeat* beat = message.mutable_heartbeat();
    beat->set_ready(ready);
    beat->set_progress(++progress[worker]);
    beat->mutable_load()->set_kv_pages_free(32);
    beat->mutable_load()->set_prompt_speed(1000);
    core->OnWorkerMessage(worker, message, now);
  }

  void Attach(WorkerId worker, v1::Role role) {
    const std::string name =
        std::string(role == v1::ROLE_PREFILL ? "prefill-" : "decode-") + std::to_string(worker);
    ASSERT_TRUE(core->OnWorkerHello(worker, HelloOf(name, role), now).ok());
    ASSERT_EQ(Next(worker).message_case(), RouterMessage::kWelcome);
    Beat(worker);
  }
  void AttachPair() {
    Attach(kP, v1::ROLE_PREFILL);
    Attach(kD, v1::ROLE_DECODE);
  }

  // Time passes; the workers named stay alive.
  void Pass(absl::Duration duration, std::vector<WorkerId> alive) {
    for (const absl::Time end = now + duration; now < end;) {
      now += absl::Milliseconds(50);
      for (WorkerId worker : alive) Beat(worker);
      core->OnTick(now);
    }
  }

  RequestId Submit(RecordingSink* sink, int prompt = 5, uint32_t max_tokens = 4) {
    const auto id = core->Submit(Ask(prompt, max_tokens), sink, now);
    EXPECT_TRUE(id.ok()) << id.status();
    return id.ok() ? *id : 0;
  }
  static GenerationRequest Ask(int prompt = 5, uint32_t max_tokens = 4) {
    auto ids = std::make_shared<Prompt>();
    for (int i = 0; i < prompt; ++i) ids->ids.push_back(100 + i);
    GenerationRequest request;
    request.prompt = ids;
    request.sampling.set_max_tokens(max_tokens);
    request.sampling.set_num_logprobs(-1);
    return request;
  }

  // The next message that was sent, which must be for this worker.
  RouterMessage Next(WorkerId worker) {
    if (bus.sent.empty()) {
      ADD_FAILURE() << "nothing was sent to worker " << worker;
      return {};
    }
    auto [to, message] = std::move(bus.sent.front());
    bus.sent.pop_front();
    EXPECT_EQ(to, worker) << message.ShortDebugString();
    return message;
  }
  v1::Admit NextAdmit(WorkerId worker, v1::Leg leg) {
    const v1::Admit admit = Next(worker).admit();
    EXPECT_EQ(admit.leg(), leg);
    return admit;
  }
  // The admits of a new attempt on a pair.
  v1::Admit NextAdmits(WorkerId prefill, WorkerId decode) {
    const v1::Admit first = NextAdmit(decode, v1::LEG_DECODE);
    const v1::Admit second = NextAdmit(prefill, v1::LEG_PREFILL);
    EXPECT_EQ(first.attempt(), second.attempt());
    EXPECT_EQ(first.request(), second.request());
    return first;
  }
  void ExpectCancel(WorkerId worker, RequestId id, uint32_t attempt) {
    const v1::Cancel cancel = Next(worker).cancel();
    EXPECT_EQ(cancel.request(), id);
    EXPECT_EQ(cancel.attempt(), attempt);
  }

  void Leased(WorkerId worker, RequestId id, uint32_t attempt = 1) {
    v1::WorkerMessage message;
    message.mutable_leased()->set_request(id);
    message.mutable_leased()->set_attempt(attempt);
    message.mutable_leased()->mutable_lease()->set_lease(4711);
    core->OnWorkerMessage(worker, message, now);
  }
  void KvReady(WorkerId worker, RequestId id, uint32_t attempt = 1) {
    v1::WorkerMessage message;
    message.mutable_kv_ready()->set_request(id);
    message.mutable_kv_ready()->set_attempt(attempt);
    message.mutable_kv_ready()->set_transfer_ms(7);
    core->OnWorkerMessage(worker, message, now);
  }
  void Tokens(WorkerId worker, RequestId id, uint32_t attempt, uint32_t first,
              std::vector<uint32_t> tokens, v1::Finish finish = v1::FINISH_UNSPECIFIED,
              std::vector<float> logprobs = {}) {
    v1::WorkerMessage message;
    v1::RequestTokens* step = message.mutable_step_tokens()->add_requests();
    step->set_request(id);
    step->set_attempt(attempt);
    step->set_first_output(first);
    for (uint32_t token : tokens) step->add_token_ids(token);
    for (float logprob : logprobs) step->add_logprobs()->set_logprob(logprob);
    step->set_finish(finish);
    step->set_cached_tokens(3);
    step->set_queued_ms(11);
    step->set_compute_ms(22);
    core->OnWorkerMessage(worker, message, now);
  }
  void Ended(WorkerId worker, RequestId id, uint32_t attempt, v1::AttemptEnded::Reason reason) {
    v1::WorkerMessage message;
    message.mutable_attempt_ended()->set_request(id);
    message.mutable_attempt_ended()->set_attempt(attempt);
    message.mutable_attempt_ended()->set_reason(reason);
    core->OnWorkerMessage(worker, message, now);
  }
  void Refused(WorkerId worker, RequestId id, uint32_t attempt, v1::Refused::Code code) {
    v1::WorkerMessage message;
    message.mutable_refused()->set_request(id);
    message.mutable_refused()->set_attempt(attempt);
    message.mutable_refused()->set_code(code);
    message.mutable_refused()->set_reason("said so");
    core->OnWorkerMessage(worker, message, now);
  }
  // A request on a pair that decodes, with one token out.
  RequestId Decoding(RecordingSink* sink, WorkerId prefill = kP, WorkerId decode = kD) {
    const RequestId id = Submit(sink);
    NextAdmits(prefill, decode);
    Leased(decode, id);
    Next(prefill);
    Tokens(prefill, id, 1, 0, {50});
    Next(decode);
    KvReady(decode, id);
    EXPECT_THAT(bus.sent, IsEmpty());
    return id;
  }

  RecordingBus bus;
  CountingProbe probe;
  std::unique_ptr<RouterCore> core;
  absl::Time now = absl::FromUnixSeconds(1'000'000'000);
  std::map<WorkerId, uint64_t> progress;
};

TEST_F(RouterCoreTest, FollowsARequestThroughPrefillAndDecode) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  const v1::Admit decode = NextAdmit(kD, v1::LEG_DECODE);
  EXPECT_EQ(decode.request(), id);
  EXPECT_EQ(decode.attempt(), 1);
  EXPECT_THAT(decode.prompt_ids(), ElementsAre(100, 101, 102, 103, 104));
  EXPECT_THAT(decode.output_ids(), IsEmpty());
  EXPECT_EQ(decode.deadline_ms(), 0);
  NextAdmit(kP, v1::LEG_PREFILL);

  Leased(kD, id);
  const v1::GrantLease grant = Next(kP).grant_lease();
  EXPECT_EQ(grant.request(), id);
  EXPECT_EQ(grant.lease().lease(), 4711);

  now += absl::Milliseconds(40);
  Tokens(kP, id, 1, 0, {50});
  EXPECT_THAT(sink.tokens, ElementsAre(50)) << "before KV is there";
  const v1::StartDecode start = Next(kD).start_decode();
  EXPECT_EQ(start.first_output(), 0);
  EXPECT_THAT(start.token_ids(), ElementsAre(50));

  KvReady(kD, id);
  Tokens(kD, id, 1, 1, {51, 52});
  now += absl::Milliseconds(10);
  Tokens(kD, id, 1, 3, {53}, v1::FINISH_LENGTH);
  EXPECT_THAT(sink.tokens, ElementsAre(50, 51, 52, 53));
  EXPECT_EQ(sink.finish, v1::FINISH_LENGTH);
  EXPECT_EQ(sink.usage.prompt_tokens, 5);
  EXPECT_EQ(sink.usage.output_tokens, 4);
  EXPECT_EQ(sink.usage.cached_tokens, 3);
  EXPECT_EQ(sink.timings.queue, absl::Milliseconds(11));
  EXPECT_EQ(sink.timings.prefill, absl::Milliseconds(22));
  EXPECT_EQ(sink.timings.transfer, absl::Milliseconds(7));
  EXPECT_EQ(sink.timings.first_token, absl::Milliseconds(40));
  EXPECT_EQ(sink.timings.total, absl::Milliseconds(50));
  EXPECT_THAT(bus.sent, IsEmpty()) << "both legs ended by themselves";
  EXPECT_TRUE(core->idle());
  EXPECT_THAT(probe.counts, ElementsAre(testing::Pair("end OK", 1)));
}

TEST_F(RouterCoreTest, AMixedInstanceDoesItAlone) {
  Attach(kD, v1::ROLE_MIXED);
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  NextAdmit(kD, v1::LEG_BOTH);
  Tokens(kD, id, 1, 0, {50});
  Tokens(kD, id, 1, 1, {51}, v1::FINISH_STOP);
  EXPECT_THAT(sink.tokens, ElementsAre(50, 51));
  EXPECT_THAT(bus.sent, IsEmpty());
}

TEST_F(RouterCoreTest, APrefillsTokenThatEndsTheAnswerCancelsTheDecode) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  NextAdmits(kP, kD);
  Tokens(kP, id, 1, 0, {50}, v1::FINISH_STOP);
  EXPECT_EQ(sink.finish, v1::FINISH_STOP);
  ExpectCancel(kD, id, 1);
  EXPECT_THAT(bus.sent, IsEmpty());
  EXPECT_TRUE(core->idle());
}

TEST_F(RouterCoreTest, AtMaxTokensItEndsEvenIfTheWorkerDoesNotSaySo) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Submit(&sink, 5, 1);
  NextAdmits(kP, kD);
  Tokens(kP, id, 1, 0, {50});
  EXPECT_EQ(sink.finish, v1::FINISH_LENGTH);
  ExpectCancel(kP, id, 1);
  ExpectCancel(kD, id, 1);
}

TEST_F(RouterCoreTest, TheLeaseMayComeAfterTheFirstToken) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  NextAdmits(kP, kD);
  Tokens(kP, id, 1, 0, {50});
  EXPECT_EQ(Next(kD).message_case(), RouterMessage::kStartDecode);
  Leased(kD, id);
  EXPECT_EQ(Next(kP).message_case(), RouterMessage::kGrantLease);
}

TEST_F(RouterCoreTest, APrefillIsNotMissedOnceKvIsReadyAndTheFirstTokenIsIn) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Decoding(&sink);
  core->OnWorkerGone(kP, now);
  EXPECT_THAT(bus.sent, IsEmpty());
  Tokens(kD, id, 1, 1, {51}, v1::FINISH_STOP);
  EXPECT_THAT(sink.tokens, ElementsAre(50, 51));
}

// What the two legs must still do when one of them breaks; the request goes on behind its last
// token.
TEST_F(RouterCoreTest, ABrokenLegIsFollowedByAnotherAttemptElsewhere) {
  const struct {
    std::string name;
    WorkerId broken;
    bool token_before;
  } cases[] = {
      {"prefill before its token", kP, false},
      {"decode before the token", kD, false},
      {"prefill before KV is ready", kP, true},
      {"decode after the token", kD, true},
  };
  for (const auto& test : cases) {
    SCOPED_TRACE(test.name);
    Restart({});
    AttachPair();
    RecordingSink sink;
    const RequestId id = Submit(&sink);
    NextAdmits(kP, kD);
    Attach(kP2, v1::ROLE_PREFILL);
    Attach(kD2, v1::ROLE_DECODE);
    if (test.token_before) {
      Tokens(kP, id, 1, 0, {50});
      Next(kD);
    }
    core->OnWorkerGone(test.broken, now);
    const WorkerId other = test.broken == kP ? kD : kP;
    ExpectCancel(other, id, 1);
    // The other side may be any; whoever broke is not there any more.
    const v1::Admit admit = Next(bus.sent.front().first).admit();
    EXPECT_EQ(admit.attempt(), 2);
    EXPECT_EQ(admit.output_ids_size(), test.token_before ? 1 : 0);
    EXPECT_FALSE(sink.ended());
    // What the first attempt still says is of no interest.
    Tokens(other, id, 1, test.token_before ? 1 : 0, {99});
    Ended(other, id, 1, v1::AttemptEnded::REASON_KV_FAILED);
    EXPECT_EQ(sink.tokens.size(), test.token_before ? 1 : 0);
  }
}

TEST_F(RouterCoreTest, ADecodeThatDiesMidStreamIsContinuedWithItsTokens) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Decoding(&sink);
  Tokens(kD, id, 1, 1, {51});
  Attach(kD2, v1::ROLE_DECODE);
  core->OnWorkerGone(kD, now);
  const v1::Admit admit = NextAdmits(kP, kD2);
  EXPECT_THAT(admit.output_ids(), ElementsAre(50, 51));
  Leased(kD2, id, 2);
  Next(kP);
  Tokens(kP, id, 2, 2, {52});
  EXPECT_EQ(Next(kD2).start_decode().first_output(), 2);
  KvReady(kD2, id, 2);
  Tokens(kD2, id, 2, 3, {53}, v1::FINISH_LENGTH);
  EXPECT_THAT(sink.tokens, ElementsAre(50, 51, 52, 53));
  EXPECT_EQ(probe.counts["migrated ongoing"], 1);
}

TEST_F(RouterCoreTest, WhoeverFailedIsNotTriedAgainWhileThereIsAnother) {
  AttachPair();
  Attach(kD2, v1::ROLE_DECODE);
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  NextAdmits(kP, kD);
  Ended(kD, id, 1, v1::AttemptEnded::REASON_ENGINE);
  ExpectCancel(kP, id, 1);
  NextAdmits(kP, kD2);
  core->OnWorkerGone(kD2, now);
  ExpectCancel(kP, id, 2);
  Beat(kD);
  EXPECT_EQ(NextAdmits(kP, kD).attempt(), 3) << "nobody else is left";
}

TEST_F(RouterCoreTest, ThreeFailedAttemptsAreAnErrorWithAHint) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  for (uint32_t attempt = 1; attempt <= 3; ++attempt) {
    EXPECT_TRUE(sink.error.ok());
    EXPECT_EQ(NextAdmits(kP, kD).attempt(), attempt);
    Ended(kD, id, attempt, v1::AttemptEnded::REASON_KV_FAILED);
    ExpectCancel(kP, id, attempt);
  }
  EXPECT_EQ(sink.error.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(RetryAfter(sink.error).has_value());
  EXPECT_THAT(bus.sent, IsEmpty());
  EXPECT_TRUE(core->idle());
}

TEST_F(RouterCoreTest, TokensThatContradictTheLogFailTheAttempt) {
  const struct {
    std::string name;
    uint32_t first;
    std::vector<uint32_t> tokens;
    v1::Finish finish;
  } cases[] = {
      {"a gap", 2, {52}, v1::FINISH_UNSPECIFIED},
      {"another token", 0, {60, 51}, v1::FINISH_UNSPECIFIED},
      {"more than asked for", 1, {51, 52, 53, 54}, v1::FINISH_UNSPECIFIED},
      {"logits that are not finite", 1, {51}, v1::FINISH_DAMAGED},
      {"an end without a token", 1, {}, v1::FINISH_STOP},
  };
  for (const auto& test : cases) {
    SCOPED_TRACE(test.name);
    Restart({});
    AttachPair();
    RecordingSink sink;
    const RequestId id = Decoding(&sink);
    Tokens(kD, id, 1, test.first, test.tokens, test.finish);
    EXPECT_THAT(sink.tokens, ElementsAre(50)) << "nothing of it may reach the client";
    EXPECT_FALSE(sink.ended());
    ExpectCancel(kD, id, 1);
    EXPECT_THAT(NextAdmits(kP, kD).output_ids(), ElementsAre(50));
  }
}

TEST_F(RouterCoreTest, RepeatedTokensAreSentOnce) {
  AttachPair();
  RecordingSink sink;
  GenerationRequest request = Ask();
  request.sampling.set_num_logprobs(0);
  const RequestId id = *core->Submit(request, &sink, now);
  NextAdmits(kP, kD);
  Leased(kD, id);
  Tokens(kP, id, 1, 0, {50}, v1::FINISH_UNSPECIFIED, {-0.5f});
  KvReady(kD, id);
  Tokens(kD, id, 1, 0, {50}, v1::FINISH_UNSPECIFIED, {-0.5f});
  Tokens(kD, id, 1, 0, {50, 51}, v1::FINISH_STOP, {-0.5f, -0.25f});
  EXPECT_THAT(sink.tokens, ElementsAre(50, 51));
  EXPECT_THAT(sink.logprobs, ElementsAre(-0.5f, -0.25f));
}

TEST_F(RouterCoreTest, CheckAgainstLog) {
  const std::vector<uint32_t> log = {7, 8, 9};
  const struct {
    uint32_t first;
    std::vector<uint32_t> tokens;
    std::optional<size_t> want;
  } cases[] = {
      {0, {}, 0},
      {3, {}, 0},
      {3, {1}, 0},
      {3, {1, 2}, 0},
      {2, {9, 1}, 1},
      {0, {7, 8, 9}, 3},
      {0, {7, 8, 9, 1, 2}, 3},
      {4, {}, std::nullopt},
      {2, {8}, std::nullopt},
      {3, {1, 2, 3}, std::nullopt},
      {4'000'000'000, {1}, std::nullopt},
  };
  for (const auto& test : cases) {
    const auto known = CheckAgainstLog(log, test.first, test.tokens, 5);
    EXPECT_EQ(known.ok() ? std::optional<size_t>(*known) : std::nullopt, test.want) << test.first;
  }
}

TEST_F(RouterCoreTest, HandbacksAreNotFailuresButHaveALimit) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  for (uint32_t attempt = 1; attempt <= 3; ++attempt) {
    const v1::Admit admit = NextAdmits(kP, kD);
    EXPECT_EQ(admit.attempt(), attempt);
    EXPECT_EQ(admit.may_hand_back(), attempt <= 2);
    Ended(kD, id, attempt, v1::AttemptEnded::REASON_HANDED_BACK);
    ExpectCancel(kP, id, attempt);
    EXPECT_THAT(probe.counts["failed protocol"], attempt == 3 ? 1 : 0);
    if (attempt < 3) {
      EXPECT_THAT(bus.sent, IsEmpty()) << "its load is to be known first";
      Beat(kD);
    }
  }
  EXPECT_FALSE(sink.ended());
}

TEST_F(RouterCoreTest, DrainsMayComeAsOftenAsTheyLike) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  for (uint32_t attempt = 1; attempt <= 9; ++attempt) {
    EXPECT_TRUE(NextAdmits(kP, kD).may_hand_back());
    Ended(kD, id, attempt, v1::AttemptEnded::REASON_DRAINING);
    ExpectCancel(kP, id, attempt);
    Beat(kD);
  }
  EXPECT_EQ(probe.counts["failed protocol"], 0);
  EXPECT_FALSE(sink.ended());
}

TEST_F(RouterCoreTest, TheEndOfASmallInstanceIsNotTheEndOfTheRequest) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Decoding(&sink);
  bus.sent.clear();
  Tokens(kD, id, 1, 1, {51}, v1::FINISH_LENGTH);  // the second of four
  EXPECT_THAT(sink.tokens, ElementsAre(50, 51));
  EXPECT_FALSE(sink.ended());
  Beat(kD);
  const v1::Admit admit = NextAdmits(kP, kD);
  EXPECT_EQ(admit.attempt(), 2u);
  EXPECT_THAT(admit.output_ids(), ElementsAre(50, 51));
}

TEST_F(RouterCoreTest, ARefusalForWantOfRoomWaitsForRoom) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  NextAdmits(kP, kD);
  Refused(kD, id, 1, v1::Refused::CODE_NO_ROOM);
  ExpectCancel(kP, id, 1);
  EXPECT_THAT(bus.sent, IsEmpty());
  Beat(kD);
  EXPECT_EQ(NextAdmits(kP, kD).attempt(), 2);
  EXPECT_EQ(probe.counts["failed engine"], 0);
  // An instance whose reports are wrong every time does not keep it for ever.
  for (uint32_t attempt = 2; !sink.ended() && attempt < 100; ++attempt) {
    Refused(kD, id, attempt, v1::Refused::CODE_NO_ROOM);
    Beat(kD);
  }
  EXPECT_EQ(sink.error.code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(RouterCoreTest, ARefusalForGoodIsTheClientsError) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  NextAdmits(kP, kD);
  Refused(kP, id, 1, v1::Refused::CODE_INVALID);
  EXPECT_EQ(sink.error, absl::InvalidArgumentError("said so"));
  ExpectCancel(kD, id, 1);
}

TEST_F(RouterCoreTest, CancelStopsBothLegsAndTheSinkHearsNothing) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  NextAdmits(kP, kD);
  core->Cancel(id, now);
  ExpectCancel(kP, id, 1);
  ExpectCancel(kD, id, 1);
  Tokens(kP, id, 1, 0, {50});
  core->Cancel(id, now);
  EXPECT_THAT(bus.sent, IsEmpty());
  EXPECT_THAT(sink.tokens, IsEmpty());
  EXPECT_FALSE(sink.ended());
  EXPECT_TRUE(core->idle());
}

TEST_F(RouterCoreTest, SinksMayCancelAndSubmitFromWithin) {
  AttachPair();
  RecordingSink first, second, third;
  const RequestId a = Submit(&first);
  const RequestId b = Submit(&second);
  first.on_output = [&] {
    core->Cancel(a, now);
    core->Cancel(b, now);
  };
  v1::WorkerMessage message;  // both in one step
  for (RequestId id : {a, b}) {
    v1::RequestTokens* step = message.mutable_step_tokens()->add_requests();
    step->set_request(id);
    step->set_attempt(1);
    step->add_token_ids(50);
  }
  core->OnWorkerMessage(kP, message, now);
  EXPECT_THAT(first.tokens, ElementsAre(50));
  EXPECT_THAT(second.tokens, IsEmpty());
  EXPECT_TRUE(core->idle());

  const RequestId c = Submit(&first);
  first.on_error = [&] { Submit(&third); };
  bus.sent.clear();
  for (uint32_t attempt = 1; attempt <= 3; ++attempt)
    Ended(kD, c, attempt, v1::AttemptEnded::REASON_KV_FAILED);
  EXPECT_EQ(first.error.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(core->idle());
}

TEST_F(RouterCoreTest, DeadlinesEndQueuedAndPlacedRequests) {
  AttachPair();
  GenerationRequest request = Ask();
  request.deadline = now;
  RecordingSink sink;
  EXPECT_EQ(core->Submit(request, &sink, now).status().code(), absl::StatusCode::kDeadlineExceeded);

  request.deadline = now + absl::Milliseconds(700);
  const RequestId id = *core->Submit(request, &sink, now);
  EXPECT_EQ(NextAdmits(kP, kD).deadline_ms(), 700);
  Pass(absl::Milliseconds(650), {kP, kD});
  EXPECT_FALSE(sink.ended());
  Pass(absl::Milliseconds(50), {kP, kD});
  EXPECT_EQ(sink.error.code(), absl::StatusCode::kDeadlineExceeded);
  ExpectCancel(kP, id, 1);
  ExpectCancel(kD, id, 1);

  // The decode has four slots; the fifth request waits.
  std::vector<RecordingSink> sinks(5);
  for (int i = 0; i < 4; ++i) Submit(&sinks[i]);
  EXPECT_EQ(bus.sent.size(), 8);
  request.deadline = now + absl::Milliseconds(100);
  ASSERT_TRUE(core->Submit(request, &sinks[4], now).ok());
  EXPECT_EQ(core->Snapshot().queued, 1);
  Pass(absl::Milliseconds(100), {});
  EXPECT_EQ(sinks[4].error.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(sinks[0].ended());
}

TEST_F(RouterCoreTest, AWorkersDeadlineEndsTheRequest) {
  AttachPair();
  GenerationRequest request = Ask();
  request.deadline = now + absl::Seconds(1);
  RecordingSink sink;
  const RequestId id = *core->Submit(request, &sink, now);
  NextAdmits(kP, kD);
  Ended(kD, id, 1, v1::AttemptEnded::REASON_DEADLINE);
  EXPECT_EQ(sink.error.code(), absl::StatusCode::kDeadlineExceeded);
  ExpectCancel(kP, id, 1);
}

TEST_F(RouterCoreTest, SilenceForASecondIsDeath) {
  AttachPair();
  Attach(kD2, v1::ROLE_DECODE);
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  NextAdmits(kP, kD);
  Pass(absl::Seconds(1), {kP, kD2});
  EXPECT_THAT(bus.sent, IsEmpty());
  Pass(absl::Milliseconds(50), {kP, kD2});
  ExpectCancel(kP, id, 1);
  ExpectCancel(kD, id, 1);  // it may be back some time
  NextAdmits(kP, kD2);
  EXPECT_EQ(core->Snapshot().instances[0].state, InstanceState::kDead);
  Beat(kD);
  EXPECT_EQ(core->Snapshot().instances[0].state, InstanceState::kReady);
}

TEST_F(RouterCoreTest, StandingStillIsWedged) {
  const struct {
    uint32_t longest_step_ms;
    absl::Duration wedged_after;
  } cases[] = {{0, absl::Seconds(2)}, {150, absl::Seconds(2)}, {300, absl::Seconds(3)}};
  for (const auto& test : cases) {
    SCOPED_TRACE(test.longest_step_ms);
    Restart({});
    AttachPair();
    RecordingSink sink;
    const RequestId id = Submit(&sink);
    NextAdmits(kP, kD);
    v1::WorkerMessage still;
    still.mutable_heartbeat()->set_ready(true);
    still.mutable_heartbeat()->set_progress(++progress[kD]);
    still.mutable_heartbeat()->set_longest_step_ms(test.longest_step_ms);
    still.mutable_heartbeat()->mutable_load()->set_kv_pages_free(32);
    core->OnWorkerMessage(kD, still, now);
    const auto pass = [&](absl::Duration duration) {
      for (const absl::Time end = now + duration; now < end;) {
        now += absl::Milliseconds(50);
        core->OnWorkerMessage(kD, still, now);
        Beat(kP);
        core->OnTick(now);
      }
    };
    pass(test.wedged_after);
    EXPECT_THAT(bus.sent, IsEmpty());
    EXPECT_TRUE(core->CanPlace());
    pass(absl::Milliseconds(50));
    ExpectCancel(kP, id, 1);
    ExpectCancel(kD, id, 1);
    EXPECT_THAT(bus.sent, IsEmpty());
    EXPECT_FALSE(core->CanPlace());
    EXPECT_FALSE(sink.ended()) << "it waits for an instance";
    still.mutable_heartbeat()->set_progress(++progress[kD]);
    core->OnWorkerMessage(kD, still, now);
    EXPECT_EQ(NextAdmits(kP, kD).attempt(), 2);
  }
}

TEST_F(RouterCoreTest, AProcessThatStoodStillItselfBlamesNobody) {
  AttachPair();
  RecordingSink sink;
  Submit(&sink);
  NextAdmits(kP, kD);
  core->OnTick(now);
  now += absl::Seconds(30);
  core->OnTick(now);
  EXPECT_THAT(bus.sent, IsEmpty());
  EXPECT_TRUE(core->CanPlace());
}

TEST_F(RouterCoreTest, WithoutInstancesRequestsAreRefusedAndAcceptedOnesWaitAWhile) {
  RecordingSink sink;
  absl::Status refused = core->Submit(Ask(), &sink, now).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(RetryAfter(refused).has_value());
  AttachPair();
  Submit(&sink);
  bus.sent.clear();
  core->OnWorkerGone(kD, now);
  EXPECT_EQ(core->Submit(Ask(), &sink, now).status().code(), absl::StatusCode::kUnavailable);
  Pass(absl::Seconds(29), {kP});
  EXPECT_FALSE(sink.ended());
  Pass(absl::Seconds(2), {kP});
  EXPECT_EQ(sink.error.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(core->idle());
}

TEST_F(RouterCoreTest, WhatNobodyCanHoldIsRefusedByTheLimitsName) {
  AttachPair();
  RecordingSink sink;
  EXPECT_EQ(core->Snapshot().positions_max, 1024);
  const absl::Status refused = core->Submit(Ask(1024), &sink, now).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(refused.message(), testing::AllOf(HasSubstr("1024 tokens"), HasSubstr("positions")));
  EXPECT_FALSE(RetryAfter(refused).has_value());
  ASSERT_TRUE(core->Submit(Ask(1000, 500), &sink, now).ok());
  EXPECT_EQ(NextAdmits(kP, kD).sampling().max_tokens(), 24);
}

TEST_F(RouterCoreTest, QueuesAreBoundedByClass) {
  Restart({.queued_requests_max = 2});
  AttachPair();
  std::vector<RecordingSink> sinks(9);
  for (int i = 0; i < 6; ++i) Submit(&sinks[i]);  // four are placed
  const absl::Status full = core->Submit(Ask(), &sinks[7], now).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(full).has_value());
  EXPECT_EQ(core->Snapshot().queued, 2);
  GenerationRequest other = Ask();
  other.priority = 1;
  EXPECT_TRUE(core->Submit(other, &sinks[8], now).ok());
  EXPECT_EQ(probe.counts["rejected queue_full"], 1);
}

TEST_F(RouterCoreTest, WhatWouldMissItsFirstTokensTargetIsRefused) {
  Restart({.class_targets = {{.ttft = absl::Seconds(1)}}});
  AttachPair();
  std::vector<RecordingSink> sinks(8);
  // Four are placed: 0.4 a second, over the window of the pace.
  for (int i = 0; i < 4; ++i) Submit(&sinks[i]);
  Submit(&sinks[4]);  // before it nobody waits
  const absl::Status refused = core->Submit(Ask(), &sinks[5], now).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), testing::AllOf(HasSubstr("class 0"), HasSubstr("within 1s"),
                                                HasSubstr("about 2.5s")));
  EXPECT_EQ(RetryAfter(refused), absl::Seconds(1.5));
  EXPECT_EQ(probe.counts["rejected ttft_target"], 1);
  GenerationRequest other = Ask();
  other.priority = 1;  // whose class has no target
  EXPECT_TRUE(core->Submit(other, &sinks[6], now).ok());
}

TEST_F(RouterCoreTest, TargetsAreCountedByClass) {
  Restart(
      {.class_targets = {{}, {.ttft = absl::Milliseconds(40), .tpot = absl::Milliseconds(10)}}});
  AttachPair();
  const auto run = [&](uint32_t priority, absl::Duration first, absl::Duration rest) {
    RecordingSink sink;
    GenerationRequest ask = Ask();
    ask.priority = priority;
    const RequestId id = *core->Submit(ask, &sink, now);
    NextAdmits(kP, kD);
    Leased(kD, id);
    Next(kP);
    now += first;
    Tokens(kP, id, 1, 0, {50});
    Next(kD);
    KvReady(kD, id);
    now += rest;
    Tokens(kD, id, 1, 1, {51, 52, 53}, v1::FINISH_LENGTH);
  };
  run(1, absl::Milliseconds(40), absl::Milliseconds(30));
  run(1, absl::Milliseconds(41), absl::Milliseconds(33));
  run(1, absl::Milliseconds(10), absl::Milliseconds(31));
  run(0, absl::Milliseconds(500), absl::Milliseconds(500));  // has none
  // Before a token came, one client gives up, and one request runs out of time.
  RecordingSink gone, late;
  GenerationRequest ask = Ask();
  ask.priority = 1;
  core->Cancel(*core->Submit(ask, &gone, now), now);
  ask.deadline = now + absl::Milliseconds(100);
  ASSERT_TRUE(core->Submit(ask, &late, now).ok());
  Pass(absl::Milliseconds(200), {kP, kD});
  EXPECT_EQ(probe.counts, (std::map<std::string, int>{{"end OK", 4},
                                                      {"end CANCELLED", 1},
                                                      {"end DEADLINE_EXCEEDED", 1},
                                                      {"ttft of 1 met", 2},
                                                      {"ttft of 1 missed", 2},
                                                      {"tpot of 1 met", 1},
                                                      {"tpot of 1 missed", 2}}));
}

TEST_F(RouterCoreTest, NoMoreThanAllowedArePlacedAtOnce) {
  Restart({.active_requests_max = 2, .queued_requests_max = 1});
  AttachPair();
  std::vector<RecordingSink> sinks(4);
  std::vector<RequestId> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(Submit(&sinks[i]));
  EXPECT_EQ(core->Snapshot().queued, 1);
  EXPECT_EQ(core->Submit(Ask(), &sinks[3], now).status().code(),
            absl::StatusCode::kResourceExhausted);
  bus.sent.clear();
  core->Cancel(ids[0], now);
  ExpectCancel(kP, ids[0], 1);
  ExpectCancel(kD, ids[0], 1);
  EXPECT_EQ(NextAdmits(kP, kD).request(), ids[2]);
}

TEST_F(RouterCoreTest, AFreedPlaceGoesToTheNextInLineAtOnce) {
  AttachPair();
  std::vector<RecordingSink> sinks(5);
  std::vector<RequestId> ids;
  for (RecordingSink& sink : sinks) ids.push_back(Submit(&sink));
  bus.sent.clear();
  core->Cancel(ids[2], now);
  ExpectCancel(kP, ids[2], 1);
  ExpectCancel(kD, ids[2], 1);
  EXPECT_EQ(NextAdmits(kP, kD).request(), ids[4]);
}

TEST_F(RouterCoreTest, ARequestGoesWhereItsPrefixIs) {
  AttachPair();
  Attach(kP2, v1::ROLE_PREFILL);
  Attach(kD2, v1::ROLE_DECODE);
  GenerationRequest request = Ask(130);
  auto prompt = std::make_shared<Prompt>(*request.prompt);
  prompt->page_hashes = std::string(16, 'a') + std::string(16, 'b');
  prompt->page_hash_seed = std::string(16, 's');
  request.prompt = prompt;
  for (WorkerId worker : {kP2, kD2}) {
    v1::WorkerMessage events;
    events.mutable_kv_events()->set_sequence(1);
    events.mutable_kv_events()->set_snapshot(true);
    events.mutable_kv_events()->set_stored_hashes(prompt->page_hashes);
    core->OnWorkerMessage(worker, events, now);
  }
  RecordingSink sink;
  ASSERT_TRUE(core->Submit(request, &sink, now).ok());
  const v1::Admit admit = NextAdmits(kP2, kD2);
  EXPECT_EQ(admit.page_hashes(), prompt->page_hashes);
  EXPECT_EQ(admit.page_hash_seed(), prompt->page_hash_seed);

  v1::WorkerMessage late;
  late.mutable_kv_events()->set_sequence(3);
  core->OnWorkerMessage(kP2, late, now);
  EXPECT_EQ(Next(kP2).message_case(), RouterMessage::kRequestKvSnapshot);
  EXPECT_EQ(probe.counts["kv gap"], 1);

  prompt = std::make_shared<Prompt>(*prompt);
  prompt->page_hashes += "x";
  request.prompt = prompt;
  EXPECT_EQ(core->Submit(request, &sink, now).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(RouterCoreTest, HellosThatDoNotFitAreRefused) {
  const struct {
    std::string name;
    std::function<void(v1::Hello*)> change;
    absl::StatusCode code;
    std::string says;
  } cases[] = {
      {"another protocol",
       [](v1::Hello* h) { h->set_protocol_version(static_cast<v1::ProtocolVersion>(9)); },
       absl::StatusCode::kFailedPrecondition, "protocol_version: 9"},
      {"another model", [](v1::Hello* h) { h->set_model_hash("fedcba9876543210"); },
       absl::StatusCode::kFailedPrecondition, "model_hash"},
      {"no name", [](v1::Hello* h) { h->clear_instance(); }, absl::StatusCode::kInvalidArgument,
       "instance"},
      {"no role", [](v1::Hello* h) { h->clear_role(); }, absl::StatusCode::kInvalidArgument,
       "role"},
      {"no pages", [](v1::Hello* h) { h->mutable_capacity()->set_kv_pages(0); },
       absl::StatusCode::kInvalidArgument, "capacity"},
      {"a name that is taken", [](v1::Hello* h) { h->set_incarnation(18); },
       absl::StatusCode::kAlreadyExists, "decode-2"},
  };
  AttachPair();
  for (const auto& test : cases) {
    SCOPED_TRACE(test.name);
    v1::Hello hello = HelloOf("decode-2", v1::ROLE_DECODE);
    test.change(&hello);
    const absl::Status refused = core->OnWorkerHello(9, hello, now);
    EXPECT_EQ(refused.code(), test.code);
    EXPECT_THAT(refused.message(), HasSubstr(test.says));
    EXPECT_THAT(bus.sent, IsEmpty());
  }
}

TEST_F(RouterCoreTest, AProcessThatDialsAgainReplacesItsOldStream) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Decoding(&sink);
  ASSERT_TRUE(core->OnWorkerHello(9, HelloOf("decode-2", v1::ROLE_DECODE), now).ok());
  EXPECT_FALSE(sink.ended());
  Next(9);
  Beat(9);
  EXPECT_THAT(NextAdmits(kP, 9).output_ids(), ElementsAre(50));
  ASSERT_THAT(bus.ended, testing::SizeIs(1));
  EXPECT_EQ(bus.ended[0].first, kD);
  EXPECT_EQ(bus.ended[0].second.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(bus.ended[0].second.message(), HasSubstr("decode-2"));
  Tokens(kD, id, 1, 1, {51});  // from the old stream
  EXPECT_THAT(sink.tokens, ElementsAre(50));
  core->OnWorkerGone(kD, now);
  EXPECT_EQ(core->Snapshot().instances.size(), 2);
}

// Only while that one is alive may nobody else take its name.
TEST_F(RouterCoreTest, AnotherProcessTakesTheNameOfADeadOrWedgedOne) {
  for (const bool beats : {false, true}) {
    SCOPED_TRACE(beats ? "wedged" : "dead");
    Restart({});
    bus.ended.clear();
    AttachPair();
    RecordingSink sink;
    const RequestId id = Decoding(&sink);
    v1::Hello other = HelloOf("decode-2", v1::ROLE_DECODE);
    other.set_incarnation(18);
    EXPECT_EQ(core->OnWorkerHello(9, other, now).code(), absl::StatusCode::kAlreadyExists);
    EXPECT_THAT(bus.ended, IsEmpty());
    for (const absl::Time end = now + absl::Seconds(3); now < end;) {
      now += absl::Milliseconds(50);
      Beat(kP);
      if (beats) {
        --progress[kD];  // stands still
        Beat(kD);
      }
      core->OnTick(now);
    }
    ExpectCancel(kD, id, 1);
    ASSERT_TRUE(core->OnWorkerHello(9, other, now).ok());
    ASSERT_THAT(bus.ended, testing::SizeIs(1));
    EXPECT_EQ(bus.ended[0].first, kD);
    EXPECT_THAT(bus.ended[0].second.message(), HasSubstr("incarnation 18"));
    Next(9);
    Beat(9);
    EXPECT_THAT(NextAdmits(kP, 9).output_ids(), ElementsAre(50));
    core->Cancel(id, now);
  }
}

// They are not in the queue, and take the same memory.
TEST_F(RouterCoreTest, PromptsThatWaitForAnInstanceToComeBackCount) {
  Restart({.queued_tokens_max = 200});
  Attach(kD, v1::ROLE_MIXED);
  v1::Hello small = HelloOf("small", v1::ROLE_MIXED);
  small.mutable_capacity()->set_positions(64);
  ASSERT_TRUE(core->OnWorkerHello(9, small, now).ok());
  Beat(9);
  Beat(kD, /*ready=*/false);
  RecordingSink sinks[3];
  for (int i = 0; i < 2; ++i) Submit(&sinks[i], 100);
  EXPECT_EQ(core->Snapshot().queued, 2);
  EXPECT_EQ(core->Snapshot().queued_tokens, 200);
  const absl::Status refused = core->Submit(Ask(100), &sinks[2], now).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), HasSubstr("200 prompt tokens"));
  EXPECT_TRUE(RetryAfter(refused).has_value());
  Beat(kD);
  EXPECT_EQ(core->Snapshot().queued_tokens, 0) << "placed";
}

TEST_F(RouterCoreTest, AnInstanceThatFailsIsLoggedOnceWithWhatItHad) {
  const auto lines = [&](const std::function<void()>& run) {
    testing::internal::CaptureStderr();
    run();
    return testing::internal::GetCapturedStderr();
  };
  AttachPair();
  Attach(kD2, v1::ROLE_DECODE);
  RecordingSink sink;
  const RequestId id = Decoding(&sink);
  // Silent for 3 s, which is more than one reason, and back.
  std::string log = lines([&] { Pass(absl::Seconds(3), {kP, kD2}); });
  EXPECT_THAT(log, HasSubstr("worker failed worker=decode-2 reason=dead requests=1"));
  EXPECT_EQ(log.find("worker failed"), log.rfind("worker failed")) << log;
  EXPECT_THAT(lines([&] {
                Pass(absl::Milliseconds(100), {kP, kD, kD2});
              }),
              HasSubstr("worker is back worker=decode-2"));
  core->Cancel(id, now);
  bus.sent.clear();
  // Without a request it is said, too.
  log = lines([&] {
    for (int i = 0; i < 60; ++i) {
      --progress[kD];  // stands still
      Pass(absl::Milliseconds(50), {kP, kD, kD2});
    }
  });
  EXPECT_THAT(log, HasSubstr("worker failed worker=decode-2 reason=wedged requests=0"));
  EXPECT_EQ(log.find("worker failed"), log.rfind("worker failed")) << log;
  EXPECT_THAT(lines([&] { core->OnWorkerGone(kP, now); }),
              HasSubstr("worker failed worker=prefill-1 reason=gone requests=0"));
}

TEST_F(RouterCoreTest, InstancesThatADrainingRouterLetsGoHaveNotFailed) {
  AttachPair();
  core->BeginDrain();
  testing::internal::CaptureStderr();
  core->OnWorkerGone(kP, now);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("worker left worker=prefill-1"));
}

TEST_F(RouterCoreTest, DrainRefusesNewRequestsAndFinishesOldOnes) {
  AttachPair();
  RecordingSink sink;
  const RequestId id = Decoding(&sink);
  core->BeginDrain();
  EXPECT_FALSE(core->CanPlace());
  EXPECT_EQ(core->Submit(Ask(), &sink, now).status().code(), absl::StatusCode::kUnavailable);
  Attach(kD2, v1::ROLE_DECODE);
  core->OnWorkerGone(kD, now);
  NextAdmits(kP, kD2);  // also when it must be placed anew
  EXPECT_FALSE(core->idle());
  core->Cancel(id, now);
  EXPECT_TRUE(core->idle());
}

TEST_F(RouterCoreTest, WhatIsLeftWhenADrainIsOverEndsWithAnError) {
  AttachPair();
  std::vector<RecordingSink> sinks(6);
  const RequestId decoding = Decoding(&sinks[0]);
  for (int i = 1; i < 5; ++i) Submit(&sinks[i]);  // three are placed
  const RequestId other = Submit(&sinks[5]);
  sinks[0].on_error = [&] {
    core->Cancel(other, now);  // another answer of the same call
    EXPECT_EQ(core->Submit(Ask(), &sinks[0], now).status().code(), absl::StatusCode::kUnavailable);
  };
  core->BeginDrain();
  bus.sent.clear();
  core->EndAll(now);
  EXPECT_TRUE(core->idle());
  ExpectCancel(kD, decoding, 1);
  for (const auto& [_, message] : bus.sent) {
    EXPECT_EQ(message.message_case(), RouterMessage::kCancel) << "nothing is placed any more";
  }
  EXPECT_FALSE(sinks[5].ended());
  for (int i = 0; i < 5; ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(sinks[i].error.code(), absl::StatusCode::kUnavailable);
    EXPECT_TRUE(RetryAfter(sinks[i].error).has_value());
    EXPECT_THAT(sinks[i].error.message(), HasSubstr("this router ends"));
  }
}

TEST_F(RouterCoreTest, DrainingAndLoadingInstancesGetNothingNew) {
  AttachPair();
  Beat(kD, /*ready=*/false);
  EXPECT_FALSE(core->CanPlace());
  Beat(kD);
  EXPECT_TRUE(core->CanPlace());
  RecordingSink sink;
  const RequestId id = Submit(&sink);
  NextAdmits(kP, kD);
  Refused(kD, id, 1, v1::Refused::CODE_DRAINING);
  EXPECT_FALSE(core->CanPlace());
  EXPECT_EQ(core->Snapshot().instances[0].state, InstanceState::kDraining);
}

}  // namespace
}  // namespace sluice::router
