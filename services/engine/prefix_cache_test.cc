// What the scheduler takes from the prefix cache and gives to it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/engine/paged_model.h"
#include "services/engine/scheduler.h"

namespace sluice::engine {
namespace {

using model::PageHash;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// The names of the full pages of `tokens` in a chain that starts at zeros.
std::vector<PageHash> NamesOf(const std::vector<int32_t>& tokens) {
  std::vector<PageHash> names;
  model::PageHasher().Extend(PageHash{}, tokens, &names);
  return names;
}

// As MakeRequest, with a prompt that all such requests share the beginning of.
Request Sharing(uint64_t id, int64_t prompt_length, int64_t max_tokens) {
  Request request = MakeRequest(1000, prompt_length, max_tokens);
  request.id = id;
  request.page_hash_seed = PageHash{};
  return request;
}

class PrefixCacheTest : public ::testing::Test {
 protected:
  // Runs it to its end, checks its tokens, and gives how many the cache had.
  int64_t CachedTokensOf(const Request& request) {
    EXPECT_TRUE(driver_.scheduler.Add(request).ok());
    driver_.RunAll();
    const Outcome outcome = driver_.outcomes[request.id];
    EXPECT_EQ(outcome.tokens, ExpectedTokens(request, options_.positions_max));
    return outcome.cached_tokens;
  }

