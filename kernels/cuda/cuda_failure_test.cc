// What a process says, and does, when its GPU fails it. What breaks the device for a process runs
// in a process of its own (a death test that starts the program again).
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_failure_kernels.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_linear_launch.h"
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

// KV cannot be passed through a device that is lost, and nothing of it is taken for a refusal.
bool MoverIsLost(PageMover& mover, const DeviceBuffer& pool) {
  const absl::Status mapped = mover.Map(*pool.handle).status();
  const absl::Status staging = mover.AllocateStaging(size_t{1} << 20).status();
  const PageCopy copy{.from = pool.memory.get(), .bytes = 64};
  const absl::Status queued = mover.Queue({&copy, 1}, {}).status();
  for (const absl::Status& status : {mapped, staging, queued}) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
  }
  return (mapped.ok() || absl::IsInternal(mapped)) && (staging.ok() || absl::IsInternal(staging)) &&
         absl::IsInternal(queued);
}

// Runs one kernel, says what Sync and everything after it give, and ends.
[[noreturn]] void RunAndEnd(cudaError_t (*launch)(cudaStream_t)) {
  auto backend = MakeBackend();
  auto mover = *backend->MakePageMover();
  auto pool = *backend->AllocateShareable(size_t{1} << 20, "pool");
  launch(StreamOf(*backend));
  const absl::Status status = backend->Sync({});
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  const bool stuck =
      !backend->Allocate(1, "more").ok() && !backend->Sync({}).ok() && MoverIsLost(*mover, pool);
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

// A matrix product of zeros by 64 blocks, in which most tiles are shared.
class SharedTiles {
 public:
  SharedTiles(Backend& backend, const cuda::TilePlan& plan) : backend_(backend) {
    constexpr int64_t kOutputs = 5120, kColumns = 16384, kSteps = kColumns / 128;
    const int64_t rows = plan.tokens;
    args_.plan = plan;
    args_.m = plan.tokens;
    args_.steps = static_cast<int32_t>(kSteps);
    args_.groups = 1;
    args_.blocks = kBlocks;
    args_.x_box_rows = plan.tokens / plan.blocks;
    args_.x = Map(rows, kColumns, args_.x_box_rows);
    args_.x_scales = Zeros<float>(rows * kSteps + cuda::kTileScaleSlack);
    args_.x_scale_stride = rows;
    args_.part_count = 1;
    args_.parts[0] = {
        .w = {.map = Map(kOutputs, kColumns, cuda::WeightBoxRows(plan.outputs, false)),
              .scales = Zeros<float>(kOutputs / 128 * kSteps),
              .scale_stride = kSteps},
        .out = Zeros<float>(rows * kOutputs),
        .out_stride = kOutputs,
        .n = kOutputs};
    args_.partial = Zeros<float>(int64_t{kBlocks} * plan.tokens * plan.outputs);
    args_.flags = Zeros<uint32_t>(2 * kBlocks);
    args_.ticket = Zeros<uint32_t>(1);
    args_.wait = WaitStateOf(backend);
  }

  void Queue() {
    const cudaError_t error = cuda::LaunchFp8Tiles(args_, StreamOf(backend_));
    if (error != cudaSuccess) End(error);
  }

  // From now on, for three seconds, no block learns what another has handed over.
  void TakeBackFlags() {
    uint32_t* running = nullptr;
    cudaStream_t stream = nullptr;
    cudaError_t error = cudaMallocHost(reinterpret_cast<void**>(&running), sizeof(*running));
    if (error != cudaSuccess) End(error);
    const volatile uint32_t* const is_running = running;
    *running = 0;
    error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (error != cudaSuccess) End(error);
    error = cuda::LaunchTakeBack(args_.flags, 2 * kBlocks, 3'000'000'000, running, stream);
    if (error != cudaSuccess) End(error);
    const auto late = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (*is_running == 0) {
      if (std::chrono::steady_clock::now() > late) End(cudaErrorNotReady);
    }
  }

 private:
  // Fewer than there are multiprocessors: another kernel finds room.
  static constexpr int kBlocks = 64;

  [[noreturn]] static void End(cudaError_t error) {
    std::fprintf(stderr, "preparing the product: %s\n", cudaGetErrorName(error));
    std::exit(9);
  }
  template <typename T>
  T* Zeros(int64_t count) {
    const auto buffer = backend_.Allocate(static_cast<size_t>(count) * sizeof(T), "a product");
    if (!buffer.ok()) End(cudaErrorMemoryAllocation);
    buffers_.push_back(*buffer);
    return buffer->As<T>();
  }
  CUtensorMap Map(int64_t rows, int64_t columns, int box_rows) {
    const auto map = MakeByteMap(Zeros<uint8_t>(rows * columns), rows, columns, columns, box_rows);
    if (!map.ok()) End(cudaErrorInvalidValue);
    return *map;
  }

  Backend& backend_;
  std::vector<DeviceBuffer> buffers_;
  cuda::TileLinearArgs args_ = {};
};

// It ends well by itself. Then its sums are not handed over any more: the first block that waits
// for long is told to end, or has waited for too long.
[[noreturn]] void MultiplyInVain(bool pairs, bool told) {
  const cuda::TilePlan plan =
      pairs ? cuda::TilePlan{128, 128, cuda::Sharing::kTokens, 2, /*split=*/true}
            : cuda::TilePlan{64, 128, cuda::Sharing::kNone, 1, /*split=*/true};
  auto backend = MakeBackend();
  SharedTiles tiles(*backend, plan);
  tiles.Queue();
  const absl::Status alone = backend->Sync({});
  std::fprintf(stderr, "by itself: %s\n", alone.ToString().c_str());
  if (!alone.ok()) std::exit(10);
  if (told) {
    backend->StopWaiting();
  } else {
    WaitStateOf(*backend)->limit_ms = 100;
  }
  tiles.TakeBackFlags();
  tiles.Queue();
  const absl::Status status = backend->Sync({});
  std::fprintf(stderr, "in vain: %s\n", status.ToString().c_str());
  std::exit(status.code() == absl::StatusCode::kInternal ? 7 : 8);
}

class CudaProductFailureDeathTest : public CudaFailureDeathTest,
                                    public testing::WithParamInterface<bool> {};

TEST_P(CudaProductFailureDeathTest, AProductThatWaitsStopsWhenItIsTold) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EXIT(MultiplyInVain(GetParam(), /*told=*/true), testing::ExitedWithCode(7),
              "told to end: CUDA says cudaErrorLaunchFailure");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
}

TEST_P(CudaProductFailureDeathTest, AProductThatWaitsInVainStopsItselfAndSaysSo) {
  EXPECT_EXIT(MultiplyInVain(GetParam(), /*told=*/false), testing::ExitedWithCode(7),
              "blocks waited 100 ms for each other: CUDA says cudaErrorLaunchFailure");
}

INSTANTIATE_TEST_SUITE_P(Blocks, CudaProductFailureDeathTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "pairs" : "single"; });

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
