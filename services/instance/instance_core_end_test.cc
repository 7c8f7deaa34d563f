// How attempts end early: cancel, fences, timeouts, pages that run out, routers that go, drain.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/instance/core_harness.h"
#include "services/instance/instance_core.h"

namespace sluice::instance {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// --- Cancel, in each state ---

enum class Stage { kAdmitted, kFirstStepRuns, kGranted, kHeld, kLeased, kKvReady, kDecoding };

struct CancelCase {
  const char* name;
  v1::Role role;
  Stage stage;
};

// Brings request 1 of 130 prompt tokens to the stage.
void Reach(Harness* h, v1::Role role, Stage stage) {
  if (role == v1::ROLE_PREFILL) {
    h->From(Admit(1, v1::LEG_PREFILL, 130));
    if (stage == Stage::kAdmitted) return;
    if (stage == Stage::kGranted || stage == Stage::kHeld) h->From(Grant(1, MakeLease(0, 3)));
    h->Submit();
    if (stage == Stage::kHeld) h->Run();
    return;
  }
  h->From(Admit(1, v1::LEG_DECODE, 130, 50));
  if (stage == Stage::kLeased) return;
  h->receiver_.Finish(h->receiver_.leases.begin()->first);
  if (stage == Stage::kKvReady) return;
  h->From(Start(1, 0, {100}));
  h->Submit();
}

constexpr CancelCase kCancelCases[] = {
    {"prefill, waiting", v1::ROLE_PREFILL, Stage::kAdmitted},
    {"prefill, computing", v1::ROLE_PREFILL, Stage::kFirstStepRuns},
    {"prefill, computing and sending", v1::ROLE_PREFILL, Stage::kGranted},
    {"prefill, held and sending", v1::ROLE_PREFILL, Stage::kHeld},
    {"decode, leased", v1::ROLE_DECODE, Stage::kLeased},
    {"decode, KV there", v1::ROLE_DECODE, Stage::kKvReady},
    {"decode, decoding", v1::ROLE_DECODE, Stage::kDecoding},
};

TEST(InstanceCoreTest, CancelStopsWorkAndGivesPagesBack) {
  for (const CancelCase& test : kCancelCases) {
    SCOPED_TRACE(test.name);
    Harness h(test.role);
    Reach(&h, test.role, test.stage);
    h.TakeReplies();
    h.From(Cancel(1));
    EXPECT_EQ(h.core_.num_attempts(), 0);
    // What runs is finished, and nothing more is planned.
    while (!h.in_flight_.empty()) h.FinishStep();
    EXPECT_FALSE(h.Submit());
    EXPECT_THAT(h.TakeReplies(), IsEmpty());
    if (!h.sender_.transfers.empty()) {
      EXPECT_TRUE(h.sender_.transfers.at(1).aborted);
      EXPECT_EQ(h.free_pages(), kPages - 3);  // may still be read
      h.sender_.Finish(1, absl::CancelledError());
    }
    EXPECT_EQ(h.free_pages(), kPages);
    EXPECT_EQ(h.quarantined(), 0);
    EXPECT_THAT(h.receiver_.leases, IsEmpty());
    h.From(Cancel(1));  // again: nothing
    EXPECT_THAT(h.TakeReplies(), IsEmpty());
  }
}

TEST(InstanceCoreTest, PagesStayInQuarantineUntilTheFenceStands) {
  Harness decode(v1::ROLE_DECODE);
  decode.From(Admit(1, v1::LEG_DECODE, 100));
  decode.receiver_.holding = true;  // a copy is in flight
  decode.From(Cancel(1));
  EXPECT_EQ(decode.quarantined(), 2);
  EXPECT_EQ(decode.core_.MakeHeartbeat(decode.now()).load().kv_pages_quarantined(), 2);
  EXPECT_EQ(decode.free_pages(), kPages - 2);
  decode.Advance(InstanceCore::kTick);
  EXPECT_EQ(decode.quarantined(), 2);
  decode.receiver_.holding = false;
  decode.Advance(InstanceCore::kTick);
  EXPECT_EQ(decode.quarantined(), 0);
  EXPECT_EQ(decode.free_pages(), kPages);
}

TEST(InstanceCoreTest, AnAdmissionLooksWhetherFencesStandNow) {
  Harness decode(v1::ROLE_DECODE, 2);
  decode.From(Admit(1, v1::LEG_DECODE, 100));
  EXPECT_TRUE(decode.TakeOne().has_leased());
  decode.receiver_.holding = true;
  decode.From(Cancel(1));
  decode.From(Admit(2, v1::LEG_DECODE, 100));
  EXPECT_EQ(decode.TakeOne().refused().code(), v1::Refused::CODE_NO_ROOM);
  decode.receiver_.holding = false;
  decode.From(Admit(3, v1::LEG_DECODE, 100));  // before any tick
  EXPECT_TRUE(decode.TakeOne().has_leased());
}

TEST(InstanceCoreTest, DamagedKvEndsTheAttemptAndIsNeverDecoded) {
  Harness decode(v1::ROLE_DECODE);
  decode.From(Admit(1, v1::LEG_DECODE, 100));
  const uint64_t lease = decode.TakeOne().leased().lease().lease();
  decode.From(Start(1, 0, {100}));
  decode.receiver_.Finish(lease, absl::DataLossError("checksum"));
  EXPECT_EQ(decode.TakeOne().attempt_ended().reason(), v1::AttemptEnded::REASON_KV_FAILED);
  EXPECT_FALSE(decode.Submit());
  EXPECT_EQ(decode.free_pages(), kPages);
  EXPECT_THAT(decode.receiver_.leases, IsEmpty());
}

// --- Time ---

struct TimeoutCase {
  const char* name;
  v1::Role role;
  Stage stage;
  absl::Duration after;
  const char* detail;
};

TEST(InstanceCoreTest, WhatDoesNotComeInTimeEndsTheAttempt) {
  const TimeoutCase cases[] = {
      {"no lease", v1::ROLE_PREFILL, Stage::kAdmitted, absl::Seconds(5), "no lease"},
      {"no KV", v1::ROLE_DECODE, Stage::kLeased, absl::Seconds(20), "KV did not come"},
      {"no StartDecode", v1::ROLE_DECODE, Stage::kKvReady, absl::Seconds(20), "no StartDecode"},
  };
  for (const TimeoutCase& test : cases) {
    SCOPED_TRACE(test.name);
    Harness h(test.role);
    Reach(&h, test.role, test.stage);
    h.TakeReplies();
    h.Advance(test.after - absl::Milliseconds(1));
    EXPECT_THAT(h.TakeReplies(), IsEmpty());
    h.Advance(absl::Milliseconds(1));
    const v1::WorkerMessage ended = h.TakeOne();
    EXPECT_EQ(ended.attempt_ended().reason(), v1::AttemptEnded::REASON_KV_FAILED);
    EXPECT_THAT(ended.attempt_ended().detail(), HasSubstr(test.detail));
    EXPECT_EQ(h.free_pages(), kPages);
    EXPECT_THAT(h.receiver_.leases, IsEmpty());
    EXPECT_FALSE(h.Submit());
  }
}

TEST(InstanceCoreTest, ADeadlineEndsTheAttemptInEveryState) {
  for (const CancelCase& test : kCancelCases) {
    SCOPED_TRACE(test.name);
    Harness h(test.role);
    v1::RouterMessage admit =
        Admit(2, test.role == v1::ROLE_PREFILL ? v1::LEG_PREFILL : v1::LEG_DECODE, 10, 50);
    admit.mutable_admit()->set_deadline_ms(1000);
    h.From(admit);
    if (test.stage == Stage::kDecoding) {
      h.receiver_.Finish(h.receiver_.leases.begin()->first);
      h.From(Start(2, 0, {100}));
      h.Submit();
    }
    h.TakeReplies();
    h.Advance(absl::Milliseconds(999));
    EXPECT_THAT(h.TakeReplies(), IsEmpty());
    h.Advance(absl::Milliseconds(1));
    EXPECT_EQ(h.TakeOne().attempt_ended().reason(), v1::AttemptEnded::REASON_DEADLINE);
    while (!h.in_flight_.empty()) h.FinishStep();
    EXPECT_EQ(h.free_pages(), kPages);
  }
}

// --- Pages run out, routers go, the engine fails, the instance drains ---

TEST(InstanceCoreTest, ADecodeThatRunsOutOfPagesHandsBackUntilItMayNotAnyMore) {
  for (const bool may : {true, false}) {
    SCOPED_TRACE(may);
    Harness decode(v1::ROLE_DECODE, 4);
    for (uint64_t request = 1; request <= 2; ++request) {
      v1::RouterMessage admit = Admit(request, v1::LEG_DECODE, 60, 100);
      admit.mutable_admit()->clear_page_hashes();
      admit.mutable_admit()->set_may_hand_back(may);
      decode.From(admit);
      decode.receiver_.Finish(decode.receiver_.leases.begin()->first);
      decode.From(Start(request, 0, {100}));
    }
    decode.Run();
    int handed_back = 0;
    for (const v1::WorkerMessage& message : decode.TakeReplies()) {
      if (!message.has_attempt_ended()) continue;
      EXPECT_EQ(message.attempt_ended().reason(), v1::AttemptEnded::REASON_HANDED_BACK);
      EXPECT_EQ(message.attempt_ended().request(), 2);  // the younger one
      ++handed_back;
    }
    EXPECT_EQ(handed_back, may ? 1 : 0);
    EXPECT_EQ(decode.core_.num_attempts(), 0);
    EXPECT_EQ(decode.free_pages(), 4);
  }
}

TEST(InstanceCoreTest, WhatARouterPlacedGoesWithIt) {
  for (const CancelCase& test : kCancelCases) {
    SCOPED_TRACE(test.name);
    Harness h(test.role);
    h.core_.OnRouterAttached(2, h.now());
    h.From(Admit(9, test.role == v1::ROLE_PREFILL ? v1::LEG_PREFILL : v1::LEG_DECODE, 10), 2);
    Reach(&h, test.role, test.stage);
    h.routers_.sent.clear();
    h.core_.OnRouterGone(kRouter, h.now());
    EXPECT_EQ(h.core_.num_attempts(), 1);  // the other router's
    EXPECT_THAT(h.Take(), IsEmpty());
    h.From(Admit(1, v1::LEG_DECODE, 10));  // late
    EXPECT_EQ(h.core_.num_attempts(), 1);
  }
}

TEST(InstanceCoreTest, AnEngineThatFailsEndsEverything) {
  Harness decode(v1::ROLE_DECODE);
  Reach(&decode, v1::ROLE_DECODE, Stage::kDecoding);
  decode.From(Admit(2, v1::LEG_DECODE, 10));
  decode.TakeReplies();
  decode.core_.OnEngineFailed(absl::InternalError("device lost"), decode.now());
  const auto messages = decode.TakeReplies();
  ASSERT_THAT(messages, SizeIs(2));
  for (const v1::WorkerMessage& message : messages) {
    EXPECT_EQ(message.attempt_ended().reason(), v1::AttemptEnded::REASON_ENGINE);
  }
  EXPECT_FALSE(decode.core_.MakeHeartbeat(decode.now()).ready());
  EXPECT_FALSE(decode.Submit());
  decode.From(Admit(3, v1::LEG_DECODE, 10));
  EXPECT_TRUE(decode.TakeOne().has_refused());
}

TEST(InstanceCoreTest, DrainingFinishesWhatRunsAndRefusesTheRest) {
  Harness mixed(v1::ROLE_MIXED);
  mixed.From(Admit(1, v1::LEG_BOTH, 10));
  mixed.core_.BeginDrain(mixed.now());
  EXPECT_FALSE(mixed.core_.drained());
  const v1::Heartbeat heartbeat = mixed.core_.MakeHeartbeat(mixed.now());
  EXPECT_FALSE(heartbeat.ready());
  EXPECT_TRUE(heartbeat.draining());
  mixed.From(Admit(2, v1::LEG_BOTH, 10));
  EXPECT_EQ(mixed.TakeOne().refused().code(), v1::Refused::CODE_DRAINING);
  mixed.Run();
  EXPECT_THAT(Tokens(mixed.TakeReplies()), SizeIs(4));
  EXPECT_TRUE(mixed.core_.drained());
}

TEST(InstanceCoreTest, WhatDoesNotEndInTheDrainsTimeIsHandedBack) {
  for (const CancelCase& test : kCancelCases) {
    SCOPED_TRACE(test.name);
    Harness h(test.role);
    Reach(&h, test.role, test.stage);
    h.TakeReplies();
    h.core_.BeginDrain(h.now());
    h.Advance(absl::Seconds(3));  // under every other timeout
    EXPECT_THAT(h.TakeReplies(), IsEmpty());
    // Deadlines of legs that wait for others do not come into it.
    if (test.stage == Stage::kAdmitted || test.stage == Stage::kFirstStepRuns) continue;
    h.Advance(absl::Seconds(7));
    EXPECT_EQ(h.TakeOne().attempt_ended().reason(), v1::AttemptEnded::REASON_DRAINING);
    while (!h.in_flight_.empty()) h.FinishStep();
    if (!h.sender_.transfers.empty()) {
      EXPECT_FALSE(h.core_.drained());  // its pages are still being read
      h.sender_.Finish(1, absl::CancelledError());
    }
    EXPECT_TRUE(h.core_.drained());
    EXPECT_EQ(h.free_pages(), kPages);
  }
}

}  // namespace
}  // namespace sluice::instance
