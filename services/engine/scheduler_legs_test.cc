// Legs, reservations, classes, and what becomes of pages.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/engine/paged_model.h"
#include "services/engine/scheduler.h"

namespace sluice::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class SchedulerLegsTest : public ::testing::Test {
 protected:
  static Request PrefillRequest(uint64_t id, int64_t prompt, int64_t max_tokens) {
    Request request = MakeRequest(id, prompt, max_tokens);
    request.leg = Leg::kPrefill;
    return request;
  }
  static Request DecodeRequest(uint64_t id, int64_t prompt, int64_t max_tokens) {
    Request request = MakeRequest(id, prompt, max_tokens);
    request.leg = Leg::kDecode;
    return request;
  }
  // Fills a reservation and starts it with the token that the prefill would have sampled.
  static void FillAndStart(Driver* driver, const Request& request, const Reservation& reservation) {
    driver->model.Fill(reservation, KnownTokens(request));
    const std::vector<int32_t> first = {ExpectedTokens(request, 1000).front()};
    ASSERT_TRUE(driver->scheduler.Start(request.id, first).ok());
  }
  // All but the first token, which the prefill has sampled.
  static std::vector<int32_t> ExpectedDecodes(const Request& request) {
    std::vector<int32_t> tokens = ExpectedTokens(request, 1000);
    tokens.erase(tokens.begin());
    return tokens;
  }

  SchedulerOptions options_ = SmallOptions();
};

TEST_F(SchedulerLegsTest, PrefillGivesOneTokenAndHoldsItsPages) {
  for (const int64_t prompt : {1, 64, 100, 101, 350}) {
    Driver driver(options_);
    const Request request = PrefillRequest(1, prompt, 50);
    ASSERT_TRUE(driver.scheduler.Add(request).ok());
    for (int i = 0; i < 10; ++i) driver.Step();
    EXPECT_EQ(driver.outcomes[1].tokens, ExpectedTokens(request, 1000));
    EXPECT_FALSE(driver.outcomes[1].finish.has_value());
    EXPECT_EQ(driver.scheduler.num_running(), 0) << "the slot is free";
    EXPECT_EQ(driver.scheduler.Load().held, 1);
    ASSERT_THAT(driver.scheduler.PagesOf(1), SizeIs(PagesFor(prompt)));
    const std::vector<uint64_t> rows = KvRows(request.prompt);
    for (int64_t i = 0; i < prompt; ++i) {
      ASSERT_EQ(driver.model.RowAt(driver.scheduler.PagesOf(1), i), rows[i]);
    }
    EXPECT_FALSE(driver.scheduler.idle());
    driver.scheduler.ReleaseHeld(2);  // nothing
    driver.scheduler.ReleaseHeld(1);
    driver.scheduler.ReleaseHeld(1);  // nothing
    driver.RunAll();
  }
}

TEST_F(SchedulerLegsTest, APrefillThatFinishesSaysSoAndStillHolds) {
  Driver driver(options_);
  ASSERT_TRUE(driver.scheduler.Add(PrefillRequest(1, 10, 1)).ok());
  driver.Step();
  EXPECT_EQ(driver.outcomes[1].finish, FinishReason::kLength);
  EXPECT_EQ(driver.scheduler.Load().held, 1);
  EXPECT_TRUE(driver.scheduler.Cancel(1).ok());
  driver.RunAll();
}

TEST_F(SchedulerLegsTest, ACancelledPrefillMayHoldItsPagesForAReader) {
  Driver driver(options_);
  ASSERT_TRUE(driver.scheduler.Add(PrefillRequest(1, 350, 9)).ok());
  ASSERT_NE(driver.scheduler.NextPlan(), nullptr);  // in flight
  const std::vector<int32_t> pages(driver.scheduler.PagesOf(1).begin(),
                                   driver.scheduler.PagesOf(1).end());
  ASSERT_TRUE(driver.scheduler.Cancel(1, PageFate::kHold).ok());
  EXPECT_EQ(driver.scheduler.PagesOf(1), absl::MakeConstSpan(pages));
  EXPECT_EQ(driver.scheduler.NextPlan(), nullptr) << "no work is done for it any more";
  driver.scheduler.ReleaseHeld(1);
  EXPECT_EQ(driver.scheduler.kv_pool().num_free(), options_.kv_pages - 6)
      << "the step in flight still writes to its pages";
  std::vector<TokenEvent> events;
  driver.scheduler.OnResult({.number = 1}, &events);
  EXPECT_EQ(driver.scheduler.kv_pool().num_free(), options_.kv_pages);
}

