#include "services/engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "services/engine/paged_model.h"

namespace sluice::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(SchedulerTest, RunsOneRequestToItsLength) {
  for (const int64_t steps_in_flight : {1, 2}) {
    SchedulerOptions options = SmallOptions();
    options.steps_in_flight_max = steps_in_flight;
    for (const int64_t prompt : {1, 63, 64, 65, 99, 100, 101, 350}) {
      for (const int64_t max_tokens : {1, 2, 3, 130}) {
        Driver driver(options);
        const Request request = MakeRequest(7, prompt, max_tokens);
        ASSERT_TRUE(driver.scheduler.Add(request).ok());
        driver.RunAll();
        EXPECT_EQ(driver.outcomes[7].tokens, ExpectedTokens(request, options.positions_max))
            << prompt << " " << max_tokens << " " << steps_in_flight;
        EXPECT_EQ(driver.outcomes[7].finish, FinishReason::kLength);
      }
    }
  }
}

TEST(SchedulerTest, EndsAtTheContextLimit) {
  SchedulerOptions options = SmallOptions();
  options.positions_max = 130;
  Driver driver(options);
  const Request request = MakeRequest(1, 120, 1000);
  ASSERT_TRUE(driver.scheduler.Add(request).ok());
  driver.RunAll();
  EXPECT_EQ(driver.outcomes[1].tokens.size(), 10u);
  EXPECT_EQ(driver.outcomes[1].finish, FinishReason::kLength);
}

TEST(SchedulerTest, EndsAtAStopTokenAndDropsWhatRanAhead) {
  Request request = MakeRequest(1, 10, 500);
  const std::vector<int32_t> unstopped = ExpectedTokens(request, 1000);
  request.sampling.stop_token_ids = {unstopped[20]};
  Driver driver(SmallOptions());
  ASSERT_TRUE(driver.scheduler.Add(request).ok());
  driver.RunAll();
  EXPECT_EQ(driver.outcomes[1].tokens, ExpectedTokens(request, 1000));
  EXPECT_EQ(driver.outcomes[1].tokens.back(), unstopped[20]);
  EXPECT_EQ(driver.outcomes[1].finish, FinishReason::kStop);
}

TEST(SchedulerTest, ContinuesAFormerAttempt) {
  Request request = MakeRequest(1, 70, 40);
  const std::vector<int32_t> whole = ExpectedTokens(request, 1000);
  request.output.assign(whole.begin(), whole.begin() + 15);
  Driver driver(SmallOptions());
  ASSERT_TRUE(driver.scheduler.Add(request).ok());
  driver.RunAll();
  EXPECT_EQ(driver.outcomes[1].tokens, std::vector<int32_t>(whole.begin() + 15, whole.end()));
}

TEST(SchedulerTest, PromptsShareAStepWithDecodes) {
  Scheduler scheduler(SmallOptions());
  PagedModel model(SmallOptions());
  ASSERT_TRUE(scheduler.Add(MakeRequest(1, 10, 50)).ok());
  std::vector<TokenEvent> events;
  scheduler.OnResult(model.Run(*scheduler.NextPlan()), &events);
  ASSERT_TRUE(scheduler.Add(MakeRequest(2, 150, 50)).ok());
  const StepPlan* plan = scheduler.NextPlan();
  ASSERT_EQ(plan->chunks.size(), 2u);
  EXPECT_EQ(plan->chunks[0].tokens.size(), 1u);   // the decode first
  EXPECT_EQ(plan->chunks[1].tokens.size(), 99u);  // what the budget leaves
  EXPECT_EQ(plan->chunks[1].sampling, nullptr);
}

TEST(SchedulerTest, APlanRunsAheadOfItsResults) {
  Scheduler scheduler(SmallOptions());
  ASSERT_TRUE(scheduler.Add(MakeRequest(1, 10, 50)).ok());
  ASSERT_NE(scheduler.NextPlan(), nullptr);
  const StepPlan* ahead = scheduler.NextPlan();
  ASSERT_NE(ahead, nullptr);
  EXPECT_THAT(ahead->chunks[0].tokens, ElementsAre(kSampledToken));
  EXPECT_EQ(ahead->chunks[0].first_position, 10);
  EXPECT_EQ(ahead->chunks[0].output_position, 1);
  EXPECT_EQ(scheduler.NextPlan(), nullptr) << "two steps in flight are the bound";
}

