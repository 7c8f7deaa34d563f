// What a process says, and does, when its GPU fails it. What breaks the device for a process runs
// in a process of its own (a death test that starts the program again).
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_failure_kernels.h"
#include "kernels/cuda/cuda_stream.h"
#include "services/base/exit_deadline.h"

namespace sluice {
namespace {

std::unique_ptr<Backend> MakeBackend() {
  auto backend = MakeCudaBackend({});
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    std::abort();
  }
  return *std::move(backend);
}

class CudaFailureDeathTest : public testing::Test {
 protected:
  CudaFailureDeathTest() { testing::GTEST_FLAG(death_test_style) = "threadsafe"; }
};

// KV cannot be passed through a device that is lost, and that is told as the device's failure.
bool MoverIsLost(PageMover& mover, const MemoryHandle& pool) {
  return absl::IsInternal(mover.Map(pool).status()) &&
         absl::IsInternal(mover.AllocateStaging(size_t{1} << 20).status()) &&
         absl::IsInternal(mover.Queue({}, {}).status());
}

// Runs one kernel, says what Sync and everything after it give, and ends.
[[noreturn]] void RunAndEnd(cudaError_t (*launch)(cudaStream_t)) {
  auto backend = MakeBackend();
  auto mover = *backend->MakePageMover();
  auto pool = *backend->AllocateShareable(size_t{1} << 20, "pool");
  launch(StreamOf(*backend));
  const absl::Status status = backend->Sync({});
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  const bool stuck = !backend->Allocate(1, "more").ok() && !backend->Sync({}).ok() &&
                     MoverIsLost(*mover, *pool.handle);
  mover.reset();
  pool = {};
  backend.reset();  // and that ends too
  std::exit(status.code() == absl::StatusCode::kInternal && stuck ? 7 : 8);
}

TEST_F(CudaFailureDeathTest, AKernelThatStopsItselfIsAnErrorThatSaysWhatToDo) {
  EXPECT_EXIT(RunAndEnd(cuda::LaunchTrap), testing::ExitedWithCode(7),
              "a step on the GPU: CUDA says cudaErrorLaunchFailure.*start it again");
}

TEST_F(CudaFailureDeathTest, AnIllegalAddressIsAnErrorThatSaysWhatToDo) {
  EXPECT_EXIT(RunAndEnd(cuda::LaunchIllegalAddress), testing::ExitedWithCode(7),
              "a step on the GPU: CUDA says cudaErrorIllegalAddress.*start it again");
}

// A kernel waits for a flag that nobody raises.
[[noreturn]] void WaitInVain(Backend& backend) {
  const auto flag = backend.Allocate(sizeof(uint32_t), "flag");  // zero
  if (!flag.ok()) std::exit(9);
  cuda::LaunchWait(flag->As<uint32_t>(), WaitStateOf(backend), StreamOf(backend));
  const absl::Status status = backend.Sync({});
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  std::exit(status.code() == absl::StatusCode::kInternal ? 7 : 8);
}

[[noreturn]] void WaitUntilTheLimit() {
  auto backend = MakeBackend();
  WaitStateOf(*backend)->limit_ms = 100;
  WaitInVain(*backend);
}

TEST_F(CudaFailureDeathTest, ABlockThatWaitsInVainStopsItselfAndSaysSo) {
  EXPECT_EXIT(WaitUntilTheLimit(), testing::ExitedWithCode(7),
              "blocks waited 100 ms for each other: CUDA says cudaErrorLaunchFailure");
}

[[noreturn]] void WaitUntilTold() {
  auto backend = MakeBackend();
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    backend->StopWaiting();
  });
  WaitInVain(*backend);
}

TEST_F(CudaFailureDeathTest, ABlockThatWaitsStopsWhenItIsTold) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EXIT(WaitUntilTold(), testing::ExitedWithCode(7),
              "told to end: CUDA says cudaErrorLaunchFailure");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
}

// As instances do once a step has had its time: whatever waits for the device, the process ends.
[[noreturn]] void HangUntilTheDeadline() {
  ExitDeadline deadline;
  auto backend = MakeBackend();
  cuda::LaunchSpin(20'000'000'000, StreamOf(*backend));
  deadline.Start(absl::Seconds(1));
  backend.reset();  // waits for the kernel
  std::exit(8);
}

TEST_F(CudaFailureDeathTest, AProcessEndsAlthoughAKernelHangs) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EXIT(HangUntilTheDeadline(), testing::ExitedWithCode(1), "");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
}

// A decode lets go of a prefill's memory while its steps run: they are not waited for.
TEST(CudaFailureTest, LettingGoOfOthersMemoryDoesNotWait) {
  auto backend = MakeBackend();
  const auto pool = *backend->AllocateShareable(size_t{64} << 20, "pool");
  const auto mover = *backend->MakePageMover();
  auto mapped = mover->Map(*pool.handle);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  const auto start = std::chrono::steady_clock::now();
  cuda::LaunchSpin(2'000'000'000, StreamOf(*backend));
  *mapped = {};
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  EXPECT_TRUE(backend->Sync({}).ok());
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
}

TEST(CudaFailureTest, NoRoomIsSaidInNumbersAndHarmsNothing) {
  auto backend = MakeBackend();
  const auto weights = backend->Allocate(300'000'000, "weights");
  ASSERT_TRUE(weights.ok());
  const absl::Status status = backend->Allocate(size_t{1} << 50, "KV cache").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              testing::ContainsRegex("KV cache: needs 1.1 PB, .* has .* free of .*; this process "
                                     "took 300.0 MB so far: weights 300.0 MB"));
  EXPECT_TRUE(backend->Sync({}).ok());
  EXPECT_TRUE(backend->Allocate(1000, "more").ok());
}

}  // namespace
}  // namespace sluice
