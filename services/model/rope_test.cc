#include "services/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace sluice::model {
namespace {

ModelConfig Plain() {
  ModelConfig config;
  config.qk_rope_head_dim = 64;
  return config;
}

ModelConfig DeepseekV3() {
  ModelConfig config = Plain();
  config.yarn = YarnScaling{.factor = 40, .mscale_all_dim = 1};
  return config;
}

ModelConfig KimiK2() {  // the blend is one dimension wide
  ModelConfig config = Plain();
  config.rope_theta = 50000;
  config.yarn = YarnScaling{.factor = 32, .beta_fast = 1, .beta_slow = 1, .mscale_all_dim = 1};
  return config;
}

// From float64 numpy, whose frequencies agree with transformers' f32 inv_freq within 1.3e-7.
TEST(CosSinTableTest, KnownAngles) {
  struct Angle {
    int64_t position, pair;
    float cosine, sine;
  };
  const struct {
    const char* name;
    ModelConfig config;
    std::vector<Angle> angles;
  } cases[] = {
      {"deepseek_v3",
       DeepseekV3(),
       {{1, 0, 0.540302306f, 0.841470985f},
        {1, 11, 0.999239326f, 0.038997036f},
        {5000, 9, -0.455752502f, -0.890106543f},
        {5000, 11, 0.967438841f, 0.253104897f},
        {5000, 16, -0.714886969f, 0.699240032f},
        {5000, 22, 0.630080304f, 0.776529980f},
        {100000, 0, -0.999360807f, 0.035748798f},
        {100000, 22, 0.482962239f, -0.875641180f},
        {100000, 31, 0.944941559f, 0.327239133f}}},
      {"kimi_k2",
       KimiK2(),
       {{5000, 16, -0.932496769f, -0.361178317f},
        {5000, 22, 0.995780892f, 0.091762823f},
        {100000, 31, 0.996161711f, 0.087531966f}}},
      {"no scaling",
       Plain(),
       {{0, 5, 1, 0},
        {5000, 11, -0.935351824f, -0.353718766f},
        {5000, 31, 0.785829100f, 0.618443713f},
        {100000, 31, 0.718715126f, 0.695304659f}}},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const std::vector<float> table = MakeCosSinTable(c.config, 100001);
    ASSERT_EQ(table.size(), 100001u * 64);
    for (const Angle& angle : c.angles) {
      EXPECT_NEAR(table[angle.position * 64 + angle.pair], angle.cosine, 1e-7)
          << angle.position << " " << angle.pair;
      EXPECT_NEAR(table[angle.position * 64 + 32 + angle.pair], angle.sine, 1e-7)
          << angle.position << " " << angle.pair;
    }
  }
}

TEST(CosSinTableTest, UnequalMscalesScaleTheTable) {
  ModelConfig config = DeepseekV3();
  const std::vector<float> equal = MakeCosSinTable(config, 3);
  config.yarn->mscale = 0.8;
  config.yarn->mscale_all_dim = 0.5;
  const std::vector<float> unequal = MakeCosSinTable(config, 3);
  for (size_t i = 0; i < equal.size(); ++i) EXPECT_NEAR(unequal[i], equal[i] * 1.09343319, 2e-7);
  config.yarn->factor = 1;  // no stretching, no scaling
  EXPECT_EQ(MakeCosSinTable(config, 3), MakeCosSinTable(Plain(), 3));
}

TEST(CosSinTableTest, AShortOriginalContextStaysFinite) {
  ModelConfig config = DeepseekV3();
  config.yarn->original_max_position_embeddings = 1;  // both correction dimensions are negative
  for (const float value : MakeCosSinTable(config, 10)) EXPECT_TRUE(std::isfinite(value));
  EXPECT_TRUE(MakeCosSinTable(config, 0).empty());
}

}  // namespace
}  // namespace sluice::model