  const SchedulerOptions options_ = SmallOptions();
  Driver driver_{options_};
};

TEST_F(PrefixCacheTest, FullPagesOfAPromptAreFoundAgain) {
  EXPECT_EQ(CachedTokensOf(Sharing(1, 300, 1)), 0);
  struct Case {
    int64_t prompt, cached;
  };
  // The last token of a prompt is always computed, and a partial page never shared.
  uint64_t id = 2;
  for (const Case& test_case :
       {Case{1, 0}, {63, 0}, {64, 0}, {65, 64}, {128, 64}, {129, 128}, {300, 256}, {301, 256}}) {
    EXPECT_EQ(CachedTokensOf(Sharing(id++, test_case.prompt, 1)), test_case.cached)
        << test_case.prompt;
  }
}

TEST_F(PrefixCacheTest, OutputPagesAreFoundAgain) {
  const Request first = Sharing(1, 50, 150);
  CachedTokensOf(first);
  Request second = Sharing(2, 50, 20);
  const std::vector<int32_t> answer = ExpectedTokens(first, options_.positions_max);
  second.prompt.insert(second.prompt.end(), answer.begin(), answer.end());
  second.prompt.push_back(3);
  // The last token of the answer has no KV: 199 positions, three pages.
  EXPECT_EQ(CachedTokensOf(second), 192);
}

TEST_F(PrefixCacheTest, GivenHashesAreUsedAsTheyAre) {
  Request request = Sharing(1, 130, 1);
  request.page_hash_seed.reset();
  request.page_hashes = NamesOf(request.prompt);
  CachedTokensOf(request);
  EXPECT_THAT(driver_.scheduler.KvSnapshot(), IsEmpty());
  std::vector<PageHash> stored, removed;
  driver_.scheduler.TakeKvEvents(&stored, &removed);
  std::sort(request.page_hashes.begin(), request.page_hashes.end());
  EXPECT_EQ(stored, request.page_hashes);
  EXPECT_EQ(driver_.scheduler.KvSnapshot(), stored);
  EXPECT_THAT(removed, IsEmpty());
}

TEST_F(PrefixCacheTest, AnotherSeedSharesNothing) {
  CachedTokensOf(Sharing(1, 200, 1));
  Request other = Sharing(2, 200, 1);
  other.page_hash_seed->at(0) = 1;
  EXPECT_EQ(CachedTokensOf(other), 0);
}

TEST_F(PrefixCacheTest, RequestsWithoutHashesNeitherAskNorFeed) {
  Request request = Sharing(1, 200, 1);
  request.page_hash_seed.reset();
  CachedTokensOf(request);
  EXPECT_EQ(driver_.scheduler.kv_pool().num_cached(), 0);
  CachedTokensOf(Sharing(2, 200, 1));
  request.id = 3;
  EXPECT_EQ(CachedTokensOf(request), 0);
}

TEST_F(PrefixCacheTest, TwoAtOnceKeepTheirOwnPagesOfOneName) {
  ASSERT_TRUE(driver_.scheduler.Add(Sharing(1, 70, 100)).ok());
  ASSERT_TRUE(driver_.scheduler.Add(Sharing(2, 70, 100)).ok());
  driver_.RunAll();
  for (const uint64_t id : {1, 2}) {
    EXPECT_EQ(driver_.outcomes[id].tokens, ExpectedTokens(Sharing(1, 70, 100), 1000));
  }
  EXPECT_EQ(driver_.scheduler.kv_pool().num_cached(), 2);
}

TEST_F(PrefixCacheTest, RunningRequestsShareTheirPages) {
  ASSERT_TRUE(driver_.scheduler.Add(Sharing(1, 200, 100)).ok());
  for (int i = 0; i < 5; ++i) driver_.Step();
  ASSERT_TRUE(driver_.scheduler.Add(Sharing(2, 200, 100)).ok());
  for (int i = 0; i < 5; ++i) driver_.Step();
  const absl::Span<const int32_t> first = driver_.scheduler.PagesOf(1);
  const absl::Span<const int32_t> second = driver_.scheduler.PagesOf(2);
  ASSERT_GE(second.size(), 4u);
  EXPECT_EQ(second.first(3), first.first(3));
  EXPECT_NE(second[3], first[3]);
  driver_.RunAll();
}

TEST_F(PrefixCacheTest, PreemptedRequestsFindTheirPagesAgain) {
  SchedulerOptions options = SmallOptions();
  options.kv_pages = 8;
  options.step_tokens_max = 64;
  Driver driver(options);
  int64_t computed = 0;
  std::map<uint64_t, Request> requests;
  for (const uint64_t id : {1, 2}) {
    requests[id] = MakeRequest(id, 190, 130);
    requests[id].page_hash_seed = PageHash{};
    ASSERT_TRUE(driver.scheduler.Add(requests[id]).ok());
  }
  for (int step = 0; !driver.scheduler.idle(); ++step) {
    ASSERT_LT(step, 5000);
    driver.Step();
    for (const PlannedChunk& chunk : driver.scheduler.planned()) {
      if (chunk.count > 1) computed += chunk.count;
    }
  }
  EXPECT_GT(driver.scheduler.num_preemptions(), 0);
  for (const auto& [id, request] : requests) {
    EXPECT_EQ(driver.outcomes[id].tokens, ExpectedTokens(request, 1000));
  }
  // Each prompt once, and of the preempted sequence only what was evicted or partial.
  EXPECT_LT(computed, 2 * 190 + 3 * 64 * driver.scheduler.num_preemptions());
}

TEST_F(PrefixCacheTest, DamagedKvIsNotFoundAgain) {
  Scheduler scheduler(options_);
  PagedModel model(options_);
  ASSERT_TRUE(scheduler.Add(Sharing(1, 90, 100)).ok());
  std::vector<TokenEvent> events;
  scheduler.OnResult(model.Run(*scheduler.NextPlan()), &events);
  EXPECT_EQ(scheduler.kv_pool().num_cached(), 0);
  StepResult damaged = model.Run(*scheduler.NextPlan());
  damaged.slots[0].tokens[0].not_finite = true;
  scheduler.OnResult(damaged, &events);
  EXPECT_EQ(events.back().finish, FinishReason::kDamaged);
  EXPECT_EQ(scheduler.kv_pool().num_cached(), 0);
  EXPECT_EQ(scheduler.kv_pool().num_free(), options_.kv_pages);
}

// The step that runs was planned for another request of the same id.
TEST_F(PrefixCacheTest, AStepOfAFormerUseOfAnIdNamesNoPages) {
  Scheduler scheduler(options_);
  PagedModel model(options_);
  ASSERT_TRUE(scheduler.Add(Sharing(1, 300, 5)).ok());
  const StepResult former = model.Run(*scheduler.NextPlan());  // 100 tokens
  ASSERT_TRUE(scheduler.Cancel(1).ok());
  Request again = Sharing(1, 300, 5);
  again.priority = 1;
  ASSERT_TRUE(scheduler.Add(again).ok());
  ASSERT_TRUE(scheduler.Add(MakeRequest(2, 90, 5)).ok());
  ASSERT_NE(scheduler.NextPlan(), nullptr);
  ASSERT_EQ(scheduler.planned()[1].count, 10);  // far from a full page
  std::vector<TokenEvent> events;
  scheduler.OnResult(former, &events);
  std::vector<PageHash> stored, removed;
  scheduler.TakeKvEvents(&stored, &removed);
  EXPECT_THAT(stored, IsEmpty());
}

TEST_F(PrefixCacheTest, EvictionTellsOfIt) {
  SchedulerOptions options = SmallOptions();
  options.kv_pages = 4;
  Driver driver(options);
  ASSERT_TRUE(driver.scheduler.Add(Sharing(1, 200, 1)).ok());
  driver.RunAll();
  std::vector<PageHash> stored, removed;
  driver.scheduler.TakeKvEvents(&stored, &removed);
  EXPECT_THAT(stored, SizeIs(3));
  ASSERT_TRUE(driver.scheduler.Add(MakeRequest(2, 200, 1)).ok());
  driver.RunAll();
  driver.scheduler.TakeKvEvents(&stored, &removed);
  EXPECT_THAT(stored, IsEmpty());
  EXPECT_THAT(removed, SizeIs(3));
  EXPECT_THAT(driver.scheduler.KvSnapshot(), IsEmpty());
}

TEST_F(PrefixCacheTest, MoreHashesThanFullPagesAreRefused) {
  Request request = Sharing(1, 127, 5);
  request.page_hashes = {PageHash{}, PageHash{}};
  const absl::Status status = driver_.scheduler.Add(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("page_hashes has 2 hashes, prompt and outputs fill 1 pages"));
}

}  // namespace
}  // namespace sluice::engine
