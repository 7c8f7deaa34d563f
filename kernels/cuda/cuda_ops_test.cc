// Every op on the GPU against the CPU backend in f32: the CPU defines what is right. Inputs are
// random; sizes are 0, 1, about a tile's edge, and large. Outputs are poisoned first.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/float_convert.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/ops_test_util.h"
#include "kernels/cuda/cuda_backend.h"

namespace sluice {
namespace {

// Fresh for every run, so that many runs see many inputs; SLUICE_TEST_SEED repeats one.
uint32_t BaseSeed() {
  static const uint32_t seed = [] {
    const char* given = std::getenv("SLUICE_TEST_SEED");
    const uint32_t value = given != nullptr ? static_cast<uint32_t>(std::atoll(given))
                                            : static_cast<uint32_t>(absl::GetCurrentTimeNanos());
    std::fprintf(stderr, "SLUICE_TEST_SEED=%u\n", value);
    return value;
  }();
  return seed;
}

// Host tensors and weights as the GPU has them.
class Device {
 public:
  explicit Device(Numerics numerics = Numerics::kExact) {
    auto backend = MakeCudaBackend({.numerics = numerics});
    if (!backend.ok()) {
      std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
      std::abort();
    }
    backend_ = *std::move(backend);
  }
  Backend& backend() { return *backend_; }

  TensorView Up(const OwnedTensor& host) {
    TensorView view = host.view();
    view.data = Copy(view.data, static_cast<size_t>(host.size()) * DTypeBytes(view.dtype));
    return view;
  }
  template <typename T>
  const T* Up(const std::vector<T>& host) {
    return static_cast<const T*>(Copy(host.data(), host.size() * sizeof(T)));
  }
  WeightView Up(const OwnedWeight& host) {
    WeightView view = host.view;
    const char* data = static_cast<const char*>(Copy(host.bytes.data(), host.bytes.size()));
    view.data = data + (static_cast<const uint8_t*>(host.view.data) - host.bytes.data());
    if (!host.scales.empty()) view.scales = Up(host.scales);
    return view;
  }
  OwnedTensor Down(const TensorView& view) {
    OwnedTensor host(view.dtype, {view.dims[0], view.dims[1], view.dims[2]});
    Require(backend_->CopyToHost(host.data<void>(), view.data,
                                 static_cast<size_t>(host.size()) * DTypeBytes(view.dtype), {}));
    Require(backend_->Sync({}));
    return host;
  }

 private:
  static void Require(const absl::Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    std::abort();
  }
  void* Copy(const void* host, size_t bytes) {
    auto buffer = backend_->Allocate(bytes, "test tensor");
    Require(buffer.status());
    if (bytes > 0) Require(backend_->CopyToDevice(buffer->memory.get(), host, bytes, {}));
    Require(backend_->Sync({}));
    buffers_.push_back(*buffer);
    return buffer->memory.get();
  }

  std::unique_ptr<Backend> backend_;
  std::vector<DeviceBuffer> buffers_;  // before the backend goes
};

class CudaOpsTest : public testing::Test {
 protected:
  CudaOpsTest() : cpu_(*MakeCpuBackend({.threads = 0})) {}
  uint32_t Seed() { return BaseSeed() + ++seeds_; }
  OwnedTensor Random(std::initializer_list<int64_t> shape, float stddev = 1.0f) {
    return RandomF32(shape, Seed(), stddev);
  }
  OwnedTensor Integers(std::initializer_list<int64_t> shape, int32_t least, int32_t most) {
    OwnedTensor tensor(DType::kI32, shape);
    std::mt19937 random(Seed());
    std::uniform_int_distribution<int32_t> uniform(least, most);
    for (int64_t i = 0; i < tensor.size(); ++i) tensor.data<int32_t>()[i] = uniform(random);
    return tensor;
  }

