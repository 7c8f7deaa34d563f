// What a request goes through when nothing fails, and what is refused.
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

// --- One request through prefill and decode ---

TEST(InstanceCoreTest, ARequestGoesThroughPrefillAndDecode) {
  Harness prefill(v1::ROLE_PREFILL), decode(v1::ROLE_DECODE);
  decode.From(Admit(1, v1::LEG_DECODE, 100));
  prefill.From(Admit(1, v1::LEG_PREFILL, 100));
  const v1::WorkerMessage leased = decode.TakeOne();
  ASSERT_TRUE(leased.has_leased());
  const v1::Lease& lease = leased.leased().lease();
  EXPECT_EQ(lease.first_page(), 0);
  EXPECT_EQ(lease.pages_size(), 2);
  EXPECT_EQ(lease.endpoint(), "fake");
  EXPECT_EQ(lease.incarnation(), 7);
  EXPECT_EQ(decode.receiver_.leases.at(lease.lease()).rows, 100);

  prefill.From(Grant(1, lease));
  prefill.Run();  // 64 tokens, then 36
  const v1::WorkerMessage first = prefill.TakeOne();
  ASSERT_EQ(first.step_tokens().requests_size(), 1);
  EXPECT_THAT(first.step_tokens().requests(0).token_ids(), ElementsAre(100));
  EXPECT_EQ(first.step_tokens().requests(0).first_output(), 0);
  EXPECT_EQ(first.step_tokens().requests(0).finish(), v1::FINISH_UNSPECIFIED);
  EXPECT_EQ(first.step_tokens().requests(0).compute_ms(), 20);
  // Two pages in two layers, the last one with 36 rows.
  const FakeSender::Transfer& transfer = prefill.sender_.transfers.at(1);
  ASSERT_THAT(transfer.writes, SizeIs(4));
  EXPECT_EQ(transfer.writes[3].index, 1);
  EXPECT_EQ(transfer.writes[3].rows, 36);

  // Held until its KV is out.
  EXPECT_EQ(prefill.free_pages(), kPages - 2);
  EXPECT_EQ(prefill.core_.num_attempts(), 1);
  prefill.sender_.Finish(1);
  EXPECT_EQ(prefill.free_pages(), kPages);
  EXPECT_EQ(prefill.core_.num_attempts(), 0);

  decode.From(Start(1, 0, {100}));
  decode.Run();
  EXPECT_THAT(decode.TakeReplies(), IsEmpty());  // no KV yet
  decode.receiver_.Finish(lease.lease());
  const v1::WorkerMessage ready = decode.TakeOne();
  EXPECT_EQ(ready.kv_ready().bytes(), 1000);
  EXPECT_EQ(ready.kv_ready().transfer_ms(), 3);
  EXPECT_THAT(decode.receiver_.leases, IsEmpty());
  decode.Run();
  const std::vector<v1::WorkerMessage> rest = decode.TakeReplies();
  EXPECT_THAT(Tokens(rest), ElementsAre(101, 102, 103));
  EXPECT_EQ(rest[0].step_tokens().requests(0).first_output(), 1);
  EXPECT_EQ(rest.back().step_tokens().requests(0).finish(), v1::FINISH_LENGTH);
  EXPECT_EQ(decode.free_pages(), kPages);
  EXPECT_EQ(decode.core_.num_attempts(), 0);
}

TEST(InstanceCoreTest, KvMayComeBeforeStartDecode) {
  Harness decode(v1::ROLE_DECODE);
  decode.From(Admit(1, v1::LEG_DECODE, 64));
  decode.receiver_.Finish(decode.TakeOne().leased().lease().lease());
  EXPECT_TRUE(decode.TakeOne().has_kv_ready());
  decode.Run();
  EXPECT_THAT(decode.TakeReplies(), IsEmpty());
  decode.From(Start(1, 0, {100}));
  decode.Run();
  EXPECT_THAT(Tokens(decode.TakeReplies()), ElementsAre(101, 102, 103));
}