TEST(SchedulerTest, PenaltiesResetTheirSlotOnAdmission) {
  Scheduler scheduler(SmallOptions());
  Request request = MakeRequest(1, 10, 50);
  request.output = {5, 6};
  request.sampling.frequency_penalty = 0.5f;
  ASSERT_TRUE(scheduler.Add(request).ok());
  const StepPlan* plan = scheduler.NextPlan();
  ASSERT_EQ(plan->resets.size(), 1u);
  EXPECT_EQ(plan->resets[0].prompt.size(), 10u);
  EXPECT_THAT(plan->resets[0].output, ElementsAre(5, 6));
}

TEST(SchedulerTest, CancelledRequestsGiveEverythingBack) {
  Driver driver(SmallOptions());
  for (uint64_t id = 1; id <= 6; ++id) {
    ASSERT_TRUE(driver.scheduler.Add(MakeRequest(id, 80, 100)).ok());
  }
  for (int i = 0; i < 5; ++i) driver.Step();
  for (uint64_t id : {1, 3, 6}) EXPECT_TRUE(driver.scheduler.Cancel(id).ok());
  EXPECT_EQ(driver.scheduler.Cancel(3).code(), absl::StatusCode::kNotFound);
  const size_t tokens_when_cancelled = driver.outcomes[1].tokens.size();
  driver.RunAll();
  EXPECT_EQ(driver.outcomes[1].tokens.size(), tokens_when_cancelled);
  for (uint64_t id : {2, 4, 5}) {
    EXPECT_EQ(driver.outcomes[id].tokens, ExpectedTokens(MakeRequest(id, 80, 100), 1000));
  }
}

TEST(SchedulerTest, RefusesWhatItCannotServe) {
  const auto message = [](Request request, SchedulerOptions options = SmallOptions()) {
    return std::string(Scheduler(options).Add(std::move(request)).message());
  };
  EXPECT_THAT(message(MakeRequest(1, 0, 5)), HasSubstr("prompt has no tokens"));
  EXPECT_THAT(message(MakeRequest(1, 5, 0)), HasSubstr("max_tokens is 0"));
  EXPECT_THAT(message(MakeRequest(1, 1000, 5)), HasSubstr("context limit is 1000"));
  Request wild = MakeRequest(1, 5, 5);
  wild.prompt[3] = 97;
  EXPECT_THAT(message(wild), HasSubstr("prompt[3] is token id 97"));
  SchedulerOptions few_pages = SmallOptions();
  few_pages.kv_pages = 2;
  EXPECT_THAT(message(MakeRequest(1, 100, 30), few_pages), HasSubstr("need up to 3 pages"));
  EXPECT_EQ(message(MakeRequest(1, 100, 29), few_pages), "");
  SchedulerOptions one = SmallOptions();
  one.requests_max = 1;
  Scheduler full(one);
  ASSERT_TRUE(full.Add(MakeRequest(1, 5, 5)).ok());
  EXPECT_EQ(full.Add(MakeRequest(2, 5, 5)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Scheduler(SmallOptions()).Add(MakeRequest(1, 5, 5)).code(), absl::StatusCode::kOk);
}

// Many requests through few pages and slots, with cancels: every token right, once, in order.
TEST(SchedulerTest, RandomLoadsGiveEveryRequestItsTokens) {
  const uint32_t first_seed = std::random_device{}();
  for (uint32_t seed = first_seed; seed < first_seed + 60; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto draw = [&](int64_t low, int64_t high) {
      return std::uniform_int_distribution<int64_t>(low, high)(random);
    };
    SchedulerOptions options{.slots_max = draw(1, 6),
                             .step_tokens_max = draw(6, 80),
                             .positions_max = 400,
                             .kv_pages = draw(7, 16),
                             .vocab_size = kVocab,
                             .steps_in_flight_max = draw(1, 2)};
    Driver driver(options);
    std::map<uint64_t, Request> requests;
    std::map<uint64_t, bool> cancelled;
    for (uint64_t id = 1; id <= 25; ++id) {
      Request request = MakeRequest(id, draw(1, 200), draw(1, 200));
      if (draw(0, 2) == 0) request.sampling.stop_token_ids = {static_cast<int32_t>(draw(0, 96))};
      requests[id] = request;
      ASSERT_TRUE(driver.scheduler.Add(request).ok());
      for (int64_t i = draw(0, 6); i > 0; --i) driver.Step();
      if (draw(0, 5) == 0) {
        const uint64_t victim = draw(1, id);
        if (driver.scheduler.Cancel(victim).ok()) cancelled[victim] = true;
      }
    }
    driver.RunAll();
    for (const auto& [id, request] : requests) {
      const std::vector<int32_t> expected = ExpectedTokens(request, options.positions_max);
      const std::vector<int32_t>& got = driver.outcomes[id].tokens;
      if (cancelled[id]) {
        ASSERT_LE(got.size(), expected.size());
        EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin())) << "request " << id;
      } else {
        EXPECT_EQ(got, expected) << "request " << id;
      }
    }
  }
}

