#include "kernels/ops/kernel_calls.h"

#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace sluice {
namespace {

TEST(KernelCallsTest, CountsByOpAndKernelInOrderOfFirstCalls) {
  KernelCalls calls;
  EXPECT_TRUE(calls.Snapshot().empty());
  calls.Count("linear", "fast");
  calls.Count("gate", "cpu", 5);
  const std::string copy = "fast";  // the same name from elsewhere
  calls.Count("linear", copy.c_str());
  calls.Count("linear", "slow");
  const auto entries = calls.Snapshot();
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_STREQ(entries[0].kernel, "fast");
  EXPECT_EQ(entries[0].calls, 2);
  EXPECT_STREQ(entries[1].op, "gate");
  EXPECT_EQ(entries[1].calls, 5);
  EXPECT_STREQ(entries[2].kernel, "slow");
}

TEST(KernelCallsTest, ManyThreadsLoseNoCall) {
  static const char* const kNames[] = {"a", "b", "c", "d", "e", "f", "g", "h"};
  KernelCalls calls;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 8000; ++i) calls.Count("op", kNames[i % 8]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto entries = calls.Snapshot();
  ASSERT_EQ(entries.size(), 8u);
  for (const KernelCalls::Entry& entry : entries) EXPECT_EQ(entry.calls, 4000) << entry.kernel;
}

}  // namespace
}  // namespace sluice
