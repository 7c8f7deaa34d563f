// Matrix products on the GPU: every size, type and kernel. Sizes are 0, 1, about a tile's edge, and
// large; outputs are poisoned first.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "kernels/cuda/cuda_test_util.h"
#include "kernels/cuda/tile_linear_test_util.h"

namespace sluice {
namespace {

using CudaLinearTest = CudaOpsTest;

TEST_F(CudaLinearTest, LinearOfAllSizesAndTypes) {
  const struct {
    int64_t m, n, k, offset;
  } sizes[] = {{0, 5, 7, 0},       {1, 1, 1, 0},       {1, 576, 256, 0},  {3, 63, 15, 0},
               {63, 64, 16, 0},    {64, 65, 17, 0},    {65, 130, 300, 3}, {7, 200, 130, 77},
               {129, 257, 129, 0}, {300, 512, 1000, 0}};
  for (const DType dtype : kWeightTypes) {
    for (const auto& size : sizes) {
      SCOPED_TRACE(testing::Message() << DTypeName(dtype) << " " << size.m << " x " << size.n
                                      << " x " << size.k << " from " << size.offset);
      const OwnedTensor x = Random({size.m, size.k});
      const OwnedWeight w = RandomWeight(dtype, size.n, size.k, Seed(), 0.1f, size.offset);
      const OwnedWeight up = RandomWeight(dtype, size.n, size.k, Seed(), 0.1f, size.offset);
      const TensorView device_x = gpu_.Up(x);
      for (const bool accumulate : {false, true}) {
        const OwnedTensor out =
            accumulate ? Random({size.m, size.n}) : OwnedTensor(DType::kF32, {size.m, size.n});
        const TensorView device_out = gpu_.Up(out);
        ASSERT_TRUE(cpu_->linear().Linear({x.view(), w.view, out.view(), accumulate}, {}).ok());
        ASSERT_TRUE(gpu_.backend()
                        .linear()
                        .Linear({device_x, gpu_.Up(w), device_out, accumulate}, {})
                        .ok());
        EXPECT_LT(Difference(out, gpu_.Down(device_out)), 1e-5);
      }
      const OwnedTensor out(DType::kF32, {size.m, size.n});
      const TensorView device_out = gpu_.Up(out);
      ASSERT_TRUE(cpu_->linear().GatedLinear({x.view(), w.view, up.view, out.view()}, {}).ok());
      ASSERT_TRUE(gpu_.backend()
                      .linear()
                      .GatedLinear({device_x, gpu_.Up(w), gpu_.Up(up), device_out}, {})
                      .ok());
      EXPECT_LT(Difference(out, gpu_.Down(device_out)), 1e-5);
    }
  }
}

TEST_F(CudaLinearTest, GroupedLinearTouchesItsRowsAlone) {
  const int64_t n = 96, k = 200, rows = 210;
  const OwnedTensor offsets = MakeI32({7}, {0, 0, 1, 65, 65, 130, 201});
  for (const DType dtype : kWeightTypes) {
    SCOPED_TRACE(DTypeName(dtype));
    std::vector<OwnedWeight> gates, ups;
    std::vector<WeightView> host_gates, host_ups, device_gates, device_ups;
    for (int g = 0; g < 6; ++g) {
      gates.push_back(RandomWeight(dtype, n, k, Seed(), 0.1f));
      ups.push_back(RandomWeight(dtype, n, k, Seed(), 0.1f));
    }
    for (int g = 0; g < 6; ++g) {
      host_gates.push_back(gates[g].view);
      host_ups.push_back(ups[g].view);
      device_gates.push_back(gpu_.Up(gates[g]));
      device_ups.push_back(gpu_.Up(ups[g]));
    }
    const OwnedTensor x = Random({rows, k});
    const TensorView device_x = gpu_.Up(x), device_offsets = gpu_.Up(offsets);
    const auto compare = [&](const OwnedTensor& out, const TensorView& device_out) {
      const OwnedTensor got = gpu_.Down(device_out);
      const OwnedTensor wanted_part =
          MakeF32({201, n}, std::vector<float>(out.data<float>(), out.data<float>() + 201 * n));
      const OwnedTensor got_part =
          MakeF32({201, n}, std::vector<float>(got.data<float>(), got.data<float>() + 201 * n));
      EXPECT_LT(Difference(wanted_part, got_part), 1e-5);
      for (int64_t i = 201 * n; i < rows * n; ++i) EXPECT_TRUE(std::isnan(got.data<float>()[i]));
    };
    OwnedTensor out(DType::kF32, {rows, n});
    TensorView device_out = gpu_.Up(out);
    ASSERT_TRUE(
        cpu_->linear().GroupedLinear({x.view(), host_gates, offsets.view(), out.view()}, {}).ok());
    ASSERT_TRUE(gpu_.backend()
                    .linear()
                    .GroupedLinear({device_x, device_gates, device_offsets, device_out}, {})
                    .ok());
    compare(out, device_out);
    out = OwnedTensor(DType::kF32, {rows, n});
    device_out = gpu_.Up(out);
    ASSERT_TRUE(
        cpu_->linear()
            .GroupedGatedLinear({x.view(), host_gates, host_ups, offsets.view(), out.view()}, {})
            .ok());
    ASSERT_TRUE(gpu_.backend()
                    .linear()
                    .GroupedGatedLinear(
                        {device_x, device_gates, device_ups, device_offsets, device_out}, {})
                    .ok());
    compare(out, device_out);
    // The same span with other weights is not mistaken for the old one.
    std::swap(device_gates[2], device_gates[5]);
    std::swap(host_gates[2], host_gates[5]);
    out = OwnedTensor(DType::kF32, {rows, n});
    device_out = gpu_.Up(out);
    ASSERT_TRUE(
        cpu_->linear().GroupedLinear({x.view(), host_gates, offsets.view(), out.view()}, {}).ok());
    ASSERT_TRUE(gpu_.backend()
                    .linear()
                    .GroupedLinear({device_x, device_gates, device_offsets, device_out}, {})
                    .ok());
    compare(out, device_out);
  }
}

// --- FP8 on the tensor cores ---

// x as products with bf16 weights see it.
OwnedTensor Rounded(const OwnedTensor& x) {
  OwnedTensor out(DType::kF32, {x.view().dims[0], x.view().dims[1]});
  for (int64_t i = 0; i < x.size(); ++i) {
    out.data<float>()[i] = Bf16ToF32(F32ToBf16(x.data<float>()[i]));
  }
  return out;
}

constexpr double kQuantizationError = 1e-2;  // e4m3 keeps 4 bits of an activation

TEST_F(CudaLinearTest, Fp8ProductsAreThoseOfTheQuantizedActivations) {
  Device fast(Numerics::kFast);
  const struct {
    int64_t m, n, k;
  } sizes[] = {{0, 64, 128},    {1, 36, 128},    {1, 576, 1536}, {15, 64, 256},  {16, 128, 384},
               {17, 132, 128},  {33, 200, 1536}, {64, 260, 256}, {65, 64, 2048}, {128, 1000, 128},
               {129, 260, 512}, {300, 576, 640}, {132, 272, 512}};
  for (const auto& size : sizes) {
    SCOPED_TRACE(testing::Message() << size.m << " x " << size.n << " x " << size.k);
    const OwnedTensor x = Random({size.m, size.k});
    const OwnedTensor rounded = Quantized(x, size.m, size.k);
    const OwnedWeight w = RandomWeight(DType::kF8E4M3, size.n, size.k, Seed(), 1.0f);
    const OwnedWeight up = RandomWeight(DType::kF8E4M3, size.n, size.k, Seed(), 1.0f);
    const TensorView device_x = fast.Up(x);
    for (const bool accumulate : {false, true}) {
      const OwnedTensor wanted =
          accumulate ? Random({size.m, size.n}) : OwnedTensor(DType::kF32, {size.m, size.n});
      const TensorView out = fast.Up(wanted);
      ASSERT_TRUE(
          cpu_->linear().Linear({rounded.view(), w.view, wanted.view(), accumulate}, {}).ok());
      ASSERT_TRUE(fast.backend().linear().Linear({device_x, fast.Up(w), out, accumulate}, {}).ok());
      EXPECT_LT(RelativeError(wanted, fast.Down(out), wanted.size()), kTensorCoreError);
    }
    const OwnedTensor wanted(DType::kF32, {size.m, size.n}), exact(DType::kF32, {size.m, size.n});
    const TensorView out = fast.Up(wanted);
    ASSERT_TRUE(
        cpu_->linear().GatedLinear({rounded.view(), w.view, up.view, wanted.view()}, {}).ok());
    ASSERT_TRUE(cpu_->linear().GatedLinear({x.view(), w.view, up.view, exact.view()}, {}).ok());
    ASSERT_TRUE(
        fast.backend().linear().GatedLinear({device_x, fast.Up(w), fast.Up(up), out}, {}).ok());
    const OwnedTensor got = fast.Down(out);
    EXPECT_LT(RelativeError(wanted, got, wanted.size()), kTensorCoreError);
    // It is this kernel that ran.
    if (size.m > 0) {
      EXPECT_GT(RelativeError(exact, got, wanted.size()), kQuantizationError);
    }
  }
}

TEST_F(CudaLinearTest, Bf16ProductsAreThoseOfTheRoundedActivations) {
  Device fast(Numerics::kFast);
  const struct {
    int64_t m, n, k;
    Precision precision;
  } cases[] = {{1, 8, 8, Precision::kBackend},       {3, 576, 256, Precision::kBackend},
               {65, 264, 1000, Precision::kBackend}, {0, 64, 64, Precision::kBackend},
               {5, 63, 100, Precision::kBackend},  // the general kernel's: not rounded
               {33, 64, 512, Precision::kF32}};
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << c.m << " x " << c.n << " x " << c.k);
    const OwnedTensor x = Random({c.m, c.k});
    OwnedTensor rounded(DType::kF32, {c.m, c.k});
    const bool rounds = c.precision == Precision::kBackend && c.n % 8 == 0;
    for (int64_t i = 0; i < x.size(); ++i) {
      const float value = x.data<float>()[i];
      rounded.data<float>()[i] = rounds ? Bf16ToF32(F32ToBf16(value)) : value;
    }
    const OwnedWeight w = RandomWeight(DType::kBF16, c.n, c.k, Seed(), 1.0f);
    for (const bool accumulate : {false, true}) {
      const OwnedTensor wanted =
          accumulate ? Random({c.m, c.n}) : OwnedTensor(DType::kF32, {c.m, c.n});
      const TensorView out = fast.Up(wanted);
      ASSERT_TRUE(
          cpu_->linear().Linear({rounded.view(), w.view, wanted.view(), accumulate}, {}).ok());
      ASSERT_TRUE(fast.backend()
                      .linear()
                      .Linear({fast.Up(x), fast.Up(w), out, accumulate, c.precision}, {})
                      .ok());
      EXPECT_LT(Difference(wanted, fast.Down(out)), 1e-5);
    }
  }
}

