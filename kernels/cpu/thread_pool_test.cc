#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace sluice {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t tasks : {0, 1, 2, 7, 8, 9, 63, 64, 65, 1000}) {
      std::vector<std::atomic<int>> runs(tasks);
      pool.ParallelFor(tasks, [&](int64_t task) { runs[task].fetch_add(1); });
      for (int64_t task = 0; task < tasks; ++task) {
        ASSERT_EQ(runs[task], 1) << "task " << task << " of " << tasks << ", threads " << threads;
      }
    }
  }
}

TEST(ThreadPoolTest, NegativeTaskCountIsNoWork) {
  ThreadPool pool(2);
  pool.ParallelFor(-1, [](int64_t) { FAIL(); });
}

TEST(ThreadPoolTest, PlainWritesOfTasksAreSeenByTheCallerAndByLaterJobs) {
  ThreadPool pool(4);
  std::vector<int64_t> values(257, 0);  // not atomic: TSan judges the ordering
  for (int64_t job = 1; job <= 2000; ++job) {
    pool.ParallelFor(std::ssize(values), [&](int64_t task) { values[task] += job; });
    ASSERT_EQ(values[job % 257], job * (job + 1) / 2);
  }
}

TEST(ThreadPoolTest, WorkersThatSleptTakePartAgain) {
  ThreadPool pool(2);
  for (int round = 0; round < 3; ++round) {
    // Far longer than the spin, spent in the kernel, so the worker is asleep.
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    // Two tasks that need each other: only two threads can finish them.
    std::atomic<int> arrived{0};
    pool.ParallelFor(2, [&](int64_t) {
      arrived.fetch_add(1);
      while (arrived.load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(arrived, 2);
  }
}

TEST(ThreadPoolTest, WorkerIndexIsExclusive) {
  ThreadPool pool(3);
  std::vector<std::atomic<int>> inside(3);
  pool.ParallelFor(5000, [&](int64_t, int worker) {
    ASSERT_GE(worker, 0);
    ASSERT_LT(worker, 3);
    ASSERT_EQ(inside[worker].fetch_add(1), 0);
    inside[worker].fetch_sub(1);
  });
}

TEST(ThreadPoolTest, TheJobNumberWraps) {
  ThreadPool pool(2);
  std::atomic<int64_t> runs{0};
  constexpr int64_t kJobs = 70000;  // beyond 16 bits
  for (int64_t job = 0; job < kJobs; ++job) {
    pool.ParallelFor(2, [&](int64_t) { runs.fetch_add(1, std::memory_order_relaxed); });
  }
  EXPECT_EQ(runs, 2 * kJobs);
}

TEST(ThreadPoolTest, JoinsAtOnceAfterAnyAmountOfWork) {
  for (int jobs = 0; jobs < 50; ++jobs) {
    ThreadPool pool(3);
    std::atomic<int> runs{0};
    for (int job = 0; job < jobs; ++job) pool.ParallelFor(4, [&](int64_t) { runs.fetch_add(1); });
    EXPECT_EQ(runs, 4 * jobs);
  }
}

using ThreadPoolDeathTest = testing::Test;

TEST(ThreadPoolDeathTest, NestedUseAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  for (const int threads : {1, 2}) {
    EXPECT_DEATH(
        {
          ThreadPool pool(threads);
          pool.ParallelFor(2, [&](int64_t) { pool.ParallelFor(1, [](int64_t) {}); });
        },
        "ParallelFor inside a task");
  }
}

}  // namespace
}  // namespace sluice
