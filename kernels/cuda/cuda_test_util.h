// What the conformance tests of CUDA ops share: seeds, host tensors as the GPU has them, and how
// results are compared. The CPU backend in f32 defines what is right.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "kernels/base/float_convert.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/ops_test_util.h"
#include "kernels/cuda/cuda_backend.h"

namespace sluice {

// Fresh for every run, so that many runs see many inputs; SLUICE_TEST_SEED repeats one.
inline uint32_t BaseSeed() {
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
inline double Difference(const OwnedTensor& wanted, const OwnedTensor& got) {
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

inline void ExpectSame(const OwnedTensor& wanted, const OwnedTensor& got, int64_t element) {
  for (int64_t i = 0; i < wanted.size() * element; ++i) {
    ASSERT_EQ(wanted.data<uint8_t>()[i], got.data<uint8_t>()[i]) << "byte " << i;
  }
}

inline constexpr DType kWeightTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3};

// |wanted - got| / |wanted| over the first `count` elements.
inline double RelativeError(const OwnedTensor& wanted, const OwnedTensor& got, int64_t count) {
  double norm = 1e-60, error = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double a = wanted.data<float>()[i], b = got.data<float>()[i];
    norm += a * a;
    error += (a - b) * (a - b);
  }
  return std::sqrt(error / norm);
}

// The tensor cores keep about 14 bits of a sum over 32 products in FP8.
inline constexpr double kTensorCoreError = 1e-3;

// x as the quantised product sees it: e4m3, one scale per row and 128 columns.
inline OwnedTensor Quantized(const OwnedTensor& x, int64_t rows, int64_t cols) {
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

}  // namespace sluice