TEST(SchedulerTest, APromptShortOfPagesIsNotOvertakenForever) {
  SchedulerOptions options = SmallOptions();
  options.kv_pages = 12;
  Driver driver(options);
  // Two hold most of the pages while a long prompt is on its way and short requests keep coming.
  ASSERT_TRUE(driver.scheduler.Add(MakeRequest(1, 250, 60)).ok());
  ASSERT_TRUE(driver.scheduler.Add(MakeRequest(2, 400, 10)).ok());
  uint64_t next_id = 3;
  for (int step = 0; step < 300 && !driver.outcomes[2].finish.has_value(); ++step) {
    while (driver.scheduler.num_waiting() < 3) {
      ASSERT_TRUE(driver.scheduler.Add(MakeRequest(next_id++, 20, 5)).ok());
    }
    driver.Step();
  }
  EXPECT_TRUE(driver.outcomes[2].finish.has_value()) << next_id << " requests came";
}

// Preempted while its token is being sampled, and then there is room at once.
TEST(SchedulerTest, APreemptedRequestWaitsForItsTokenInFlight) {
  SchedulerOptions options = SmallOptions();
  options.kv_pages = 7;
  options.step_tokens_max = 300;
  Scheduler scheduler(options);
  PagedModel model(options);
  std::vector<TokenEvent> events;
  Request held = MakeRequest(1, 192, 5);
  held.leg = Leg::kPrefill;
  ASSERT_TRUE(scheduler.Add(held).ok());
  scheduler.OnResult(model.Run(*scheduler.NextPlan()), &events);
  const Request preempted = MakeRequest(3, 130, 5);
  ASSERT_TRUE(scheduler.Add(MakeRequest(2, 64, 5)).ok());
  ASSERT_TRUE(scheduler.Add(preempted).ok());
  const StepResult both = model.Run(*scheduler.NextPlan());
  ASSERT_EQ(scheduler.NextPlan(), nullptr) << "2 wants a page, which 3 will give up";
  EXPECT_EQ(scheduler.num_preemptions(), 1);
  EXPECT_EQ(scheduler.Load().waiting_tokens, 130);
  scheduler.ReleaseHeld(1);
  ASSERT_TRUE(scheduler.Cancel(2).ok());
  EXPECT_EQ(scheduler.NextPlan(), nullptr) << "the token of 3 is not known";
  events.clear();
  scheduler.OnResult(both, &events);
  while (!scheduler.idle()) scheduler.OnResult(model.Run(*scheduler.NextPlan()), &events);
  std::vector<int32_t> tokens;
  for (const TokenEvent& event : events) tokens.push_back(event.token.token_id);
  EXPECT_EQ(tokens, ExpectedTokens(preempted, options.positions_max));
}

TEST(SchedulerTest, PreemptsTheYoungestWhenPagesRunOut) {
  SchedulerOptions options = SmallOptions();
  options.kv_pages = 6;
  Driver driver(options);
  for (uint64_t id = 1; id <= 3; ++id) {
    ASSERT_TRUE(driver.scheduler.Add(MakeRequest(id, 100, 200)).ok());
  }
  driver.RunAll();
  EXPECT_GT(driver.scheduler.num_preemptions(), 0);
  for (uint64_t id = 1; id <= 3; ++id) {
    EXPECT_EQ(driver.outcomes[id].tokens, ExpectedTokens(MakeRequest(id, 100, 200), 1000));
  }
}

}  // namespace
}  // namespace sluice::engine
