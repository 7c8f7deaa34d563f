#include "services/router/preparation_pool.h"

#include <gtest/gtest.h>
#include <latch>

#include <atomic>

#include "services/router/retry_hint.h"

namespace sluice::router {
namespace {

constexpr PreparationPoolOptions kOptions{
    .threads = 2, .waiting_max = 3, .waiting_bytes_max = 1000, .large_bytes = 100};

TEST(PreparationPool, SmallWorkNeverWaitsForLarge) {
  std::latch release{1}, small_done{1};
  PreparationPool pool(kOptions);
  ASSERT_TRUE(pool.Run(100, [&] { release.wait(); }).ok());
  ASSERT_TRUE(pool.Run(100, [&] { release.wait(); }).ok());
  ASSERT_TRUE(pool.Run(99, [&] { small_done.count_down(); }).ok());
  small_done.wait();
  release.count_down();
}

TEST(PreparationPool, RefusesWhenTooMuchWaits) {
  std::latch started{1}, release{1};
  PreparationPool pool(kOptions);
  ASSERT_TRUE(pool.Run(1,
                       [&] {
                         started.count_down();
                         release.wait();
                       })
                  .ok());
  started.wait();
  const auto nothing = [] {};
  ASSERT_TRUE(pool.Run(50, nothing).ok());
  ASSERT_TRUE(pool.Run(50, nothing).ok());
  ASSERT_TRUE(pool.Run(50, nothing).ok());
  const absl::Status full = pool.Run(50, nothing);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(full).has_value());
  release.count_down();
}

TEST(PreparationPool, BoundsTheBytesThatWait) {
  std::latch started{1}, release{1};
  PreparationPool pool(kOptions);
  ASSERT_TRUE(pool.Run(100,
                       [&] {
                         started.count_down();
                         release.wait();
                       })
                  .ok());
  started.wait();
  ASSERT_TRUE(pool.Run(500, [] {}).ok());
  EXPECT_EQ(pool.Run(501, [] {}).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(pool.Run(500, [] {}).ok());
  release.count_down();
}

// As large as a body may be: it would be refused for ever, and told to come again.
TEST(PreparationPool, TakesWorkOfAnySizeWhenNothingElseWaits) {
  std::latch started{1}, release{1};
  PreparationPool pool(kOptions);
  ASSERT_TRUE(pool.Run(1001,
                       [&] {
                         started.count_down();
                         release.wait();
                       })
                  .ok());
  started.wait();
  EXPECT_TRUE(pool.Run(1001, [] {}).ok());
  EXPECT_EQ(pool.Run(100, [] {}).code(), absl::StatusCode::kResourceExhausted);
  release.count_down();
}

TEST(PreparationPool, EndsWithWorkWaiting) {
  std::atomic<int> count{0};
  std::latch started{1};
  {
    PreparationPool pool(kOptions);
    ASSERT_TRUE(pool.Run(1,
                         [&] {
                           ++count;
                           started.count_down();
                         })
                    .ok());
    started.wait();
  }
  EXPECT_EQ(count, 1);
}

}  // namespace
}  // namespace sluice::router