TEST_F(SchedulerLegsTest, DecodeGoesOnWhereThePrefillEnded) {
  for (const int64_t prompt : {1, 63, 64, 65, 128, 200}) {
    for (const int64_t outputs : {0, 1, 30}) {
      Driver driver(options_);
      Request request = DecodeRequest(1, prompt, 70);
      const std::vector<int32_t> whole = ExpectedTokens(request, 1000);
      request.output.assign(whole.begin(), whole.begin() + outputs);
      const auto reservation = driver.scheduler.Reserve(request);
      ASSERT_TRUE(reservation.ok()) << reservation.status();
      EXPECT_EQ(reservation->first_page, 0);
      EXPECT_THAT(reservation->pages, SizeIs(PagesFor(prompt + outputs)));
      EXPECT_EQ(driver.scheduler.NextPlan(), nullptr);
      EXPECT_EQ(driver.scheduler.Load().reserved, 1);
      FillAndStart(&driver, request, *reservation);
      const StepPlan* plan = driver.scheduler.NextPlan();
      ASSERT_NE(plan, nullptr);
      EXPECT_EQ(plan->chunks[0].first_position, prompt + outputs);
      EXPECT_THAT(plan->chunks[0].tokens, ElementsAre(whole[outputs]));
      EXPECT_EQ(plan->chunks[0].output_position, outputs + 1);
      std::vector<TokenEvent> events;
      driver.scheduler.OnResult(driver.model.Run(*plan), &events);
      driver.RunAll();
      std::vector<int32_t> got = {events[0].token.token_id};
      got.insert(got.end(), driver.outcomes[1].tokens.begin(), driver.outcomes[1].tokens.end());
      EXPECT_EQ(got, std::vector<int32_t>(whole.begin() + outputs + 1, whole.end()));
    }
  }
}

TEST_F(SchedulerLegsTest, SeveralOutputsMayBeKnownAtTheStart) {
  for (const int64_t known : {2, 60, 100}) {
    Driver driver(options_);
    const Request request = DecodeRequest(1, 90, 150);
    const std::vector<int32_t> whole = ExpectedTokens(request, 1000);
    const auto reservation = driver.scheduler.Reserve(request);
    ASSERT_TRUE(reservation.ok());
    driver.model.Fill(*reservation, request.prompt);
    ASSERT_TRUE(driver.scheduler.Start(1, absl::MakeConstSpan(whole).first(known)).ok());
    driver.RunAll();
    EXPECT_EQ(driver.outcomes[1].tokens, std::vector<int32_t>(whole.begin() + known, whole.end()));
  }
}

TEST_F(SchedulerLegsTest, AReservationLeavesOutWhatTheCacheHas) {
  Driver driver(options_);
  struct Case {
    int64_t prompt, first_page;
    size_t pages;
  };
  for (const Case& test_case : {Case{200, 0, 4}, {200, 3, 1}, {192, 3, 0}, {130, 2, 1}}) {
    Request request = DecodeRequest(1000, test_case.prompt, 20);
    request.page_hash_seed = model::PageHash{};
    const auto reservation = driver.scheduler.Reserve(request);
    ASSERT_TRUE(reservation.ok()) << reservation.status();
    EXPECT_EQ(reservation->first_page, test_case.first_page);
    EXPECT_THAT(reservation->pages, SizeIs(test_case.pages));
    FillAndStart(&driver, request, *reservation);
    driver.RunAll();
    EXPECT_EQ(driver.outcomes[1000].tokens, ExpectedDecodes(request));
    driver.outcomes.clear();
  }
}

TEST_F(SchedulerLegsTest, AReservationThatNeverStartedFeedsNoCache) {
  Driver driver(options_);
  Request request = DecodeRequest(1, 200, 20);
  request.page_hash_seed = model::PageHash{};
  ASSERT_TRUE(driver.scheduler.Reserve(request).ok());
  ASSERT_TRUE(driver.scheduler.Cancel(1).ok());
  EXPECT_EQ(driver.scheduler.kv_pool().num_cached(), 0);
  driver.RunAll();
}