TEST(InstanceCoreTest, AContinuationCountsItsFormerOutputs) {
  Harness prefill(v1::ROLE_PREFILL), decode(v1::ROLE_DECODE);
  prefill.From(Admit(1, v1::LEG_PREFILL, 10, 5, {100, 101}));
  prefill.From(Grant(1, MakeLease(0, 1)));
  prefill.Run();
  const v1::WorkerMessage first = prefill.TakeOne();
  EXPECT_EQ(first.step_tokens().requests(0).first_output(), 2);
  EXPECT_THAT(Tokens({first}), ElementsAre(102));
  EXPECT_EQ(prefill.sender_.transfers.at(1).writes[0].rows, 12);

  decode.From(Admit(1, v1::LEG_DECODE, 10, 5, {100, 101}));
  decode.receiver_.Finish(decode.TakeOne().leased().lease().lease());
  decode.TakeReplies();
  decode.From(Start(1, 2, {102}));
  decode.Run();
  EXPECT_THAT(Tokens(decode.TakeReplies()), ElementsAre(103, 104));
}

TEST(InstanceCoreTest, ALeaseThatComesLateGetsAllThatWasComputed) {
  Harness prefill(v1::ROLE_PREFILL);
  prefill.From(Admit(1, v1::LEG_PREFILL, 130));
  prefill.Run();
  EXPECT_THAT(Tokens(prefill.TakeReplies()), ElementsAre(100));
  prefill.From(Grant(1, MakeLease(1, 2)));
  EXPECT_THAT(prefill.sender_.transfers.at(1).writes, SizeIs(4));
  prefill.sender_.Finish(1);
  EXPECT_EQ(prefill.free_pages(), kPages);
}

TEST(InstanceCoreTest, AMixedInstanceDoesBothLegs) {
  Harness mixed(v1::ROLE_MIXED);
  mixed.From(Admit(1, v1::LEG_BOTH, 10));
  mixed.Run();
  const std::vector<v1::WorkerMessage> messages = mixed.TakeReplies();
  EXPECT_THAT(Tokens(messages), ElementsAre(100, 101, 102, 103));
  EXPECT_EQ(messages.back().step_tokens().requests(0).finish(), v1::FINISH_LENGTH);
  EXPECT_EQ(mixed.core_.num_attempts(), 0);
}

TEST(InstanceCoreTest, AStepIsOneMessageForEachRouter) {
  Harness mixed(v1::ROLE_MIXED);
  mixed.core_.OnRouterAttached(2, mixed.now());
  mixed.routers_.sent.clear();
  mixed.From(Admit(1, v1::LEG_BOTH, 3));
  mixed.From(Admit(2, v1::LEG_BOTH, 3));
  mixed.From(Admit(1, v1::LEG_BOTH, 3), 2);  // ids are a router's own
  mixed.Submit();
  mixed.FinishStep();
  const auto first = mixed.TakeReplies(1), second = mixed.TakeReplies(2);
  ASSERT_THAT(first, SizeIs(1));
  EXPECT_EQ(first[0].step_tokens().requests_size(), 2);
  ASSERT_THAT(second, SizeIs(1));
  EXPECT_EQ(second[0].step_tokens().requests_size(), 1);
}

// --- Prefill: the first token may be the last; pages wait for the transfer ---

TEST(InstanceCoreTest, AFirstTokenThatIsTheLastNeedsNoTransfer) {
  Harness prefill(v1::ROLE_PREFILL);
  prefill.From(Admit(1, v1::LEG_PREFILL, 70, 1));
  prefill.From(Grant(1, MakeLease(0, 2)));
  prefill.Run();
  EXPECT_EQ(prefill.TakeOne().step_tokens().requests(0).finish(), v1::FINISH_LENGTH);
  EXPECT_EQ(prefill.core_.num_attempts(), 0);
  EXPECT_TRUE(prefill.sender_.transfers.at(1).aborted);
  EXPECT_EQ(prefill.free_pages(), kPages - 2);  // may still be read
  prefill.sender_.Finish(1, absl::CancelledError());
  EXPECT_EQ(prefill.free_pages(), kPages);
  EXPECT_THAT(prefill.TakeReplies(), IsEmpty());
}

TEST(InstanceCoreTest, KvMayBeOutBeforeTheTokenIsRead) {
  Harness prefill(v1::ROLE_PREFILL);
  prefill.From(Admit(1, v1::LEG_PREFILL, 30));
  prefill.From(Grant(1, MakeLease(0, 1)));
  prefill.Submit();
  prefill.FinishStep([&] { prefill.sender_.Finish(1); });
  EXPECT_THAT(Tokens(prefill.TakeReplies()), ElementsAre(100));
  EXPECT_EQ(prefill.core_.num_attempts(), 0);
  EXPECT_EQ(prefill.free_pages(), kPages);
}

