#include "services/router/preparation_pool.h"

#include <gtest/gtest.h>

#include <atomic>

#include "absl/synchronization/notification.h"
#include "services/router/retry_hint.h"

namespace sluice::router {
namespace {

constexpr PreparationPoolOptions kOptions{
    .threads = 2, .waiting_max = 3, .waiting_bytes_max = 1000, .large_bytes = 100};

TEST(PreparationPool, SmallWorkNeverWaitsForLarge) {
  absl::Notification release, small_done;
  PreparationPool pool(kOptions);
  ASSERT_TRUE(pool.Run(100, [&] { release.WaitForNotification(); }).ok());
  ASSERT_TRUE(pool.Run(100, [&] { release.WaitForNotification(); }).ok());
  ASSERT_TRUE(pool.Run(99, [&] { small_done.Notify(); }).ok());
  small_done.WaitForNotification();
  release.Notify();
}

TEST(PreparationPool, RefusesWhenTooMuchWaits) {
  absl::Notification started, release;
  PreparationPool pool(kOptions);
  ASSERT_TRUE(pool.Run(1,
                       [&] {
                         started.Notify();
                         release.WaitForNotification();
                       })
                  .ok());
  started.WaitForNotification();
  const auto nothing = [] {};
  ASSERT_TRUE(pool.Run(50, nothing).ok());
  ASSERT_TRUE(pool.Run(50, nothing).ok());
  ASSERT_TRUE(pool.Run(50, nothing).ok());
  const absl::Status full = pool.Run(50, nothing);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(full).has_value());
  release.Notify();
}

TEST(PreparationPool, BoundsTheBytesThatWait) {
  PreparationPool pool(kOptions);
  EXPECT_EQ(pool.Run(1001, [] {}).code(), absl::StatusCode::kResourceExhausted);
}

TEST(PreparationPool, EndsWithWorkWaiting) {
  std::atomic<int> count{0};
  absl::Notification started;
  {
    PreparationPool pool(kOptions);
    ASSERT_TRUE(pool.Run(1,
                         [&] {
                           ++count;
                           started.Notify();
                         })
                    .ok());
    started.WaitForNotification();
  }
  EXPECT_EQ(count, 1);
}

}  // namespace
}  // namespace sluice::router
