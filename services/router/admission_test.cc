#include "services/router/admission.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/router/retry_hint.h"

namespace sluice::router {
namespace {

using ::testing::ElementsAre;

const absl::Time kStart = absl::FromUnixSeconds(1'000'000'000);

Waiting Make(RequestId id, uint32_t priority, double arrival_seconds, int64_t tokens = 10) {
  return {.id = id,
          .priority = priority,
          .tokens = tokens,
          .arrival = kStart + absl::Seconds(arrival_seconds)};
}

std::vector<RequestId> Drain(AdmissionQueue* queue, absl::Time now) {
  std::vector<RequestId> order;
  while (const auto next = queue->Next(now)) {
    order.push_back(next->id);
    queue->Erase(*next);
  }
  return order;
}

TEST(AdmissionTest, ClassesThenArrival) {
  AdmissionQueue queue(100, 10'000);
  queue.Push(Make(1, 1, 0));
  queue.Push(Make(2, 0, 0.1));
  queue.Push(Make(3, 0, 0.2));
  queue.Push(Make(4, 7, 0));
  queue.Push(Make(5, 4'000'000'000, 0.1));  // counts as the last class
  queue.Push(Make(6, 1, -1));               // placed anew: its arrival was before
  EXPECT_EQ(queue.size(), 6);
  EXPECT_EQ(queue.tokens(), 60);
  EXPECT_THAT(Drain(&queue, kStart + absl::Seconds(1)), ElementsAre(2, 3, 6, 1, 4, 5));
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(queue.tokens(), 0);
}

TEST(AdmissionTest, WaitingCountsLikeAClassEveryFiveSeconds) {
  const struct {
    double waited;
    RequestId first;
  } cases[] = {{4.9, 2}, {5.1, 1}};
  for (const auto& test : cases) {
    AdmissionQueue queue(100, 10'000);
    queue.Push(Make(1, 1, -test.waited));
    queue.Push(Make(2, 0, 0));
    EXPECT_EQ(queue.Next(kStart)->id, test.first) << test.waited;
  }
}

// Under a steady flood of class 0 the last class still gets its turn.
TEST(AdmissionTest, NoClassStarves) {
  AdmissionQueue queue(1000, 1'000'000);
  queue.Push(Make(1, 7, 0));
  for (int second = 0; second < 40; ++second) {
    queue.Push(Make(100 + second, 0, second));
    queue.Push(Make(200 + second, 0, second));  // twice of what is served
    const auto next = queue.Next(kStart + absl::Seconds(second));
    if (next->id == 1) {
      EXPECT_GE(second, 35);  // seven classes
      return;
    }
    queue.Erase(*next);
  }
  // The others have waited as well by now, so it takes a little longer than seven times five
  // seconds.
  for (int second = 40; second < 80; ++second) {
    const auto next = queue.Next(kStart + absl::Seconds(second));
    if (next->id == 1) return;
    queue.Erase(*next);
  }
  FAIL() << "class 7 starved";
}

TEST(AdmissionTest, BoundsOfEachClass) {
  AdmissionQueue queue(2, 100);
  EXPECT_TRUE(queue.CheckRoom(0, 5000, kStart).ok()) << "a long prompt alone";
  queue.Push(Make(1, 0, 0, 90));
  EXPECT_TRUE(queue.CheckRoom(0, 10, kStart).ok());
  EXPECT_EQ(queue.CheckRoom(0, 11, kStart).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(queue.CheckRoom(1, 11, kStart).ok()) << "another class has room of its own";
  queue.Push(Make(2, 0, 0, 1));
  const absl::Status full = queue.CheckRoom(0, 1, kStart);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(full.message(), testing::HasSubstr("2 requests wait"));
  EXPECT_EQ(RetryAfter(full), absl::Seconds(1)) << "nothing measured yet";
}

TEST(AdmissionTest, HintsFollowTheMeasuredPaceAndTheClass) {
  AdmissionQueue queue(40, 1'000'000);
  absl::Time now = kStart;
  for (int i = 0; i < 600; ++i) {  // two a second
    now += absl::Milliseconds(500);
    queue.CountPlaced(10, now);
  }
  for (RequestId id = 1; id <= 40; ++id) queue.Push(Make(id, 3, 0));
  for (RequestId id = 41; id <= 80; ++id) queue.Push(Make(id, 5, 0));
  const auto hint = [&](uint32_t priority) {
    return absl::ToDoubleSeconds(*RetryAfter(queue.CheckRoom(priority, 1, now)));
  };
  EXPECT_NEAR(hint(3), 20, 1.5);
  EXPECT_NEAR(hint(5), 40, 3);
  now += absl::Minutes(10);  // nothing has moved since
  EXPECT_EQ(hint(3), 60);
}

TEST(RetryHintTest, SurvivesInAStatus) {
  const absl::Status hinted = WithRetryAfter(absl::UnavailableError("x"), absl::Milliseconds(1500));
  EXPECT_EQ(RetryAfter(hinted), absl::Milliseconds(1500));
  EXPECT_EQ(hinted.message(), "x");
  EXPECT_EQ(RetryAfter(absl::UnavailableError("x")), std::nullopt);
}

}  // namespace
}  // namespace sluice::router
