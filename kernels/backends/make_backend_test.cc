#include "kernels/backends/make_backend.h"

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
  EXPECT_FALSE(MakeBackend({.device = "cuda:4096"}).ok());
}

}  // namespace
}  // namespace sluice
