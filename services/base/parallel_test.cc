#include "services/base/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

namespace sluice {
namespace {

TEST(ParallelForTest, RunsEachIndexOnce) {
  for (const int64_t count : {0, 1, 2, 7, 1000}) {
    for (const int threads : {0, 1, 3, 16}) {
      std::vector<std::atomic<int>> calls(count);
      ASSERT_TRUE(ParallelFor(count, threads, [&](int64_t i) {
                    ++calls[i];
                    return absl::OkStatus();
                  }).ok());
      for (const auto& c : calls) EXPECT_EQ(c, 1);
    }
  }
}

TEST(ParallelForTest, ReturnsAnErrorAndStops) {
  std::atomic<int> calls = 0;
  const absl::Status status = ParallelFor(1000, 1, [&](int64_t i) {
    ++calls;
    return i >= 5 ? absl::InternalError(std::to_string(i)) : absl::OkStatus();
  });
  EXPECT_EQ(status, absl::InternalError("5"));
  EXPECT_EQ(calls, 6);
}

TEST(ParallelForTest, TheLowestFailingIndexWins) {
  // All four start before any fails, so the answer must not depend on which one is first.
  std::atomic<int> started = 0;
  const absl::Status status = ParallelFor(4, 4, [&](int64_t i) {
    ++started;
    while (started < 4) std::this_thread::yield();
    return i == 0 ? absl::OkStatus() : absl::InternalError(std::to_string(i));
  });
  EXPECT_EQ(status, absl::InternalError("1"));
}

}  // namespace
}  // namespace sluice