  std::unique_ptr<Backend> cpu_;
  Device gpu_;
  uint32_t seeds_ = 0;
};

// Largest difference, relative to the largest reference value.
double Difference(const OwnedTensor& wanted, const OwnedTensor& got) {
  double largest = 1e-30, difference = 0;
  for (int64_t i = 0; i < wanted.size(); ++i) {
    const double a = wanted.data<float>()[i], b = got.data<float>()[i];
    if (std::isnan(b) != std::isnan(a)) return std::numeric_limits<double>::infinity();
    if (std::isnan(a)) continue;
    largest = std::max(largest, std::abs(a));
    difference = std::max(difference, std::abs(a - b));
  }
  return difference / largest;
}

void ExpectSame(const OwnedTensor& wanted, const OwnedTensor& got, int64_t element) {
  for (int64_t i = 0; i < wanted.size() * element; ++i) {
    ASSERT_EQ(wanted.data<uint8_t>()[i], got.data<uint8_t>()[i]) << "byte " << i;
  }
}

constexpr DType kWeightTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3};

TEST_F(CudaOpsTest, LinearOfAllSizesAndTypes) {
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

TEST_F(CudaOpsTest, GroupedLinearTouchesItsRowsAlone) {
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

// x as the quantised product sees it: e4m3, one scale per row and 128 columns.
OwnedTensor Quantized(const OwnedTensor& x, int64_t rows, int64_t cols) {
  OwnedTensor out(DType::kF32, {rows, cols});
  for (int64_t block = 0; block < rows * cols; block += 128) {
    const float* from = x.data<float>() + block;
    float largest = 1e-4f;
    for (int i = 0; i < 128; ++i) largest = std::max(largest, std::abs(from[i]));
    const float scale = largest / 448.0f;
    for (int i = 0; i < 128; ++i) {
      out.data<float>()[block + i] = F8E4M3ToF32(F32ToF8E4M3(from[i] / scale)) * scale;
    }
  }
  return out;
}

// |wanted - got| / |wanted| over the first `count` elements.
double RelativeError(const OwnedTensor& wanted, const OwnedTensor& got, int64_t count) {
  double norm = 1e-60, error = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double a = wanted.data<float>()[i], b = got.data<float>()[i];
    norm += a * a;
    error += (a - b) * (a - b);
  }
  return std::sqrt(error / norm);
}

// The tensor cores keep about 14 bits of a sum over 32 products; e4m3 keeps 4 of an activation.
constexpr double kBf16Error = 1e-2;  // queries, probabilities and outputs are rounded to bf16
constexpr double kTensorCoreError = 1e-3, kQuantizationError = 1e-2;

TEST_F(CudaOpsTest, Fp8ProductsAreThoseOfTheQuantizedActivations) {
  Device fast(Numerics::kFast);
  const struct {
    int64_t m, n, k;
  } sizes[] = {{0, 64, 128},   {1, 4, 128},      {1, 576, 1536},  {15, 64, 256},
               {16, 128, 384}, {17, 132, 128},   {33, 200, 1536}, {64, 260, 256},
               {65, 64, 2048}, {128, 1000, 128}, {129, 260, 512}, {300, 576, 640}};
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

TEST_F(CudaOpsTest, Bf16ProductsAreThoseOfTheRoundedActivations) {
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

TEST_F(CudaOpsTest, Fp8LeavesOtherShapesToTheGeneralKernel) {
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

TEST_F(CudaOpsTest, Fp8GroupsOfAnySizeAndAgain) {
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

TEST_F(CudaOpsTest, EmbeddingsNormsAndRows) {
  for (const DType dtype : kWeightTypes) {
    const OwnedWeight table = RandomWeight(dtype, 300, 513, Seed(), 1.0f);
    const OwnedTensor ids = MakeI32({5}, {299, 0, -3, 17, -1});
    const OwnedTensor by_slot = MakeI32({3}, {42, 7, 299});
    const OwnedTensor out(DType::kF32, {5, 513}), resolved(DType::kI32, {5});
    const TensorView device_out = gpu_.Up(out), device_resolved = gpu_.Up(resolved);
    ASSERT_TRUE(
        cpu_->elementwise()
            .Embed({ids.view(), by_slot.view(), table.view, out.view(), resolved.view()}, {})
            .ok());
    ASSERT_TRUE(
        gpu_.backend()
            .elementwise()
            .Embed({gpu_.Up(ids), gpu_.Up(by_slot), gpu_.Up(table), device_out, device_resolved},
                   {})
            .ok());
    ExpectSame(out, gpu_.Down(device_out), 4);
    ExpectSame(resolved, gpu_.Down(device_resolved), 4);
  }
  for (const int64_t width : {1, 31, 256, 257, 7168}) {
    for (const int64_t rows : {0, 1, 33}) {
      const OwnedTensor x = Random({rows, width}), weight = Random({width});
      const OwnedTensor out(DType::kF32, {rows, width});
      const TensorView device_out = gpu_.Up(out);
      ASSERT_TRUE(
          cpu_->elementwise().RmsNorm({x.view(), weight.view(), 1e-6f, out.view()}, {}).ok());
      ASSERT_TRUE(gpu_.backend()
                      .elementwise()
                      .RmsNorm({gpu_.Up(x), gpu_.Up(weight), 1e-6f, device_out}, {})
                      .ok());
      EXPECT_LT(Difference(out, gpu_.Down(device_out)), 1e-5) << rows << " x " << width;
    }
  }
  const OwnedTensor x = Random({9, 300}), rows = MakeI32({4}, {8, 0, 3, 3});
  const OwnedTensor out(DType::kF32, {4, 300});
  const TensorView device_out = gpu_.Up(out);
  ASSERT_TRUE(cpu_->elementwise().GatherRows({x.view(), rows.view(), out.view()}, {}).ok());
  ASSERT_TRUE(
      gpu_.backend().elementwise().GatherRows({gpu_.Up(x), gpu_.Up(rows), device_out}, {}).ok());
  ExpectSame(out, gpu_.Down(device_out), 4);
}

TEST_F(CudaOpsTest, LatentAttention) {
  const struct {
    const char* name;
    MlaDims dims;
  } models[] = {
      {"tiny", {8, 32, 32, 32, 128}}, {"odd", {3, 5, 2, 7, 33}}, {"v3", {128, 128, 64, 128, 512}}};
  const int64_t num_pages = 12, pages_max = 5;
  const std::vector<int32_t> lengths = {1, 63, 64, 65, 300};  // so far, this token included
  for (const auto& model : models) {
    const MlaDims& dims = model.dims;
    for (const DType cache_dtype : {DType::kF32, DType::kBF16}) {
      for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
        SCOPED_TRACE(testing::Message() << model.name << " cache " << DTypeName(cache_dtype)
                                        << " weights " << DTypeName(dtype));
        // A cache filled by the op itself, one row after the other.
        const int64_t tokens = num_pages * kPageTokens;
        const OwnedTensor kv_a = Random({tokens, dims.kv_dim()}),
                          norm = Random({dims.kv_lora_rank});
        const OwnedTensor angles = Random({512, dims.rope_dim});
        const OwnedTensor positions = Integers({tokens}, 0, 511);
        OwnedTensor rows = Integers({tokens}, 0, 0);
        for (int64_t i = 0; i < tokens; ++i)
          rows.data<int32_t>()[i] = i == 5 ? -1 : static_cast<int32_t>(i);
        const OwnedTensor q = Random({tokens, dims.num_heads * dims.q_dim()}, 0.3f);
        const OwnedTensor cache(cache_dtype, {num_pages, kPageTokens, dims.kv_dim()});
        std::fill_n(cache.data<uint8_t>(), cache.size() * DTypeBytes(cache_dtype), 0);
        const TensorView device_q = gpu_.Up(q), device_cache = gpu_.Up(cache);
        ASSERT_TRUE(cpu_->attention()
                        .MlaCacheWrite({dims, q.view(), kv_a.view(), norm.view(), 1e-6f,
                                        angles.view(), positions.view(), rows.view(), cache.view()},
                                       {})
                        .ok());
        ASSERT_TRUE(
            gpu_.backend()
                .attention()
                .MlaCacheWrite({dims, device_q, gpu_.Up(kv_a), gpu_.Up(norm), 1e-6f,
                                gpu_.Up(angles), gpu_.Up(positions), gpu_.Up(rows), device_cache},
                               {})
                .ok());
        EXPECT_LT(Difference(q, gpu_.Down(device_q)), 1e-6);
        const OwnedTensor device_rows = gpu_.Down(device_cache);
        if (cache_dtype == DType::kF32) {
          EXPECT_LT(Difference(cache, device_rows), 1e-6);
        } else {
          for (int64_t i = 0; i < cache.size(); ++i) {
            EXPECT_NEAR(Bf16ToF32(cache.data<uint16_t>()[i]),
                        Bf16ToF32(device_rows.data<uint16_t>()[i]), 0.05);
          }
        }
        const TensorView same_cache = gpu_.Up(cache);  // the very same rows for both from here on

        const int64_t count = static_cast<int64_t>(lengths.size());
        const OwnedWeight kv_b = RandomWeight(dtype, dims.num_heads * (dims.nope_dim + dims.v_dim),
                                              dims.kv_lora_rank, Seed(), 0.1f);
        OwnedTensor table = Integers({count, pages_max}, 0, static_cast<int32_t>(num_pages) - 1);
        const OwnedTensor seqs = MakeI32({count}, {2, 0, 1, 4, 3});
        OwnedTensor at = MakeI32({count}, lengths);
        for (int64_t i = 0; i < count; ++i) --at.data<int32_t>()[i];
        const OwnedTensor queries = Random({count, dims.num_heads * dims.q_dim()}, 0.3f);
        const OwnedTensor out(DType::kF32, {count, dims.num_heads * dims.v_dim});
        const TensorView device_out = gpu_.Up(out), device_table = gpu_.Up(table);
        const WeightView device_kv_b = gpu_.Up(kv_b);
        ASSERT_TRUE(cpu_->attention()
                        .MlaAbsorbed({dims, queries.view(), kv_b.view, cache.view(), table.view(),
                                      seqs.view(), at.view(), 0.2f, out.view()},
                                     {})
                        .ok());
        ASSERT_TRUE(gpu_.backend()
                        .attention()
                        .MlaAbsorbed({dims, gpu_.Up(queries), device_kv_b, same_cache, device_table,
                                      gpu_.Up(seqs), gpu_.Up(at), 0.2f, device_out},
                                     {})
                        .ok());
        EXPECT_LT(Difference(out, gpu_.Down(device_out)), 2e-5);

        const int64_t prompt = 70, first = 100;
        const OwnedTensor prompt_q = Random({prompt, dims.num_heads * dims.q_dim()}, 0.3f);
        const OwnedTensor prompt_out(DType::kF32, {prompt, dims.num_heads * dims.v_dim});
        const TensorView device_prompt_out = gpu_.Up(prompt_out);
        TensorView pages = table.view().Slice(3, 1), device_pages = device_table.Slice(3, 1);
        pages = TensorView(pages.data, DType::kI32, {pages_max});
        device_pages = TensorView(device_pages.data, DType::kI32, {pages_max});
        ASSERT_TRUE(cpu_->attention()
                        .MlaPrompt({dims, prompt_q.view(), kv_b.view, cache.view(), pages, first,
                                    0.2f, prompt_out.view()},
                                   {})
                        .ok());
        ASSERT_TRUE(gpu_.backend()
                        .attention()
                        .MlaPrompt({dims, gpu_.Up(prompt_q), device_kv_b, same_cache, device_pages,
                                    first, 0.2f, device_prompt_out},
                                   {})
                        .ok());
        EXPECT_LT(Difference(prompt_out, gpu_.Down(device_prompt_out)), 5e-5);
      }
    }
  }
}

// In bf16 on the tensor cores: the bars of FlashMLA's own test for the difference of directions.
TEST_F(CudaOpsTest, LatentAttentionOfV3OnTheTensorCores) {
  Device fast(Numerics::kFast);
  const struct {
    int heads;
    std::vector<int32_t> lengths;  // so far, this token included
  } cases[] = {{64, {1}}, {128, {64, 1, 63}}, {64, {65, 128, 129, 700}}, {128, {191, 192, 193}}};
  for (const auto& c : cases) {
    for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      const MlaDims dims = {c.heads, 128, 64, 128, 512};
      const int64_t count = static_cast<int64_t>(c.lengths.size()), pages_max = 12;
      const int64_t num_pages = count * pages_max;
      SCOPED_TRACE(testing::Message()
                   << c.heads << " heads, " << count << " sequences, weights " << DTypeName(dtype));
      OwnedTensor table = Integers({count, pages_max}, 0, 0), at = MakeI32({count}, c.lengths);
      std::vector<int32_t> order(static_cast<size_t>(num_pages));
      std::iota(order.begin(), order.end(), 0);
      std::mt19937 random(Seed());
      std::shuffle(order.begin(), order.end(), random);
      std::copy(order.begin(), order.end(), table.data<int32_t>());
      OwnedTensor cache(DType::kBF16, {num_pages, kPageTokens, dims.kv_dim()});
      std::normal_distribution<float> normal;
      for (int64_t i = 0; i < cache.size(); ++i) {
        cache.data<uint16_t>()[i] = F32ToBf16(normal(random));
      }
      std::vector<int32_t> seqs(static_cast<size_t>(count));
      for (int64_t t = 0; t < count; ++t) {
        const int64_t seq = count - 1 - t;
        seqs[static_cast<size_t>(t)] = static_cast<int32_t>(seq);
        const int64_t length = at.data<int32_t>()[t]--;
        // Behind a sequence's end its pages hold whatever they like.
        for (int64_t p = length; p < pages_max * kPageTokens; ++p) {
          const int64_t page = table.data<int32_t>()[seq * pages_max + p / kPageTokens];
          uint16_t* row =
              cache.data<uint16_t>() + (page * kPageTokens + p % kPageTokens) * dims.kv_dim();
          std::fill_n(row, dims.kv_dim(), uint16_t{0x7fc0});  // NaN
        }
      }
      const OwnedTensor seq_of_token = MakeI32({count}, seqs);
      const OwnedTensor q = Random({count, dims.num_heads * dims.q_dim()}, 0.5f);
      const OwnedWeight kv_b =
          RandomWeight(dtype, dims.num_heads * (dims.nope_dim + dims.v_dim), 512, Seed(), 0.04f);
      const OwnedTensor wanted(DType::kF32, {count, dims.num_heads * dims.v_dim});
      const TensorView out = fast.Up(wanted);
      ASSERT_TRUE(cpu_->attention()
                      .MlaAbsorbed({dims, q.view(), kv_b.view, cache.view(), table.view(),
                                    seq_of_token.view(), at.view(), 0.135f, wanted.view()},
                                   {})
                      .ok());
      const TensorView device_cache = fast.Up(cache), device_table = fast.Up(table);
      const WeightView device_kv_b = fast.Up(kv_b);
      ASSERT_TRUE(fast.backend()
                      .attention()
                      .MlaAbsorbed({dims, fast.Up(q), device_kv_b, device_cache, device_table,
                                    fast.Up(seq_of_token), fast.Up(at), 0.135f, out},
                                   {})
                      .ok());
      EXPECT_LT(RelativeError(wanted, fast.Down(out), wanted.size()), kBf16Error);

      const int64_t prompt = 40, first = 24;  // of the token with the most behind it
      const int64_t longest =
          std::max_element(c.lengths.begin(), c.lengths.end()) - c.lengths.begin();
      if (c.lengths[static_cast<size_t>(longest)] < first + prompt) continue;
      const OwnedTensor prompt_q = Random({prompt, dims.num_heads * dims.q_dim()}, 0.5f);
      const OwnedTensor prompt_wanted(DType::kF32, {prompt, dims.num_heads * dims.v_dim});
      const TensorView prompt_out = fast.Up(prompt_wanted);
      const auto row = [&](const TensorView& of) {
        const TensorView slice = of.Slice(seqs[static_cast<size_t>(longest)], 1);
        return TensorView(slice.data, DType::kI32, {pages_max});
      };
      ASSERT_TRUE(cpu_->attention()
                      .MlaPrompt({dims, prompt_q.view(), kv_b.view, cache.view(), row(table.view()),
                                  first, 0.135f, prompt_wanted.view()},
                                 {})
                      .ok());
      ASSERT_TRUE(fast.backend()
                      .attention()
                      .MlaPrompt({dims, fast.Up(prompt_q), device_kv_b, device_cache,
                                  row(device_table), first, 0.135f, prompt_out},
                                 {})
                      .ok());
      EXPECT_LT(RelativeError(prompt_wanted, fast.Down(prompt_out), prompt_wanted.size()),
                kBf16Error);
    }
  }
}

TEST_F(CudaOpsTest, GateIsTheCpusBitForBit) {
  const struct {
    const char* name;
    int64_t experts, top_k;
    GateScoring scoring;
    GroupScore group_score;
    int groups, kept;
    bool bias, normalize;
  } cases[] = {{"v3", 256, 8, GateScoring::kSigmoid, GroupScore::kTop2Sum, 8, 4, true, true},
               {"tiny", 32, 4, GateScoring::kSigmoid, GroupScore::kTop2Sum, 8, 4, true, true},
               {"v2-lite", 64, 6, GateScoring::kSoftmax, GroupScore::kNone, 1, 1, false, false},
               {"v2", 160, 6, GateScoring::kSoftmax, GroupScore::kMax, 8, 3, false, false},
               {"all", 7, 7, GateScoring::kSigmoid, GroupScore::kNone, 1, 1, true, true},
               {"kimi", 384, 8, GateScoring::kSigmoid, GroupScore::kTop2Sum, 1, 1, true, true}};
  for (const auto& c : cases) {
    for (const int64_t tokens : {0, 1, 200}) {
      SCOPED_TRACE(testing::Message() << c.name << ", " << tokens << " tokens");
      OwnedTensor logits = Random({tokens, c.experts}, 2.0f);
      if (tokens > 100) {  // ties, and what is no number
        for (int64_t e = 0; e < c.experts; ++e)
          logits.data<float>()[7 * c.experts + e] = static_cast<float>(e % 3);
        logits.data<float>()[9 * c.experts + 1] = std::numeric_limits<float>::quiet_NaN();
        for (int64_t e = 0; e < c.experts; ++e) logits.data<float>()[11 * c.experts + e] = 1.0f;
      }
      const OwnedTensor bias = Random({c.experts}, 0.1f);
      const OwnedTensor ids(DType::kI32, {tokens, c.top_k}),
          weights(DType::kF32, {tokens, c.top_k});
      OwnedTensor load(DType::kI64, {c.experts});
      std::fill_n(load.data<int64_t>(), c.experts, 3);
      const TensorView device_ids = gpu_.Up(ids), device_weights = gpu_.Up(weights),
                       device_load = gpu_.Up(load);
      GateParams params{.scoring = c.scoring,
                        .group_score = c.group_score,
                        .num_groups = c.groups,
                        .topk_groups = c.kept,
                        .normalize = c.normalize,
                        .scaling = 2.5f};
      params.logits = logits.view();
      if (c.bias) params.bias = bias.view();
      params.expert_ids = ids.view();
      params.expert_weights = weights.view();
      params.expert_load = load.view();
      ASSERT_TRUE(cpu_->moe().Gate(params, {}).ok());
      params.logits = gpu_.Up(logits);
      if (c.bias) params.bias = gpu_.Up(bias);
      params.expert_ids = device_ids;
      params.expert_weights = device_weights;
      params.expert_load = device_load;
      ASSERT_TRUE(gpu_.backend().moe().Gate(params, {}).ok());
      ExpectSame(ids, gpu_.Down(device_ids), 4);
      EXPECT_EQ(Difference(weights, gpu_.Down(device_weights)), 0);
      ExpectSame(load, gpu_.Down(device_load), 8);
    }
  }
}

TEST_F(CudaOpsTest, PermuteAndCombine) {
  for (const int64_t tokens : {0, 1, 33, 500}) {
    const int64_t experts = 40, slots = 30, top_k = 5, hidden = 300;
    SCOPED_TRACE(tokens);
    const OwnedTensor x = Random({tokens, hidden});
    OwnedTensor slot_of_expert = Integers({experts}, -1, -1), ids = Integers({tokens, top_k}, 0, 0);
    for (int32_t e = 0; e < slots; ++e) slot_of_expert.data<int32_t>()[(e * 7) % experts] = e;
    std::mt19937 random(Seed());
    for (int64_t t = 0; t < tokens; ++t) {
      const int32_t first = static_cast<int32_t>(random() % experts);
      for (int32_t k = 0; k < top_k; ++k)
        ids.data<int32_t>()[t * top_k + k] = (first + 3 * k) % experts;
    }
    const OwnedTensor offsets(DType::kI32, {slots + 1}), pairs(DType::kI32, {tokens, top_k});
    const OwnedTensor rows(DType::kF32, {tokens * top_k, hidden});
    const TensorView device_offsets = gpu_.Up(offsets), device_pairs = gpu_.Up(pairs),
                     device_rows = gpu_.Up(rows);
    ASSERT_TRUE(cpu_->moe()
                    .Permute({x.view(), ids.view(), slot_of_expert.view(), offsets.view(),
                              pairs.view(), rows.view()},
                             {})
                    .ok());
    ASSERT_TRUE(gpu_.backend()
                    .moe()
                    .Permute({gpu_.Up(x), gpu_.Up(ids), gpu_.Up(slot_of_expert), device_offsets,
                              device_pairs, device_rows},
                             {})
                    .ok());
    ExpectSame(offsets, gpu_.Down(device_offsets), 4);
    ExpectSame(pairs, gpu_.Down(device_pairs), 4);
    ExpectSame(rows, gpu_.Down(device_rows), 4);  // rows beyond the last are untouched by both

    const OwnedTensor results = Random({tokens * top_k, hidden}), weights = Random({tokens, top_k}),
                      shared = Random({tokens, hidden});
    for (const bool with_shared : {false, true}) {
      const OwnedTensor out = Random({tokens, hidden});
      const TensorView device_out = gpu_.Up(out);
      MoeCombineParams params{results.view(), pairs.view(), weights.view(),
                              with_shared ? shared.view() : TensorView(), out.view()};
      ASSERT_TRUE(cpu_->moe().Combine(params, {}).ok());
      params = {gpu_.Up(results), device_pairs, gpu_.Up(weights),
                with_shared ? gpu_.Up(shared) : TensorView(), device_out};
      ASSERT_TRUE(gpu_.backend().moe().Combine(params, {}).ok());
      EXPECT_LT(Difference(out, gpu_.Down(device_out)), 1e-6);
    }
  }
}

TEST_F(CudaOpsTest, SamplingGivesTheCpusTokens) {
  for (const int64_t vocab : {1, 100, 1024, 129280}) {
    const int64_t count = 64, slots = 64;
    OwnedTensor logits = Random({count, vocab}, 3.0f);
    float* raw = logits.data<float>();
    // Few distinct values, so that ties meet every cut; then what is no number.
    for (int64_t row = 32; row < 44; ++row) {
      for (int64_t i = 0; i < vocab; ++i) raw[row * vocab + i] = std::round(raw[row * vocab + i]);
    }
    raw[44 * vocab] = std::numeric_limits<float>::quiet_NaN();
    raw[45 * vocab + vocab / 2] = std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < vocab; ++i)
      raw[46 * vocab + i] = -std::numeric_limits<float>::infinity();

    std::mt19937 random(Seed());
    const auto pick = [&](std::initializer_list<float> values) {
      return values.begin()[random() % values.size()];
    };
    std::vector<SamplingRow> sampling(count);
    OwnedTensor bias_ids = Integers({128}, 0, static_cast<int32_t>(vocab) - 1),
                banned = Integers({128}, 0, static_cast<int32_t>(vocab) - 1);
    OwnedTensor bias_values = Random({128}, 5.0f);
    for (int64_t row = 0; row < count; ++row) {
      SamplingRow& s = sampling[row];
      s.temperature = pick({0.0f, 0.3f, 1.0f, 1.0f, 2.0f});
      s.top_p = pick({1.0f, 0.95f, 0.5f, 0.01f});
      s.min_p = pick({0.0f, 0.0f, 0.1f, 0.9f});
      s.top_k = static_cast<int32_t>(pick({0, 0, 1, 50, 200000}));
      s.repetition_penalty = pick({1.0f, 1.3f});
      s.presence_penalty = pick({0.0f, 0.5f});
      s.frequency_penalty = pick({0.0f, 0.25f});
      s.seed = random();
      s.position = static_cast<int32_t>(row);
      s.slot = static_cast<int32_t>((row * 5 + 3) % slots);
      s.bias_begin = static_cast<int32_t>(row);
      s.bias_end = s.bias_begin + static_cast<int32_t>(row % 3);
      s.banned_begin = static_cast<int32_t>(row);
      s.banned_end = s.banned_begin + static_cast<int32_t>(row % 2);
      s.num_logprobs = static_cast<int32_t>(
          std::min<int64_t>(static_cast<int64_t>(pick({-1, 0, 1, 20})), vocab));
      s.counts_tokens =
          s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f;
    }
    OwnedTensor mask(DType::kU8, {slots, vocab}), counts = Integers({slots, vocab}, -8, 2);
    for (int64_t i = 0; i < mask.size(); ++i) {
      mask.data<uint8_t>()[i] = random() % 4 == 0;
      counts.data<int32_t>()[i] = std::max(0, counts.data<int32_t>()[i]);
    }
    const OwnedTensor tokens(DType::kI32, {count}), by_slot(DType::kI32, {slots});
    OwnedTensor logprobs(DType::kF32, {count}), top_ids(DType::kI32, {count, 20}),
        top(DType::kF32, {count, 20}), odd(DType::kU8, {count});
    const TensorView device_logits = gpu_.Up(logits);
    SampleParams device{device_logits,        gpu_.Up(sampling), gpu_.Up(bias_ids),
                        gpu_.Up(bias_values), gpu_.Up(banned),   gpu_.Up(mask),
                        gpu_.Up(counts),      gpu_.Up(tokens),   gpu_.Up(by_slot),
                        gpu_.Up(logprobs),    gpu_.Up(top_ids),  gpu_.Up(top),
                        gpu_.Up(odd)};
    const SampleParams host{logits.view(),  sampling.data(), bias_ids.view(), bias_values.view(),
                            banned.view(),  mask.view(),     counts.view(),   tokens.view(),
                            by_slot.view(), logprobs.view(), top_ids.view(),  top.view(),
                            odd.view()};
    ASSERT_TRUE(cpu_->sampling().Sample(host, {}).ok());
    ASSERT_TRUE(gpu_.backend().sampling().Sample(device, {}).ok());
    const OwnedTensor got = gpu_.Down(device.tokens);
    for (int64_t row = 0; row < count; ++row) {
      const SamplingRow& s = sampling[row];
      EXPECT_EQ(tokens.data<int32_t>()[row], got.data<int32_t>()[row])
          << "vocab " << vocab << " row " << row << " temperature " << s.temperature << " top_p "
          << s.top_p << " top_k " << s.top_k << " min_p " << s.min_p;
    }
    ExpectSame(by_slot, gpu_.Down(device.tokens_by_slot), 4);
    ExpectSame(counts, gpu_.Down(device.output_counts), 4);
    ExpectSame(odd, gpu_.Down(device.not_finite), 1);
    ExpectSame(top_ids, gpu_.Down(device.top_ids), 4);
    ExpectSame(top, gpu_.Down(device.top_logprobs), 4);
    ExpectSame(logprobs, gpu_.Down(device.logprobs), 4);
  }
}

TEST_F(CudaOpsTest, ErrorsNameWhatIsWrong) {
  const OwnedTensor x = Random({2, 16}), out = Random({2, 9});
  const OwnedWeight w = RandomWeight(DType::kBF16, 8, 16, Seed(), 1.0f);
  const absl::Status status =
      gpu_.backend().linear().Linear({gpu_.Up(x), gpu_.Up(w), gpu_.Up(out)}, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("out"));
  const auto huge = gpu_.backend().Allocate(size_t{1} << 50, "KV cache of layer 7");
  EXPECT_EQ(huge.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(huge.status().message()), testing::HasSubstr("KV cache of layer 7"));
  EXPECT_TRUE(gpu_.backend().Sync({}).ok());  // neither error stays
}

}  // namespace
}  // namespace sluice