TEST_F(CudaLinearTest, MultiIsEachProduct) {
  Device fast(Numerics::kFast);
  const struct {
    DType dtype;
    std::vector<int64_t> n;
    double error;
  } cases[] = {
      {DType::kF8E4M3, {1536, 576}, kTensorCoreError},
      {DType::kF8E4M3, {4, 260, 64, 128}, kTensorCoreError},
      {DType::kF8E4M3, {64, 64, 64, 64, 64}, kTensorCoreError},  // more than one launch has
      {DType::kF8E4M3, {64, 63}, 1e-1},  // the general kernel's: x is not quantised
      {DType::kBF16, {1536, 576}, 1e-5},
      {DType::kF32, {5, 7}, 1e-5},
      {DType::kF8E4M3, {}, 0}};
  for (const auto& c : cases) {
    for (const int64_t m : {0, 1, 64, 65, 129, 300}) {
      SCOPED_TRACE(testing::Message() << DTypeName(c.dtype) << " x " << c.n.size() << ", m " << m);
      const int64_t k = 512;
      const OwnedTensor x = Random({m, k});
      OwnedTensor seen = c.dtype == DType::kF8E4M3 ? Quantized(x, m, k) : x;
      if (c.dtype == DType::kBF16) seen = Rounded(x);
      std::vector<OwnedTensor> wanted;
      std::vector<WeightView> host, device;
      std::vector<OwnedWeight> weights;
      std::vector<TensorView> wanted_views, outs;
      for (const int64_t n : c.n) weights.push_back(RandomWeight(c.dtype, n, k, Seed(), 1.0f));
      for (const OwnedWeight& w : weights) {
        wanted.emplace_back(DType::kF32, std::initializer_list<int64_t>{m, w.view.rows});
      }
      for (size_t i = 0; i < weights.size(); ++i) {
        host.push_back(weights[i].view);
        device.push_back(fast.Up(weights[i]));
        outs.push_back(fast.Up(wanted[i]));
        wanted_views.push_back(wanted[i].view());
      }
      ASSERT_TRUE(cpu_->linear().MultiLinear({seen.view(), host, wanted_views}, {}).ok());
      ASSERT_TRUE(fast.backend().linear().MultiLinear({fast.Up(x), device, outs}, {}).ok());
      for (size_t i = 0; i < weights.size(); ++i) {
        EXPECT_LT(RelativeError(wanted[i], fast.Down(outs[i]), wanted[i].size()), c.error) << i;
      }
    }
  }
}

