#include "services/balancer/expert_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "services/base/clock.h"

namespace sluice::balancer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Layer {
  uint32_t layer;
  std::vector<uint64_t> tokens;
};

v1::ExpertLoadReport MakeReport(const std::string& instance, uint64_t incarnation,
                                std::initializer_list<Layer> layers,
                                v1::Role role = v1::ROLE_DECODE) {
  v1::ExpertLoadReport report;
  report.set_instance(instance);
  report.set_incarnation(incarnation);
  report.set_role(role);
  report.set_steps(10);
  for (const Layer& layer : layers) {
    v1::LayerLoad& load = *report.add_layers();
    load.set_layer(layer.layer);
    load.mutable_tokens()->Add(layer.tokens.begin(), layer.tokens.end());
  }
  return report;
}

class ExpertLoadTest : public ::testing::Test {
 protected:
  void Report(const v1::ExpertLoadReport& report) {
    const absl::Status status = load_.Report(report, clock_.Now());
    EXPECT_TRUE(status.ok()) << status;
  }
  std::optional<Balance> Of(v1::Role role) { return load_.BalanceOf(role, clock_.Now()); }

  ManualClock clock_;
  ExpertLoad load_{
      {.window = absl::Seconds(60), .instances_max = 3, .layers_max = 2, .experts_max = 4}};
};

TEST_F(ExpertLoadTest, BalancednessIsMeanByMaximumOfEachLayer) {
  EXPECT_FALSE(Of(v1::ROLE_DECODE).has_value());
  Report(MakeReport("decode-1", 1, {{3, {10, 10, 10, 10}}, {7, {40, 0, 0, 0}}}));
  const auto balance = Of(v1::ROLE_DECODE);
  ASSERT_TRUE(balance.has_value());
  EXPECT_DOUBLE_EQ(balance->min, 0.25);
  EXPECT_EQ(balance->worst_layer, 7u);
  EXPECT_DOUBLE_EQ(balance->average, (1.0 + 0.25) / 2);
  EXPECT_EQ(balance->tokens, 80u);
}

TEST_F(ExpertLoadTest, LayersWithoutTokensCountForNothing) {
  Report(MakeReport("decode-1", 1, {{3, {0, 0}}, {7, {2, 2}}}));
  EXPECT_DOUBLE_EQ(Of(v1::ROLE_DECODE)->average, 1.0);
  Report(MakeReport("prefill-1", 1, {{3, {0, 0}}}, v1::ROLE_PREFILL));
  EXPECT_FALSE(Of(v1::ROLE_PREFILL).has_value());
}

TEST_F(ExpertLoadTest, InstancesOfARoleAreSummedAndRolesKeptApart) {
  Report(MakeReport("decode-1", 1, {{0, {4, 0}}}));
  Report(MakeReport("decode-2", 1, {{0, {0, 4}}}));
  Report(MakeReport("prefill-1", 1, {{0, {9, 1}}}, v1::ROLE_PREFILL));
  EXPECT_DOUBLE_EQ(Of(v1::ROLE_DECODE)->min, 1.0);
  EXPECT_DOUBLE_EQ(Of(v1::ROLE_PREFILL)->min, 5.0 / 9.0);
  EXPECT_EQ(load_.num_instances(v1::ROLE_DECODE), 2u);
  EXPECT_EQ(load_.num_instances(v1::ROLE_MIXED), 0u);
  EXPECT_EQ(load_.Sums(v1::ROLE_DECODE).instances_size(), 2);
  EXPECT_EQ(load_.Sums(v1::ROLE_UNSPECIFIED).instances_size(), 3);
}

TEST_F(ExpertLoadTest, TheWindowForgetsTheSumsDoNot) {
  Report(MakeReport("decode-1", 1, {{0, {100, 0}}}));
  clock_.Advance(absl::Seconds(59));
  Report(MakeReport("decode-1", 1, {{0, {0, 100}}}));
  EXPECT_DOUBLE_EQ(Of(v1::ROLE_DECODE)->min, 1.0);
  clock_.Advance(absl::Seconds(1));  // the first report is a window old now
  EXPECT_DOUBLE_EQ(Of(v1::ROLE_DECODE)->min, 0.5);
  clock_.Advance(absl::Seconds(59));
  EXPECT_FALSE(Of(v1::ROLE_DECODE).has_value());
  const auto sums = load_.Sums(v1::ROLE_DECODE);
  EXPECT_THAT(sums.instances(0).layers(0).tokens(), ElementsAre(100, 100));
  EXPECT_EQ(sums.instances(0).steps(), 20u);
}

