// Random matrices on the GPU: the CPU's, bit for bit.
#include <vector>

#include "kernels/cuda/cuda_test_util.h"

namespace sluice {
namespace {

TEST_F(CudaOpsTest, RandomMatricesAreTheCpus) {
  struct Case {
    int64_t rows, cols, row_begin, col_begin, out_rows, out_cols, block, gap;
  };
  const Case cases[] = {{1, 1, 0, 0, 1, 1, 128, 0},
                        {127, 129, 0, 0, 127, 129, 128, 0},
                        {128, 128, 0, 0, 128, 128, 128, 0},
                        {300, 517, 128, 256, 130, 200, 128, 3},
                        {300, 517, 77, 101, 190, 300, 128, 4},
                        {300, 517, 77, 101, 0, 300, 128, 4},
                        {64, 70, 0, 0, 64, 70, 6, 0},
                        {576, 7168, 0, 0, 576, 7168, 128, 0}};
  for (const Case& c : cases) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
      const int64_t stride = c.out_cols + c.gap;
      const int64_t scale_rows = c.rows / c.block + 2, scale_cols = c.cols / c.block + 2;
      const OwnedTensor out(dtype, {c.out_rows, stride});
      const OwnedTensor scales(DType::kF32, {scale_rows, scale_cols});
      const TensorView device_out = gpu_.Up(out), device_scales = gpu_.Up(scales);
      FillRandomParams params{.numbers = NormalNumbers(Seed(), 0.7, 0.1),
                              .rows = c.rows,
                              .cols = c.cols,
                              .row_begin = c.row_begin,
                              .col_begin = c.col_begin};
      const auto to = [&](const TensorView& matrix, const TensorView& its_scales) {
        params.out = {.data = matrix.data,
                      .dtype = dtype,
                      .rows = c.out_rows,
                      .cols = c.out_cols,
                      .row_stride = stride,
                      .scales = its_scales.As<float>(),
                      .scale_row_stride = scale_cols,
                      .scale_block = c.block,
                      .row_begin = c.row_begin % c.block,
                      .col_begin = c.col_begin % c.block};
        return params;
      };
      ASSERT_TRUE(cpu_->elementwise().FillRandom(to(out.view(), scales.view()), {}).ok());
      ASSERT_TRUE(gpu_.backend().elementwise().FillRandom(to(device_out, device_scales), {}).ok());
      ExpectSame(out, gpu_.Down(device_out), static_cast<int64_t>(DTypeBytes(dtype)));
      ExpectSame(scales, gpu_.Down(device_scales), 4);
    }
  }
}

}  // namespace
}  // namespace sluice