struct PlanSize {
  int64_t m, n, k;
};

void PrintTo(const PlanSize& size, std::ostream* os) {
  *os << size.m << " x " << size.n << " x " << size.k;
}

class TilePlansTest : public CudaOpsTest, public testing::WithParamInterface<PlanSize> {};

// Not only the plans that Fp8Plan chooses for sizes as small as these.
TEST_P(TilePlansTest, EveryPlanComputesTheSame) {
  Device fast(Numerics::kFast);
  const CudaContext context = ContextOf(fast);
  const PlanSize& size = GetParam();
  const OwnedTensor x = Random({size.m, size.k});
  const OwnedTensor rounded = Quantized(x, size.m, size.k);
  const OwnedWeight w = RandomWeight(DType::kF8E4M3, size.n, size.k, Seed(), 1.0f);
  const OwnedWeight up = RandomWeight(DType::kF8E4M3, size.n, size.k, Seed(), 1.0f);
  const OwnedTensor plain(DType::kF32, {size.m, size.n}), gated(DType::kF32, {size.m, size.n});
  const OwnedTensor poisoned(DType::kF32, {size.m, size.n});
  ASSERT_TRUE(cpu_->linear().Linear({rounded.view(), w.view, plain.view()}, {}).ok());
  ASSERT_TRUE(cpu_->linear().GatedLinear({rounded.view(), w.view, up.view, gated.view()}, {}).ok());
  const TensorView device_x = fast.Up(x);
  const WeightView device_w = fast.Up(w), device_up = fast.Up(up);
  for (const cuda::TilePlan& plan : DensePlans()) {
    SCOPED_TRACE(PlanName(plan));
    TileLinear tiles(context, DType::kF8E4M3);
    for (const bool has_up : {false, true}) {
      OwnedTensor first;
      for (int run = 0; run < 2; ++run) {
        const TensorView out = fast.Up(poisoned);
        TileProduct product{.x = device_x, .weights = {&device_w, 1}, .outs = {&out, 1}};
        if (has_up) product.ups = {&device_up, 1};
        ASSERT_TRUE(tiles.Run(product, plan).ok());
        const OwnedTensor got = fast.Down(out);
        if (run > 0) ExpectSame(first, got, 4);
        first = got;
      }
      EXPECT_LT(RelativeError(has_up ? gated : plain, first, first.size()), kTensorCoreError);
    }
  }
}