// One report a second for an hour: the window is kept in slices, not in reports.
TEST_F(ExpertLoadTest, WindowOfManySmallReportsIsRightToASlice) {
  for (int second = 0; second < 3600; ++second) {
    Report(MakeReport("decode-1", 1, {{0, {1, 1}}}));
    clock_.Advance(absl::Seconds(1));
  }
  EXPECT_NEAR(static_cast<double>(Of(v1::ROLE_DECODE)->tokens), 120, 6);
}

TEST_F(ExpertLoadTest, ARestartedInstanceBeginsAnew) {
  Report(MakeReport("decode-1", 1, {{0, {5, 5}}}));
  Report(MakeReport("decode-1", 2, {{0, {1, 2, 3}}}));  // even with other experts
  EXPECT_THAT(load_.Sums(v1::ROLE_UNSPECIFIED).instances(0).layers(0).tokens(),
              ElementsAre(1, 2, 3));
  load_.Remove("decode-1", 1);  // the old stream's end comes late
  EXPECT_EQ(load_.num_instances(v1::ROLE_DECODE), 1u);
  load_.Remove("decode-1", 2);
  EXPECT_EQ(load_.num_instances(v1::ROLE_DECODE), 0u);
  load_.Remove("decode-1", 2);
}

TEST_F(ExpertLoadTest, TellsTheStalest) {
  EXPECT_EQ(load_.StalestReport(clock_.Now()), absl::ZeroDuration());
  Report(MakeReport("decode-1", 1, {}));
  clock_.Advance(absl::Seconds(5));
  Report(MakeReport("decode-2", 1, {}));
  EXPECT_EQ(load_.StalestReport(clock_.Now()), absl::Seconds(5));
}

TEST_F(ExpertLoadTest, RefusedReportsChangeNothing) {
  Report(MakeReport("decode-1", 1, {{0, {1, 2}}}));
  const struct {
    v1::ExpertLoadReport report;
    const char* wanted;
  } cases[] = {
      {MakeReport("", 1, {}), "instance is empty"},
      {MakeReport("x", 1, {}, v1::ROLE_UNSPECIFIED), "x: role is 0"},
      {MakeReport("x", 1, {}, static_cast<v1::Role>(77)), "x: role is 77"},
      {MakeReport("x", 1, {{0, {1}}, {1, {1}}, {2, {1}}}), "x: 3 layers; at most 2"},
      {MakeReport("x", 1, {{0, {1}}, {0, {1}}}), "x: layer 0 stands twice"},
      {MakeReport("x", 1, {{0, {}}}), "x: layer 0 has 0 experts; wanted 1 to 4"},
      {MakeReport("x", 1, {{0, {1, 1, 1, 1, 1}}}), "x: layer 0 has 5 experts"},
      {MakeReport("decode-1", 1, {{1, {9}}, {0, {1, 2, 3}}}), "layer 0 has 3 experts, and had 2"},
  };
  const std::string before = load_.Sums(v1::ROLE_UNSPECIFIED).SerializeAsString();
  for (const auto& c : cases) {
    const absl::Status status = load_.Report(c.report, clock_.Now());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.wanted;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.wanted));
  }
  EXPECT_EQ(load_.Sums(v1::ROLE_UNSPECIFIED).SerializeAsString(), before);
}

TEST_F(ExpertLoadTest, LayersAndInstancesAreBounded) {
  Report(MakeReport("decode-1", 1, {{0, {1}}}));
  Report(MakeReport("decode-1", 1, {{1, {1}}}));
  EXPECT_THAT(
      std::string(load_.Report(MakeReport("decode-1", 1, {{2, {1}}}), clock_.Now()).message()),
      HasSubstr("layer 2 is one more than the 2 allowed"));
  Report(MakeReport("decode-2", 1, {}));
  Report(MakeReport("decode-3", 1, {}));
  EXPECT_EQ(load_.Report(MakeReport("decode-4", 1, {}), clock_.Now()).code(),
            absl::StatusCode::kResourceExhausted);
  Report(MakeReport("decode-3", 2, {}));
}

}  // namespace
}  // namespace sluice::balancer
