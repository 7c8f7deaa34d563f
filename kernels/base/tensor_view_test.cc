#include "kernels/base/tensor_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace sluice {
namespace {

using ::testing::HasSubstr;

TEST(WeightViewTest, SlicesKeepTheirScaleBlocks) {
  // A 300 x 260 FP8 matrix has 3 x 3 scale blocks, the last ones partial.
  const uint8_t data[300 * 260] = {};
  const float scales[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const WeightView whole{.data = data,
                         .dtype = DType::kF8E4M3,
                         .rows = 300,
                         .cols = 260,
                         .row_stride = 260,
                         .scales = scales,
                         .scale_row_stride = 3};
  EXPECT_EQ(whole.ScaleAt(127, 127), 1);
  EXPECT_EQ(whole.ScaleAt(128, 127), 4);
  EXPECT_EQ(whole.ScaleAt(299, 259), 9);
  const WeightView slice = whole.RowSlice(100, 200).ColSlice(120, 140);
  EXPECT_EQ(slice.ScaleAt(27, 7), 1);
  EXPECT_EQ(slice.ScaleAt(28, 8), 5);
  EXPECT_EQ(slice.ScaleAt(199, 139), 9);
  EXPECT_EQ(slice.data, data + 100 * 260 + 120);
}

TEST(CheckTensorTest, NamesWantedAndActual) {
  float data[6];
  const TensorView view(data, DType::kF32, {2, 3});
  EXPECT_TRUE(CheckTensor("x", view, DType::kF32, {2, 3}).ok());
  EXPECT_TRUE(CheckTensor("x", view, DType::kF32, {-1, 3}).ok());
  const absl::Status wrong = CheckTensor("x", view, DType::kBF16, {2, 4});
  EXPECT_EQ(wrong.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(wrong.message(), HasSubstr("x: is F32 [2, 3], wanted BF16 [2, 4]"));
  EXPECT_FALSE(CheckTensor("x", view, DType::kF32, {6}).ok());
  EXPECT_FALSE(CheckTensor("x", TensorView(nullptr, DType::kF32, {2}), DType::kF32, {2}).ok());
  EXPECT_TRUE(CheckTensor("x", TensorView(nullptr, DType::kF32, {0}), DType::kF32, {0}).ok());
}

}  // namespace
}  // namespace sluice