TEST(InstanceCoreTest, ATransferThatFailsEndsTheAttempt) {
  Harness prefill(v1::ROLE_PREFILL);
  prefill.From(Admit(1, v1::LEG_PREFILL, 130));
  prefill.From(Grant(1, MakeLease(0, 3)));
  prefill.Submit();
  prefill.FinishStep([&] { prefill.sender_.Finish(1, absl::UnavailableError("gone")); });
  const v1::WorkerMessage ended = prefill.TakeOne();
  EXPECT_EQ(ended.attempt_ended().reason(), v1::AttemptEnded::REASON_KV_FAILED);
  EXPECT_THAT(ended.attempt_ended().detail(), HasSubstr("gone"));
  prefill.Run();
  EXPECT_THAT(prefill.TakeReplies(), IsEmpty());
  EXPECT_EQ(prefill.free_pages(), kPages);
}

struct BadGrant {
  const char* name;
  v1::Lease lease;
  absl::Status begin;
};

TEST(InstanceCoreTest, AGrantThatCannotBeUsedEndsTheAttempt) {
  const BadGrant cases[] = {
      {"too few pages", MakeLease(0, 1), absl::OkStatus()},
      {"too many pages", MakeLease(1, 2), absl::OkStatus()},
      {"no way to the receiver", MakeLease(0, 2), absl::InvalidArgumentError("endpoint")},
  };
  for (const BadGrant& test : cases) {
    SCOPED_TRACE(test.name);
    Harness prefill(v1::ROLE_PREFILL);
    prefill.sender_.FailNextBegin(test.begin);
    prefill.From(Admit(1, v1::LEG_PREFILL, 100));
    prefill.From(Grant(1, test.lease));
    EXPECT_EQ(prefill.TakeOne().attempt_ended().reason(), v1::AttemptEnded::REASON_KV_FAILED);
    prefill.Run();
    EXPECT_EQ(prefill.free_pages(), kPages);
  }
}

// --- What is refused, and what is dropped ---

TEST(InstanceCoreTest, LegsOfOtherRolesAreRefused) {
  const std::pair<v1::Role, v1::Leg> cases[] = {
      {v1::ROLE_PREFILL, v1::LEG_DECODE}, {v1::ROLE_PREFILL, v1::LEG_BOTH},
      {v1::ROLE_DECODE, v1::LEG_PREFILL}, {v1::ROLE_DECODE, v1::LEG_BOTH},
      {v1::ROLE_MIXED, v1::LEG_PREFILL},  {v1::ROLE_MIXED, v1::LEG_UNSPECIFIED}};
  for (const auto& [role, leg] : cases) {
    SCOPED_TRACE(absl::StrCat(v1::Role_Name(role), " ", v1::Leg_Name(leg)));
    Harness h(role);
    h.From(Admit(1, leg, 10));
    EXPECT_EQ(h.TakeOne().refused().code(), v1::Refused::CODE_INVALID);
    EXPECT_EQ(h.core_.num_attempts(), 0);
  }
}

TEST(InstanceCoreTest, WhatCannotBeHeldIsRefused) {
  Harness decode(v1::ROLE_DECODE, 4);
  decode.From(Admit(1, v1::LEG_DECODE, 150));  // three pages
  EXPECT_TRUE(decode.TakeOne().has_leased());
  decode.From(Admit(2, v1::LEG_DECODE, 100));
  const v1::WorkerMessage refused = decode.TakeOne();
  EXPECT_EQ(refused.refused().code(), v1::Refused::CODE_NO_ROOM);
  EXPECT_EQ(refused.refused().request(), 2);
  decode.From(Admit(3, v1::LEG_DECODE, 600));  // never
  EXPECT_EQ(decode.TakeOne().refused().code(), v1::Refused::CODE_INVALID);
  decode.From(Cancel(1));
  decode.From(Admit(2, v1::LEG_DECODE, 100));
  EXPECT_TRUE(decode.TakeOne().has_leased());
}

