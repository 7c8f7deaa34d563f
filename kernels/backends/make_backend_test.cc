#include "kernels/backends/make_backend.h"

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sluice {
namespace {

TEST(MakeBackendTest, MakesTheCpuOne) {
  const auto backend = MakeBackend({.threads = 1});
  ASSERT_TRUE(backend.ok());
  EXPECT_THAT((*backend)->Describe(), testing::HasSubstr("CPU"));
  EXPECT_TRUE((*backend)->reads_host_memory());
}

TEST(MakeBackendTest, NamesWhatItDoesNotKnow) {
  for (const char* device : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0"}) {
    const auto backend = MakeBackend({.device = device});
    EXPECT_EQ(backend.status().code(), absl::StatusCode::kInvalidArgument) << device;
    EXPECT_THAT(std::string(backend.status().message()),
                testing::HasSubstr("wanted cpu, cuda or cuda:N"));
  }
}

// Whether the build has no CUDA, the machine no driver, or no such GPU: an error, never a CPU.
TEST(MakeBackendTest, NeverFallsBackSilently) {
  const absl::Status status = MakeBackend({.device = "cuda:4096"}).status();
  EXPECT_FALSE(status.ok());
  if (absl::IsUnimplemented(status)) {
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("docs/gpu.md"));
  } else if (absl::StrContains(status.message(), "no NVIDIA driver")) {
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("--gpus all"));
  }
}

}  // namespace
}  // namespace sluice