// Among few outputs all gates may be nearly shut, and what is left is mostly error: no less
// than 36.
INSTANTIATE_TEST_SUITE_P(Sizes, TilePlansTest,
                         testing::Values(PlanSize{1, 36, 512}, PlanSize{63, 260, 1536},
                                         PlanSize{64, 132, 640}, PlanSize{65, 64, 1024},
                                         PlanSize{128, 2112, 512}, PlanSize{300, 1000, 512}),
                         [](const auto& info) {
                           const PlanSize& size = info.param;
                           return absl::StrCat(size.m, "x", size.n, "x", size.k);
                         });

// Blocks of a product that is dealt out by columns wait for each other. With two products on the
// GPU at once neither has all multiprocessors, so that blocks which wait for others that have not
// started would wait for ever.
TEST_F(CudaLinearTest, TwoBackendsShareAGpu) {
  using cuda::Sharing;
  const int64_t m = 64, n = 2112, k = 7168;
  constexpr int kRounds = 300;
  const cuda::TilePlan plans[] = {{64, 128, Sharing::kNone, 1, /*split=*/true},
                                  {128, 128, Sharing::kTokens, 2, /*split=*/true},
                                  {64, 64, Sharing::kNone, 1, /*split=*/true}};
  const OwnedTensor x = Random({m, k}), poisoned(DType::kF32, {m, n});
  const OwnedWeight w = RandomWeight(DType::kF8E4M3, n, k, Seed(), 1.0f);
  struct Side {
    Device device{Numerics::kFast};
    CudaContext context;
    std::unique_ptr<TileLinear> tiles;
    TensorView x, out;
    WeightView w;
  };
  for (const cuda::TilePlan& plan : plans) {
    SCOPED_TRACE(testing::Message() << plan.tokens << " x " << plan.outputs);
    Side sides[2];
    for (Side& side : sides) {
      side.context = ContextOf(side.device);
      side.tiles = std::make_unique<TileLinear>(side.context, DType::kF8E4M3);
      side.x = side.device.Up(x);
      side.out = side.device.Up(poisoned);
      side.w = side.device.Up(w);
    }
    const auto run = [&](Side& side) {
      return side.tiles->Run({.x = side.x, .weights = {&side.w, 1}, .outs = {&side.out, 1}}, plan);
    };
    ASSERT_TRUE(run(sides[0]).ok());
    const OwnedTensor alone = sides[0].device.Down(sides[0].out);
    std::vector<std::thread> threads;
    for (Side& side : sides) {
      threads.emplace_back([&] {
        ASSERT_TRUE(side.device.backend().BindThread().ok());
        for (int round = 0; round < kRounds; ++round) ASSERT_TRUE(run(side).ok());
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (Side& side : sides) ExpectSame(alone, side.device.Down(side.out), 4);
  }
}

// How many products cuBLASLt has done so far.
int64_t CublasLtCalls(Backend& backend) {
  for (const KernelCalls::Entry& entry : backend.kernel_calls()->Snapshot()) {
    if (std::string_view(entry.kernel) == "fp8_cublaslt") return entry.calls;
  }
  return 0;
}

TEST_F(CudaLinearTest, CublasLtComputesTheSame) {
  Device fast(Numerics::kFast);
  const CudaContext context = ContextOf(fast);
  TileLinear tiles(context, DType::kF8E4M3);
  const struct {
    int64_t m, n, k;
    bool taken = true;
  } sizes[] = {{4, 128, 512},         {64, 576, 512},       {256, 272, 2048},
               {300, 1008, 1536},     {259, 128, 512},  // three rows by our kernel
               {512, 144, 512},       {3, 128, 512, false}, {256, 128, 640, false},
               {256, 136, 512, false}};
  for (const auto& size : sizes) {
    SCOPED_TRACE(testing::Message() << size.m << " x " << size.n << " x " << size.k);
    const OwnedTensor x = Random({size.m, size.k});
    const OwnedTensor rounded = Quantized(x, size.m, size.k);
    const OwnedWeight w = RandomWeight(DType::kF8E4M3, size.n, size.k, Seed(), 1.0f);
    const TensorView device_x = fast.Up(x);
    const WeightView device_w = fast.Up(w);
    for (const bool accumulate : {false, true}) {
      const OwnedTensor wanted =
          accumulate ? Random({size.m, size.n}) : OwnedTensor(DType::kF32, {size.m, size.n});
      const TensorView out = fast.Up(wanted);
      const TileProduct product{
          .x = device_x, .weights = {&device_w, 1}, .outs = {&out, 1}, .accumulate = accumulate};
      ASSERT_EQ(tiles.CublasLtTakes(product), size.taken);
      // No shape of another has spoiled it.
      const auto on_cublas_lt = tiles.OnCublasLt(product);
      ASSERT_TRUE(on_cublas_lt.ok()) << on_cublas_lt.status();
      EXPECT_EQ(*on_cublas_lt, size.taken && size.m > 128 && size.m % 4 == 0);
      if (!size.taken) continue;
      ASSERT_TRUE(
          cpu_->linear().Linear({rounded.view(), w.view, wanted.view(), accumulate}, {}).ok());
      const absl::Status status = tiles.RunOnCublasLt(product);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_LT(RelativeError(wanted, fast.Down(out), wanted.size()), kTensorCoreError);
    }
  }
}

// A recording holds pointers and an algorithm of what ran while it was made; products of other
// shapes and of other activations come in between.
TEST_F(CudaLinearTest, CublasLtInARecordingIsTheSame) {
  Device fast(Numerics::kFast);
  Backend& backend = fast.backend();
  const int64_t n = 1024, k = 2048;
  const WeightView w = fast.Up(RandomWeight(DType::kF8E4M3, n, k, Seed(), 1.0f));
  const TensorView most_x = fast.Up(Random({260, k}));
  const TensorView other_out = fast.Up(OwnedTensor(DType::kF32, {260, n}));
  ASSERT_TRUE(backend.linear().Linear({most_x, w, other_out}, {}).ok());
  for (const int64_t m : {132, 256}) {
    SCOPED_TRACE(m);
    const OwnedTensor poisoned(DType::kF32, {m, n});
    const TensorView x = fast.Up(Random({m, k})), out = fast.Up(poisoned);
    const auto run = [&] { return backend.linear().Linear({x, w, out}, {}); };
    const auto made_of = [&](const OwnedTensor& now, const auto& make) {
      EXPECT_TRUE(backend.CopyToDevice(x.data, now.data<void>(), now.size() * 4, {}).ok());
      EXPECT_TRUE(backend.CopyToDevice(out.data, poisoned.data<void>(), m * n * 4, {}).ok());
      const absl::Status status = make();
      EXPECT_TRUE(status.ok()) << status;
      return fast.Down(out);
    };
    ASSERT_TRUE(run().ok());  // as the engine does before it records
    const int64_t before = CublasLtCalls(backend);
    const auto recording = backend.Record(run, {});
    ASSERT_TRUE(recording.ok()) << recording.status();
    EXPECT_EQ(CublasLtCalls(backend), before);
    for (int replay = 1; replay <= 2; ++replay) {
      const OwnedTensor now = Random({m, k});
      const OwnedTensor got = made_of(now, [&] { return backend.Replay(**recording, {}); });
      EXPECT_EQ(CublasLtCalls(backend), before + 3 * replay - 2);
      ASSERT_TRUE(backend.linear().Linear({most_x, w, other_out}, {}).ok());
      const OwnedTensor wanted = made_of(now, run);
      EXPECT_EQ(CublasLtCalls(backend), before + 3 * replay);
      ASSERT_FALSE(std::isnan(wanted.data<float>()[m * n - 1]));
      ExpectSame(wanted, got, 4);
    }
  }
}

TEST_F(CudaLinearTest, GroupsAndGatesOfBf16AreThoseOfTheRoundedActivations) {
  Device fast(Numerics::kFast);
  const struct {
    int groups;
    int64_t most, n, k;  // rows of a group at most
  } cases[] = {{1, 40, 64, 64}, {9, 30, 320, 256}, {6, 300, 192, 448}, {64, 5, 128, 128}};
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << c.groups << " groups of up to " << c.most);
    std::mt19937 random(Seed());
    std::vector<int32_t> ends = {0};
    std::vector<OwnedWeight> weights, ups;
    std::vector<WeightView> host, host_ups, device, device_ups;
    for (int g = 0; g < c.groups; ++g) {
      const bool empty = c.groups > 1 && random() % 3 == 0;
      ends.push_back(ends.back() + (empty ? 0 : 1 + static_cast<int>(random() % c.most)));
      weights.push_back(RandomWeight(DType::kBF16, c.n, c.k, Seed(), 0.3f));
      ups.push_back(RandomWeight(DType::kBF16, c.n, c.k, Seed(), 0.3f));
    }
    for (int g = 0; g < c.groups; ++g) {
      host.push_back(weights[g].view);
      host_ups.push_back(ups[g].view);
      device.push_back(fast.Up(weights[g]));
      device_ups.push_back(fast.Up(ups[g]));
    }
    const int64_t used = ends.back(), rows = used + 10;
    const OwnedTensor x = Random({rows, c.k}), rounded = Rounded(x);
    const OwnedTensor offsets = MakeI32({c.groups + 1}, ends);
    const OwnedTensor plain(DType::kF32, {rows, c.n}), gated(DType::kF32, {rows, c.n});
    const TensorView out = fast.Up(plain), gated_out = fast.Up(gated);
    const TensorView device_x = fast.Up(x), device_offsets = fast.Up(offsets);
    ASSERT_TRUE(cpu_->linear()
                    .GroupedLinear({rounded.view(), host, offsets.view(), plain.view()}, {})
                    .ok());
    ASSERT_TRUE(
        fast.backend().linear().GroupedLinear({device_x, device, device_offsets, out}, {}).ok());
    ASSERT_TRUE(
        cpu_->linear()
            .GroupedGatedLinear({rounded.view(), host, host_ups, offsets.view(), gated.view()}, {})
            .ok());
    ASSERT_TRUE(
        fast.backend()
            .linear()
            .GroupedGatedLinear({device_x, device, device_ups, device_offsets, gated_out}, {})
            .ok());
    const OwnedTensor got = fast.Down(out), got_gated = fast.Down(gated_out);
    EXPECT_LT(RelativeError(plain, got, used * c.n), 1e-5);
    EXPECT_LT(RelativeError(gated, got_gated, used * c.n), 1e-4);  // its exponential is quick
    for (int64_t i = used * c.n; i < rows * c.n; ++i) {
      EXPECT_TRUE(std::isnan(got.data<float>()[i])) << "a row of no group was written";
    }
  }
}

TEST_F(CudaLinearTest, Fp8LeavesOtherShapesToTheGeneralKernel) {
  Device fast(Numerics::kFast);
  const struct {
    int64_t n, k, offset;
  } sizes[] = {{64, 130, 0}, {63, 128, 0}, {64, 128, 1}, {64, 128, 64}};
  for (const auto& size : sizes) {
    SCOPED_TRACE(testing::Message() << size.n << " x " << size.k << " from " << size.offset);
    const OwnedTensor x = Random({20, size.k});
    const OwnedWeight w = RandomWeight(DType::kF8E4M3, size.n, size.k, Seed(), 1.0f, size.offset);
    const OwnedTensor wanted(DType::kF32, {20, size.n});
    const TensorView out = fast.Up(wanted);
    ASSERT_TRUE(cpu_->linear().Linear({x.view(), w.view, wanted.view()}, {}).ok());
    ASSERT_TRUE(fast.backend().linear().Linear({fast.Up(x), fast.Up(w), out}, {}).ok());
    EXPECT_LT(Difference(wanted, fast.Down(out)), 1e-5);
  }
}

TEST_F(CudaLinearTest, Fp8GroupsOfAnySizeAndAgain) {
  Device fast(Numerics::kFast);
  const struct {
    int groups;
    int64_t most, n, k;  // rows of a group at most
  } cases[] = {{1, 40, 64, 128},
               {9, 30, 320, 256},
               {6, 300, 192, 384},
               {40, 5, 128, 128},
               {200, 2, 64, 256}};
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << c.groups << " groups of up to " << c.most);
    std::mt19937 random(Seed());
    std::vector<int32_t> ends = {0};
    for (int g = 0; g < c.groups; ++g) {
      const bool empty = c.groups > 1 && random() % 3 == 0;
      ends.push_back(ends.back() + (empty ? 0 : 1 + static_cast<int>(random() % c.most)));
    }
    const int64_t used = ends.back(), rows = used + 10;
    std::vector<OwnedWeight> weights, ups;
    std::vector<WeightView> host, host_ups, device, device_ups;
    for (int g = 0; g < c.groups; ++g) {
      weights.push_back(RandomWeight(DType::kF8E4M3, c.n, c.k, Seed(), 1.0f));
      ups.push_back(RandomWeight(DType::kF8E4M3, c.n, c.k, Seed(), 1.0f));
    }
    for (int g = 0; g < c.groups; ++g) {
      host.push_back(weights[g].view);
      host_ups.push_back(ups[g].view);
      device.push_back(fast.Up(weights[g]));
      device_ups.push_back(fast.Up(ups[g]));
    }
    const OwnedTensor x = Random({rows, c.k}), rounded = Quantized(x, rows, c.k);
    const OwnedTensor offsets = MakeI32({c.groups + 1}, ends);
    const TensorView device_x = fast.Up(x), device_offsets = fast.Up(offsets);
    for (const bool gated : {false, true}) {
      const OwnedTensor wanted(DType::kF32, {rows, c.n});
      const TensorView out = fast.Up(wanted);
      OwnedTensor first;
      for (int run = 0; run < 3; ++run) {
        if (gated) {
          ASSERT_TRUE(
              fast.backend()
                  .linear()
                  .GroupedGatedLinear({device_x, device, device_ups, device_offsets, out}, {})
                  .ok());
        } else {
          ASSERT_TRUE(fast.backend()
                          .linear()
                          .GroupedLinear({device_x, device, device_offsets, out}, {})
                          .ok());
        }
        const OwnedTensor got = fast.Down(out);
        if (run == 0) {
          first = got;
          continue;
        }
        for (int64_t i = 0; i < used * c.n; ++i) {
          ASSERT_EQ(first.data<float>()[i], got.data<float>()[i]) << "the same in every run";
        }
      }
      if (gated) {
        ASSERT_TRUE(cpu_->linear()
                        .GroupedGatedLinear(
                            {rounded.view(), host, host_ups, offsets.view(), wanted.view()}, {})
                        .ok());
      } else {
        ASSERT_TRUE(cpu_->linear()
                        .GroupedLinear({rounded.view(), host, offsets.view(), wanted.view()}, {})
                        .ok());
      }
      EXPECT_LT(RelativeError(wanted, first, used * c.n), kTensorCoreError);
      for (int64_t i = used * c.n; i < rows * c.n; ++i) {
        EXPECT_TRUE(std::isnan(first.data<float>()[i])) << "a row of no group was written";
      }
    }
  }
}

}  // namespace
}  // namespace sluice