TEST(InstanceCoreTest, BadFieldsAreNamed) {
  struct Case {
    void (*change)(v1::Admit*);
    const char* named;
  };
  const Case cases[] = {
      {[](v1::Admit* a) { a->clear_prompt_ids(), a->clear_page_hashes(); }, "prompt"},
      {[](v1::Admit* a) { a->set_prompt_ids(3, 1000); }, "prompt[3]"},
      {[](v1::Admit* a) { a->set_prompt_ids(3, 0xffffffff); }, "prompt[3]"},
      {[](v1::Admit* a) { a->mutable_sampling()->set_top_p(2); }, "top_p"},
      {[](v1::Admit* a) { a->mutable_sampling()->set_max_tokens(0); }, "max_tokens"},
      {[](v1::Admit* a) { a->set_page_hashes(std::string(5, 'x')); }, "page_hashes"},
      {[](v1::Admit* a) { a->set_page_hashes(std::string(32, 'x')); }, "page_hashes"},
      {[](v1::Admit* a) { a->set_page_hash_seed("seed"); }, "page_hash_seed"},
  };
  for (const auto role : {v1::ROLE_PREFILL, v1::ROLE_DECODE, v1::ROLE_MIXED}) {
    for (const Case& test : cases) {
      SCOPED_TRACE(absl::StrCat(v1::Role_Name(role), " ", test.named));
      Harness h(role);
      v1::RouterMessage message = Admit(1,
                                        role == v1::ROLE_PREFILL  ? v1::LEG_PREFILL
                                        : role == v1::ROLE_DECODE ? v1::LEG_DECODE
                                                                  : v1::LEG_BOTH,
                                        100);
      test.change(message.mutable_admit());
      h.From(message);
      const v1::WorkerMessage refused = h.TakeOne();
      EXPECT_EQ(refused.refused().code(), v1::Refused::CODE_INVALID);
      EXPECT_THAT(refused.refused().reason(), HasSubstr(test.named));
      EXPECT_EQ(h.free_pages(), kPages);
    }
  }
}

TEST(InstanceCoreTest, ALeaseThatCannotBeOpenedIsRefused) {
  const std::pair<absl::Status, v1::Refused::Code> cases[] = {
      {absl::ResourceExhaustedError("too many leases"), v1::Refused::CODE_NO_ROOM},
      {absl::FailedPreconditionError("a page of an open lease"), v1::Refused::CODE_NO_ROOM},
      {absl::UnavailableError("no transport"), v1::Refused::CODE_NO_ROOM},
      {absl::InvalidArgumentError("rows"), v1::Refused::CODE_INVALID}};
  for (const auto& [status, code] : cases) {
    SCOPED_TRACE(status.ToString());
    Harness decode(v1::ROLE_DECODE);
    decode.receiver_.FailNextOpen(status);
    decode.From(Admit(1, v1::LEG_DECODE, 100));
    EXPECT_EQ(decode.TakeOne().refused().code(), code);
    EXPECT_EQ(decode.free_pages(), kPages);
  }
}

TEST(InstanceCoreTest, MessagesOfUnknownAttemptsAreDropped) {
  for (const auto role : {v1::ROLE_PREFILL, v1::ROLE_DECODE}) {
    Harness h(role);
    h.From(Grant(1, MakeLease(0, 1)));
    h.From(Start(1, 0, {1}));
    h.From(Cancel(1));
    h.core_.OnKvSent(77, absl::OkStatus(), h.now());
    h.core_.OnKvArrived({.lease = 77}, h.now());
    EXPECT_THAT(h.Take(), IsEmpty());
  }
}

TEST(InstanceCoreTest, AnAttemptSaidTwiceIsOne) {
  Harness decode(v1::ROLE_DECODE);
  decode.From(Admit(1, v1::LEG_DECODE, 10));
  decode.From(Admit(1, v1::LEG_DECODE, 10));
  EXPECT_TRUE(decode.TakeOne().has_leased());
  EXPECT_EQ(decode.core_.num_attempts(), 1);
}

TEST(InstanceCoreTest, AttemptsOfOneRequestAreKeptApart) {
  Harness decode(v1::ROLE_DECODE);
  decode.From(Admit(1, v1::LEG_DECODE, 10));
  v1::RouterMessage second = Admit(1, v1::LEG_DECODE, 10);
  second.mutable_admit()->set_attempt(2);
  decode.From(second);
  EXPECT_EQ(decode.core_.num_attempts(), 2);
  decode.From(Cancel(1, 1));
  EXPECT_EQ(decode.core_.num_attempts(), 1);
  decode.From(Cancel(1, 2));
  EXPECT_EQ(decode.core_.num_attempts(), 0);
}