TEST_F(SchedulerLegsTest, QuarantineKeepsTheUnwrittenPagesApart) {
  Driver driver(options_);
  Request request = DecodeRequest(1000, 130, 20);
  request.page_hash_seed = model::PageHash{};
  FillAndStart(&driver, request, *driver.scheduler.Reserve(request));
  driver.RunAll();  // two pages are cached now
  request.prompt = MakeRequest(1000, 300, 20).prompt;
  request.id = 5;
  ASSERT_EQ(driver.scheduler.Reserve(request)->first_page, 2);
  EXPECT_EQ(driver.scheduler.kv_pool().num_cached(), 0);
  ASSERT_TRUE(driver.scheduler.Cancel(5, PageFate::kQuarantine).ok());
  EXPECT_EQ(driver.scheduler.kv_pool().num_cached(), 2) << "nobody writes to shared pages";
  EXPECT_EQ(driver.scheduler.kv_pool().num_quarantined(), 3);
  EXPECT_EQ(driver.scheduler.kv_pool().num_free(), options_.kv_pages - 3);
  EXPECT_TRUE(driver.scheduler.idle());
  EXPECT_THAT(std::string(driver.scheduler.Reserve(request).status().message()),
              HasSubstr("id 5 is in use"));
  driver.scheduler.ReleaseQuarantined(5);
  driver.scheduler.ReleaseQuarantined(5);  // nothing
  EXPECT_EQ(driver.scheduler.kv_pool().num_quarantined(), 0);
  driver.RunAll();
}

