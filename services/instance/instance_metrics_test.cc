#include "services/instance/instance_metrics.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sluice::instance {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(InstanceMetricsTest, KernelsAreCountedAsTheyComeIntoUse) {
  Metrics metrics({.model = "m", .role = "decode", .instance = "decode-1"});
  InstanceMetrics instance("decode", v1::Capacity(), &metrics);
  instance.UpdateKernels({});
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("sluice_kernel_calls_total")));
  instance.UpdateKernels({{"linear", "fp8_wgmma", 7}});
  instance.UpdateKernels({{"linear", "fp8_wgmma", 9}, {"linear", "general", 1}});
  const std::string text = metrics.Text();
  const char* const labels = "{instance=\"decode-1\",model=\"m\",role=\"decode\",kernel=\"";
  EXPECT_THAT(text, HasSubstr(std::string("sluice_kernel_calls_total") + labels +
                              "fp8_wgmma\",op=\"linear\"} 9"));
  EXPECT_THAT(text, HasSubstr(std::string("sluice_kernel_calls_total") + labels +
                              "general\",op=\"linear\"} 1"));
}

TEST(InstanceMetricsTest, MemoryIsToldByWhatItIsFor) {
  Metrics metrics({.model = "m", .role = "decode", .instance = "decode-1"});
  InstanceMetrics instance("decode", v1::Capacity(), &metrics);
  instance.SetMemory(UseOf({.taken = {{"weights", 500},
                                      {"kv_b in bf16", 20},
                                      {"KV cache", 64},
                                      {"logits", 3},
                                      {"queries", 4}},
                            .free = 1,
                            .total = 1000}));
  const std::pair<const char*, const char*> wanted[] = {
      {"weights", "520"}, {"kv", "64"}, {"activations", "7"}};
  for (const auto& [kind, bytes] : wanted) {
    EXPECT_THAT(metrics.Text(),
                HasSubstr(std::string("sluice_device_memory_bytes{instance=\"decode-1\",model="
                                      "\"m\",role=\"decode\",kind=\"") +
                          kind + "\"} " + bytes + "\n"));
  }
}

}  // namespace
}  // namespace sluice::instance