TEST(InstanceCoreTest, AStartThatDoesNotFitEndsTheAttempt) {
  const v1::RouterMessage cases[] = {Start(1, 1, {100}), Start(1, 0, {}), Start(1, 0, {5000}),
                                     Start(1, 0, {1, 2, 3, 4})};
  for (const v1::RouterMessage& start : cases) {
    SCOPED_TRACE(start.ShortDebugString());
    Harness decode(v1::ROLE_DECODE);
    decode.From(Admit(1, v1::LEG_DECODE, 10));
    decode.receiver_.Finish(decode.TakeOne().leased().lease().lease());
    decode.TakeReplies();
    decode.From(start);
    EXPECT_TRUE(decode.TakeOne().has_attempt_ended());
    EXPECT_EQ(decode.free_pages(), kPages);
  }
}

// --- The prefix cache and what routers know of it ---

TEST(InstanceCoreTest, KvEventsAreNumberedAndASnapshotHoldsAll) {
  Harness mixed(v1::ROLE_MIXED);
  mixed.From(Admit(1, v1::LEG_BOTH, 130, 1));
  mixed.Run();
  std::string stored;
  uint64_t sequence = 1;  // the snapshot at attaching
  for (const v1::WorkerMessage& message : mixed.Take()) {
    if (!message.has_kv_events()) continue;
    EXPECT_EQ(message.kv_events().sequence(), ++sequence);
    EXPECT_FALSE(message.kv_events().snapshot());
    stored += message.kv_events().stored_hashes();
  }
  EXPECT_EQ(stored, absl::StrCat(std::string(16, '\1'), std::string(16, '\2')));

  v1::RouterMessage request;
  request.mutable_request_kv_snapshot();
  mixed.From(request);
  const v1::WorkerMessage snapshot = mixed.Take().at(0);
  EXPECT_EQ(snapshot.kv_events().sequence(), ++sequence);
  EXPECT_TRUE(snapshot.kv_events().snapshot());
  EXPECT_EQ(snapshot.kv_events().stored_hashes().size(), 32);

  mixed.core_.OnRouterAttached(2, mixed.now());
  const v1::WorkerMessage first = mixed.Take(2).at(0);
  EXPECT_EQ(first.kv_events().sequence(), 1);
  EXPECT_TRUE(first.kv_events().snapshot());
  EXPECT_EQ(first.kv_events().stored_hashes().size(), 32);
}

TEST(InstanceCoreTest, ADecodeLeasesOnlyWhatItsCacheLacks) {
  Harness decode(v1::ROLE_DECODE);
  decode.From(Admit(1, v1::LEG_DECODE, 130, 2));
  decode.receiver_.Finish(decode.TakeOne().leased().lease().lease());
  decode.From(Start(1, 0, {100}));
  decode.Run();
  decode.TakeReplies();
  decode.From(Admit(2, v1::LEG_DECODE, 130));
  const v1::Lease lease = decode.TakeOne().leased().lease();
  EXPECT_EQ(lease.first_page(), 2);
  EXPECT_EQ(lease.pages_size(), 1);
  EXPECT_EQ(decode.receiver_.leases.at(lease.lease()).rows, 2);
  // All of it known: nothing is to be sent.
  decode.From(Admit(3, v1::LEG_DECODE, 128));
  const v1::Lease empty = decode.TakeOne().leased().lease();
  EXPECT_EQ(empty.first_page(), 2);
  EXPECT_EQ(empty.pages_size(), 0);
  EXPECT_EQ(decode.receiver_.leases.at(empty.lease()).rows, 0);
}

TEST(InstanceCoreTest, APrefillSendsWhatItHadCached) {
  Harness prefill(v1::ROLE_PREFILL);
  for (uint64_t request = 1; request <= 2; ++request) {
    prefill.From(Admit(request, v1::LEG_PREFILL, 130));
    prefill.From(Grant(request, MakeLease(0, 3)));
    prefill.Run();
    const v1::WorkerMessage message = prefill.TakeOne();
    EXPECT_EQ(message.step_tokens().requests(0).cached_tokens(), request == 1 ? 0 : 128);
    EXPECT_THAT(prefill.sender_.transfers.at(request).writes, SizeIs(3 * kLayers));
    prefill.sender_.Finish(request);
  }
}

TEST(InstanceCoreTest, LogprobsAreSentWhenAskedFor) {
  Harness mixed(v1::ROLE_MIXED);
  v1::RouterMessage admit = Admit(1, v1::LEG_BOTH, 3, 1);
  admit.mutable_admit()->mutable_sampling()->set_num_logprobs(0);
  mixed.From(admit);
  mixed.Run();
  EXPECT_EQ(mixed.TakeOne().step_tokens().requests(0).logprobs_size(), 1);
}

}  // namespace
}  // namespace sluice::instance