TEST_F(SchedulerLegsTest, OnlyReservationsGoIntoQuarantine) {
  Driver driver(options_);
  const Request request = DecodeRequest(1, 70, 50);
  FillAndStart(&driver, request, *driver.scheduler.Reserve(request));
  EXPECT_EQ(driver.scheduler.Cancel(1, PageFate::kQuarantine).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(driver.scheduler.num_running(), 1);
  EXPECT_TRUE(driver.scheduler.Cancel(1).ok());
  driver.RunAll();
}

TEST_F(SchedulerLegsTest, ReservesOnlyWhatItHas) {
  options_.kv_pages = 6;
  options_.slots_max = 2;
  Scheduler scheduler(options_);
  ASSERT_TRUE(scheduler.Reserve(DecodeRequest(1, 190, 20)).ok());
  // 192 tokens fill three pages, and the next token needs a fourth.
  const absl::Status refused = scheduler.Reserve(DecodeRequest(2, 192, 20)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("need 4 pages of KV, free are 3"));
  ASSERT_TRUE(scheduler.Reserve(DecodeRequest(2, 191, 20)).ok());
  ASSERT_TRUE(scheduler.Cancel(2).ok());
  ASSERT_TRUE(scheduler.Reserve(DecodeRequest(3, 10, 20)).ok());
  const absl::Status no_slot = scheduler.Reserve(DecodeRequest(4, 10, 20)).status();
  EXPECT_EQ(no_slot.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(no_slot.message()), HasSubstr("all 2 slots are taken"));
  EXPECT_EQ(scheduler.Reserve(DecodeRequest(5, 300, 200)).status().code(),
            absl::StatusCode::kInvalidArgument)
      << "more than there will ever be";
}

TEST_F(SchedulerLegsTest, WaitingRequestsComeBeforeReservationsOfTheirClass) {
  options_.slots_max = 2;
  Scheduler scheduler(options_);
  for (const uint64_t id : {1, 2}) {
    Request request = MakeRequest(id, 20, 20);
    request.priority = 1;
    ASSERT_TRUE(scheduler.Add(request).ok());
  }
  Request request = DecodeRequest(3, 20, 20);
  request.priority = 1;
  EXPECT_THAT(std::string(scheduler.Reserve(request).status().message()),
              HasSubstr("requests that come first"));
  request.priority = 0;
  EXPECT_TRUE(scheduler.Reserve(request).ok());
}

TEST_F(SchedulerLegsTest, EachLegHasItsWayIn) {
  Scheduler scheduler(options_);
  EXPECT_THAT(std::string(scheduler.Add(DecodeRequest(1, 5, 5)).message()), HasSubstr("Reserve"));
  EXPECT_THAT(std::string(scheduler.Reserve(MakeRequest(1, 5, 5)).status().message()),
              HasSubstr("only a decode leg"));
  EXPECT_EQ(scheduler.Start(1, {1}).code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(scheduler.Add(MakeRequest(2, 5, 5)).ok());
  EXPECT_EQ(scheduler.Start(2, {1}).code(), absl::StatusCode::kNotFound);
}

TEST_F(SchedulerLegsTest, StartWantsOutputsThatLeaveRoomForAnother) {
  options_.positions_max = 30;
  Scheduler scheduler(options_);
  ASSERT_TRUE(scheduler.Reserve(DecodeRequest(1, 20, 5)).ok());
  ASSERT_TRUE(scheduler.Reserve(DecodeRequest(2, 27, 500)).ok());
  EXPECT_EQ(scheduler.Start(1, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(scheduler.Start(1, {3, 97}).message()), HasSubstr("outputs[1] is token"));
  EXPECT_EQ(scheduler.Start(1, {1, 2, 3, 4, 5}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(scheduler.Start(2, {1, 2, 3}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(scheduler.Start(1, {1, 2, 3, 4}).ok());
  EXPECT_TRUE(scheduler.Start(2, {1, 2}).ok());
  EXPECT_EQ(scheduler.Start(1, {1}).code(), absl::StatusCode::kNotFound) << "started already";
}

TEST_F(SchedulerLegsTest, PenaltiesCountWhatThePrefillSampled) {
  Scheduler scheduler(options_);
  Request request = DecodeRequest(1, 10, 50);
  request.sampling.presence_penalty = 0.5f;
  request.output = {5};
  ASSERT_TRUE(scheduler.Reserve(request).ok());
  ASSERT_TRUE(scheduler.Start(1, {6}).ok());
  const StepPlan* plan = scheduler.NextPlan();
  ASSERT_THAT(plan->resets, SizeIs(1));
  EXPECT_THAT(plan->resets[0].prompt, SizeIs(10));
  EXPECT_THAT(plan->resets[0].output, ElementsAre(5, 6));
}

TEST_F(SchedulerLegsTest, PlannedNamesEveryChunk) {
  Scheduler scheduler(options_);
  PagedModel model(options_);
  ASSERT_TRUE(scheduler.Add(MakeRequest(7, 60, 5)).ok());
  ASSERT_TRUE(scheduler.Add(PrefillRequest(8, 60, 5)).ok());
  const StepPlan* plan = scheduler.NextPlan();
  ASSERT_THAT(scheduler.planned(), SizeIs(2));
  EXPECT_EQ(scheduler.planned()[0].request_id, 7u);
  EXPECT_EQ(scheduler.planned()[0].count, 60);
  EXPECT_EQ(scheduler.planned()[1].request_id, 8u);
  EXPECT_EQ(scheduler.planned()[1].count, 40);
  std::vector<TokenEvent> events;
  scheduler.OnResult(model.Run(*plan), &events);
  ASSERT_NE(scheduler.NextPlan(), nullptr);
  EXPECT_EQ(scheduler.planned()[1].first_position, 40);
  EXPECT_EQ(scheduler.planned()[1].count, 20);
}

TEST_F(SchedulerLegsTest, ClassesAreServedInOrderAndArrivalInside) {
  options_.slots_max = 1;
  Driver driver(options_);
  std::vector<uint64_t> finished;
  const std::vector<uint32_t> classes = {2, 1, 0, 1, 0};
  for (size_t i = 0; i < classes.size(); ++i) {
    Request request = MakeRequest(i, 10, 3);
    request.priority = classes[i];
    ASSERT_TRUE(driver.scheduler.Add(request).ok());
  }
  while (!driver.scheduler.idle()) {
    driver.Step();
    for (const auto& [id, outcome] : driver.outcomes) {
      const bool known = std::find(finished.begin(), finished.end(), id) != finished.end();
      if (outcome.finish.has_value() && !known) finished.push_back(id);
    }
  }
  EXPECT_THAT(finished, ElementsAre(2, 4, 1, 3, 0));
}

TEST_F(SchedulerLegsTest, AFirstClassPromptOvertakesALongOneOfTheLastClass) {
  Scheduler scheduler(options_);
  PagedModel model(options_);
  Request slow = MakeRequest(1, 900, 5);
  slow.priority = 3;
  ASSERT_TRUE(scheduler.Add(slow).ok());
  std::vector<TokenEvent> events;
  scheduler.OnResult(model.Run(*scheduler.NextPlan()), &events);
  ASSERT_TRUE(scheduler.Add(MakeRequest(2, 70, 5)).ok());
  ASSERT_NE(scheduler.NextPlan(), nullptr);
  ASSERT_THAT(scheduler.planned(), SizeIs(2));
  EXPECT_EQ(scheduler.planned()[0].request_id, 2u);
  EXPECT_EQ(scheduler.planned()[0].count, 70);
  EXPECT_EQ(scheduler.planned()[1].count, 30) << "the rest of the budget";
}

TEST_F(SchedulerLegsTest, TheYoungestOfTheLastClassIsHandedBack) {
  options_.kv_pages = 9;
  Driver driver(options_);
  std::map<uint64_t, Request> requests;
  for (const uint64_t id : {1, 2, 3}) {
    requests[id] = MakeRequest(id, 100, 150);
    requests[id].priority = id == 2 ? 1 : 0;
    requests[id].may_hand_back = true;
    ASSERT_TRUE(driver.scheduler.Add(requests[id]).ok());
  }
  driver.RunAll();
  EXPECT_THAT(driver.handed_back, ElementsAre(2));
  for (const auto& [id, request] : requests) {
    const std::vector<int32_t> whole = ExpectedTokens(request, 1000);
    const std::vector<int32_t> got = driver.outcomes[id].tokens;
    if (id != 2) {
      EXPECT_EQ(got, whole);
      continue;
    }
    // What it gave until then is right, and another attempt goes on from there.
    ASSERT_LT(got.size(), whole.size());
    ASSERT_TRUE(std::equal(got.begin(), got.end(), whole.begin()));
    EXPECT_FALSE(driver.outcomes[2].finish.has_value());
    Request resumed = request;
    resumed.output = got;
    resumed.may_hand_back = false;
    driver.outcomes.erase(2);
    ASSERT_TRUE(driver.scheduler.Add(resumed).ok());
    driver.RunAll();
    EXPECT_EQ(driver.outcomes[2].tokens,
              std::vector<int32_t>(whole.begin() + got.size(), whole.end()));
  }
}

TEST_F(SchedulerLegsTest, ADecodeThatIsItselfTheYoungestIsHandedBackAndDoesNotWait) {
  options_.kv_pages = 4;
  Driver driver(options_);
  Request request = DecodeRequest(1, 60, 100);
  request.may_hand_back = true;
  FillAndStart(&driver, request, *driver.scheduler.Reserve(request));
  ASSERT_TRUE(driver.scheduler.Reserve(DecodeRequest(2, 150, 10)).ok());  // the other pages
  for (int i = 0; i < 20; ++i) driver.Step();
  EXPECT_THAT(driver.handed_back, ElementsAre(1));
  EXPECT_EQ(driver.scheduler.kv_pool().num_free(), 1);
  ASSERT_TRUE(driver.scheduler.Cancel(2).ok());
  driver.RunAll();
}

TEST_F(SchedulerLegsTest, PrefillLegsKeepTheirPages) {
  options_.kv_pages = 8;
  options_.step_tokens_max = 40;
  Driver driver(options_);
  const Request decoding = MakeRequest(1, 60, 200);
  ASSERT_TRUE(driver.scheduler.Add(decoding).ok());
  driver.Step();
  ASSERT_TRUE(driver.scheduler.Add(PrefillRequest(2, 400, 10)).ok());
  for (int i = 0; i < 100; ++i) driver.Step();
  EXPECT_EQ(driver.scheduler.num_preemptions(), 0);
  EXPECT_THAT(driver.outcomes[2].tokens, SizeIs(1));
  EXPECT_LT(driver.outcomes[1].tokens.size(), 200u) << "it waits for the pages that are held";
  driver.scheduler.ReleaseHeld(2);
  driver.RunAll();
  EXPECT_EQ(driver.outcomes[1].tokens, ExpectedTokens(decoding, 1000));
}

TEST_F(SchedulerLegsTest, LoadCounts) {
  Scheduler scheduler(options_);
  ASSERT_TRUE(scheduler.Add(MakeRequest(1, 250, 5)).ok());
  ASSERT_TRUE(scheduler.Add(MakeRequest(2, 30, 5)).ok());
  ASSERT_NE(scheduler.NextPlan(), nullptr);
  const SchedulerLoad load = scheduler.Load();
  EXPECT_EQ(load.running, 1);
  EXPECT_EQ(load.waiting, 1);
  EXPECT_EQ(load.waiting_tokens, 150 + 30);
  EXPECT_EQ(load.reserved, 0);
  EXPECT_EQ(load.held, 0);
}

}  // namespace
}  // namespace sluice::engine
