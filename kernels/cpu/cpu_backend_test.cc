#include "kernels/cpu/cpu_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/cpu/thread_pool.h"

namespace sluice {
namespace {

using testing::HasSubstr;

TEST(CpuBackendTest, RefusesWhatTheMachineLacks) {
  for (const int threads : {-1, 1025}) {
    const auto backend = MakeCpuBackend({.threads = threads});
    ASSERT_EQ(backend.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(backend.status().message()), HasSubstr("threads: is "));
  }
  if (DetectCpuIsa() == CpuIsa::kAmx) return;  // nothing to ask for beyond it
  const auto backend = MakeCpuBackend({.isa = CpuIsa::kAmx});
  ASSERT_EQ(backend.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(backend.status().message()), HasSubstr("amx-bf16 was asked for"));
}

TEST(CpuBackendTest, DescribesItself) {
  const auto backend =
      MakeCpuBackend({.threads = 3, .numerics = Numerics::kFast, .isa = CpuIsa::kGeneric});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->Describe(), "CPU, generic, 3 threads, numerics fast");
}

TEST(CpuBackendTest, ZeroThreadsMeansOnePerCore) {
  const auto backend = MakeCpuBackend({.isa = CpuIsa::kGeneric});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_THAT((*backend)->Describe(), HasSubstr(std::to_string(UsableCores()) + " threads"));
}

TEST(CpuBackendTest, MemoryIsZeroedAlignedAndCopied) {
  const auto backend = MakeCpuBackend({.threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{4096}, size_t{3} << 20}) {
    const auto buffer = (*backend)->Allocate(bytes, "cache");
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ(buffer->bytes, bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->memory.get()) % 64, 0u);
    const uint8_t* data = buffer->As<uint8_t>();
    EXPECT_EQ(std::accumulate(data, data + bytes, uint64_t{0}), 0u);
    std::vector<uint8_t> in(bytes, 0xa5), out(bytes);
    ASSERT_TRUE((*backend)->CopyToDevice(buffer->memory.get(), in.data(), bytes, {}).ok());
    ASSERT_TRUE((*backend)->CopyToHost(out.data(), buffer->memory.get(), bytes, {}).ok());
    ASSERT_TRUE((*backend)->Sync({}).ok());
    EXPECT_EQ(out, in);
  }
}

TEST(CpuBackendTest, TellsWhichKernelsServed) {
  const auto backend =
      MakeCpuBackend({.threads = 1, .numerics = Numerics::kFast, .isa = CpuIsa::kGeneric});
  ASSERT_TRUE(backend.ok()) << backend.status();
  ASSERT_TRUE((*backend)->kernel_calls()->Snapshot().empty());
  std::vector<float> x(4, 1.0f), w(8, 2.0f), out(2);
  const LinearParams params = {.x = TensorView(x.data(), DType::kF32, {1, 4}),
                               .w = {.data = w.data(), .rows = 2, .cols = 4, .row_stride = 4},
                               .out = TensorView(out.data(), DType::kF32, {1, 2})};
  for (int i = 0; i < 3; ++i) ASSERT_TRUE((*backend)->linear().Linear(params, {}).ok());
  const auto calls = (*backend)->kernel_calls()->Snapshot();
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_STREQ(calls[0].op, "linear");
  EXPECT_STREQ(calls[0].kernel, "f32");  // no faster one on plain x86-64
  EXPECT_EQ(calls[0].calls, 3);
}

TEST(CpuBackendTest, AllocationBeyondTheMachineNamesWhatItWasFor) {
  const auto backend = MakeCpuBackend({.threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  const auto buffer =
      (*backend)->Allocate(std::numeric_limits<size_t>::max() / 2, "KV cache of 61 layers");
  ASSERT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(buffer.status().message()), HasSubstr("KV cache of 61 layers"));
}

}  // namespace
}  // namespace sluice
