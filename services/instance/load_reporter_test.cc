#include "services/instance/load_reporter.h"

#include <gtest/gtest.h>

namespace sluice::instance {
namespace {

TEST(LoadReporterTest, OnlyLayersWithExpertsAreReported) {
  model::ModelConfig config;
  config.n_routed_experts = 2;
  config.first_k_dense_replace = 1;
  v1::ExpertLoadReport report;
  AddLayers(config, {0, 0, 3, 4, 5, 6}, &report);
  ASSERT_EQ(report.layers_size(), 2);
  EXPECT_EQ(report.layers(0).ShortDebugString(), "layer: 1 tokens: 3 tokens: 4");
  EXPECT_EQ(report.layers(1).ShortDebugString(), "layer: 2 tokens: 5 tokens: 6");
}

TEST(LoadReporterTest, AModelWithoutExpertsHasNoLayers) {
  v1::ExpertLoadReport report;
  AddLayers({}, {}, &report);
  EXPECT_EQ(report.layers_size(), 0);
}

}  // namespace
}  // namespace sluice::instance
