#include "services/model/random_weights.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "kernels/base/float_convert.h"

namespace sluice::model {
namespace {

TensorSpec Matrix(const char* name, int64_t rows, int64_t cols,
                  TensorRole role = TensorRole::kDenseGate) {
  return {.role = role, .name = name, .rows = rows, .cols = cols, .quantized = true};
}

template <typename T>
uint64_t Fnv1a64(const std::vector<T>& values) {
  uint64_t hash = 0xCBF29CE484222325;
  const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) {
    hash = (hash ^ bytes[i]) * 0x100000001B3;
  }
  return hash;
}

// Bit patterns computed in Python from the definition in the header.
TEST(RandomTensorTest, KnownElements) {
  const struct {
    TensorSpec spec;
    uint64_t seed;
    uint32_t at_0, at_1, at_2, at_12345678901;
  } cases[] = {
      {Matrix("model.embed_tokens.weight", 129280, 7168, TensorRole::kEmbed), 0, 0x3f745904,
       0xbfb4de0c, 0x3f67b059, 0xbe887089},
      {Matrix("model.layers.3.self_attn.o_proj.weight", 7168, 16384, TensorRole::kO), 7, 0x3c719202,
       0xbc98dc39, 0xbb9d48fc, 0xbc0b4566},
      {{.role = TensorRole::kFinalNorm, .name = "model.norm.weight", .rows = 7168},
       1,
       0x3f8f85d8,
       0x3f907906,
       0x3f741953,
       0x3f80529e},
      {{.role = TensorRole::kRouterBias,
        .name = "model.layers.1.mlp.gate.e_score_correction_bias",
        .rows = 256},
       1,
       0x3b08899e,
       0x3be45615,
       0x3afe9c89,
       0x3c9c5766},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.spec.name);
    const RandomTensor tensor(c.spec, c.seed);
    float values[3];
    tensor.Fill(0, 3, values);
    EXPECT_EQ(std::bit_cast<uint32_t>(values[0]), c.at_0);
    EXPECT_EQ(std::bit_cast<uint32_t>(values[1]), c.at_1);
    EXPECT_EQ(std::bit_cast<uint32_t>(values[2]), c.at_2);
    tensor.Fill(12345678901, 1, values);
    EXPECT_EQ(std::bit_cast<uint32_t>(values[0]), c.at_12345678901);
  }
}

// Against numpy and ml_dtypes: hashes of what a 130 x 200 matrix is stored as, with partial blocks.
TEST(RandomTensorTest, StoredForms) {
  const RandomTensor tensor(Matrix("model.layers.0.mlp.gate_proj.weight", 130, 200), 5);
  const Region whole{.rows = 130, .cols = 200};
  std::vector<uint16_t> bf16(130 * 200);
  tensor.FillBf16(whole, bf16.data(), 200);
  EXPECT_EQ(Fnv1a64(bf16), 0x122c60d2d257288b);
  std::vector<uint8_t> f8(130 * 200);
  std::vector<float> scales(4);
  tensor.FillF8(whole, 128, f8.data(), 200, scales.data(), 2);
  EXPECT_EQ(Fnv1a64(f8), 0x5ca25da9b0419b16);
  const uint32_t wanted[] = {0x3a0589a3, 0x3a03152b, 0x39d4766e, 0x39d9e142};
  for (int i = 0; i < 4; ++i) EXPECT_EQ(std::bit_cast<uint32_t>(scales[i]), wanted[i]);
}

TEST(RandomTensorTest, MeanAndDeviation) {
  const RandomTensor tensor(Matrix("m", 1000, 400), 3);
  std::vector<float> values(400000);
  tensor.Fill(0, 400000, values.data());
  double sum = 0, squares = 0;
  for (const float value : values) {
    sum += value;
    squares += double{value} * value;
  }
  EXPECT_NEAR(sum / 400000, 0, 0.05 * 4 / std::sqrt(400000));  // four standard errors
  EXPECT_NEAR(std::sqrt(squares / 400000), 0.05, 0.05 * 0.005);
}

TEST(RandomTensorTest, RegionsAreThePartsOfTheWhole) {
  const RandomTensor tensor(Matrix("m", 300, 260), 11);
  std::vector<uint8_t> whole(300 * 260), part(172 * 132);
  std::vector<float> scales(9), part_scales(4);
  tensor.FillF8({.rows = 300, .cols = 260}, 128, whole.data(), 260, scales.data(), 3);
  const Region region{.row_begin = 128, .rows = 172, .col_begin = 128, .cols = 132};
  tensor.FillF8(region, 128, part.data(), 132, part_scales.data(), 2);
  for (int row = 0; row < 172; ++row) {
    for (int col = 0; col < 132; ++col) {
      ASSERT_EQ(part[row * 132 + col], whole[(row + 128) * 260 + col + 128]);
    }
  }
  EXPECT_EQ(part_scales, (std::vector<float>{scales[4], scales[5], scales[7], scales[8]}));
}

}  // namespace
}  // namespace sluice::model
