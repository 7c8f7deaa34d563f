// What threads may not change; small enough for the thread sanitizer.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/linear_testing.h"

namespace sluice {
namespace {

using namespace testing_linear;  // NOLINT(google-build-using-namespace)

// Every kernel (few tokens, tiles, widened tiles) at sizes that fork, and x large enough to be
// packed by all threads.
TEST(LinearThreadsTest, ThreadCountDoesNotChangeABit) {
  for (const Numerics numerics : {Numerics::kExact, Numerics::kFast}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
      for (const int64_t tokens : {1, 5, 40, 300}) {
        std::mt19937 rng(kSeed);
        const Weights gate(rng, dtype, 100, 288), up(rng, dtype, 100, 288);
        Matrix x = Matrix::Random(rng, tokens, 288);
        std::vector<int32_t> begins = {0, static_cast<int32_t>(tokens / 4),
                                       static_cast<int32_t>(tokens)};
        const TensorView offsets(begins.data(), DType::kI32, {3});
        const std::vector<WeightView> gates = {gate.view, up.view}, ups = {up.view, gate.view};
        Matrix want(tokens, 100), want_grouped(tokens, 100);
        for (const int threads : {1, 2, 3}) {
          Ops ops(DetectCpuIsa(), threads, numerics);
          Matrix out(tokens, 100), grouped(tokens, 100);
          ASSERT_TRUE(ops.linear.Linear({x.View(), gate.view, out.View()}, {}).ok());
          ASSERT_TRUE(
              ops.linear.GroupedGatedLinear({x.View(), gates, ups, offsets, grouped.View()}, {})
                  .ok());
          if (threads == 1) {
            want = out;
            want_grouped = grouped;
          }
          const std::string what = absl::StrCat(DTypeName(dtype), " tokens ", tokens, " threads ",
                                                threads, " seed ", kSeed);
          EXPECT_EQ(out.values, want.values) << what;
          EXPECT_EQ(grouped.values, want_grouped.values) << what;
        }
      }
    }
  }
}

}  // namespace
}  // namespace sluice
