#include "services/model/tensor_manifest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "services/base/mapped_file.h"

namespace sluice::model {
namespace {

ModelConfig Load(const std::string& name) {
  const std::string path = "services/model/testdata/configs/" + name + ".json";
  return *ParseModelConfig(*ReadFile(path, 1 << 20), path);
}

// The published checkpoint has 91,991 tensors of 688,574,839,360 bytes: FP8 with scales, the
// router's bias in f32, the rest bf16, the MTP module with its own embedding and head.
TEST(TensorManifestTest, DeepseekV3AsPublished) {
  const ModelConfig config = Load("deepseek_v3");
  int64_t tensors = 0;
  int64_t bytes = 0;
  std::set<std::string> names;
  for (const TensorSpec& spec : ExpectedTensors(config)) {
    const int64_t elements = spec.rows * std::max<int64_t>(spec.cols, 1);
    names.insert(spec.name);
    ++tensors;
    if (spec.quantized) {
      const auto blocks = spec.scale_shape(config.fp8_block);
      names.insert(spec.scale_name());
      ++tensors;
      bytes += elements + blocks[0] * blocks[1] * 4;
    } else {
      bytes += elements * (spec.role == TensorRole::kRouterBias ? 4 : 2);
    }
  }
  EXPECT_EQ(tensors, 91991);
  EXPECT_EQ(bytes, 688574839360);
  EXPECT_EQ(static_cast<int64_t>(names.size()), tensors);
}

TEST(TensorManifestTest, ParametersOfKnownModels) {
  const struct {
    const char* name;
    double billions;  // without MTP
  } cases[] = {{"deepseek_v3", 671.03},
               {"kimi_k2", 1026.41},
               {"deepseek_v2", 235.74},
               {"deepseek_v2_lite", 15.71}};
  for (const auto& c : cases) {
    int64_t parameters = 0;
    for (const TensorSpec& spec : ExpectedTensors(Load(c.name))) {
      if (spec.need != TensorNeed::kRequired) continue;
      parameters += spec.rows * std::max<int64_t>(spec.cols, 1);
    }
    EXPECT_NEAR(parameters / 1e9, c.billions, 0.005) << c.name;
  }
}

TEST(TensorManifestTest, PartialBlocksHaveScales) {
  const TensorSpec kv_a{.name = "w", .rows = 576, .cols = 7168, .quantized = true};
  EXPECT_EQ(kv_a.scale_shape(128), (std::vector<int64_t>{5, 56}));
  EXPECT_EQ(kv_a.scale_name(), "w_scale_inv");
}

}  // namespace
}  // namespace sluice::model
