#include "kernels/base/device_name.h"

#include <gtest/gtest.h>

namespace sluice {
namespace {

TEST(DeviceNameTest, NamesThereAre) {
  EXPECT_FALSE(ParseDeviceName("cpu")->cuda);
  EXPECT_TRUE(ParseDeviceName("cuda")->cuda);
  EXPECT_EQ(ParseDeviceName("cuda")->number, 0);
  EXPECT_TRUE(ParseDeviceName("cuda:7")->cuda);
  EXPECT_EQ(ParseDeviceName("cuda:7")->number, 7);
}

TEST(DeviceNameTest, NamesThereAreNot) {
  for (const char* name : {"", "CPU", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda7", "cuda: 1x"}) {
    EXPECT_EQ(
        ParseDeviceName(name).status(),
        absl::InvalidArgumentError("is '" + std::string(name) + "', wanted cpu, cuda or cuda:N"));
  }
}

}  // namespace
}  // namespace sluice
