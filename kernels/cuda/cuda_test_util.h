// What the conformance tests of CUDA ops share: seeds, host tensors as the GPU has them, and how
// results are compared. The CPU backend in f32 defines what is right.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
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

// Row by row, so that one wrong tile of many shows: |wanted - got| / |wanted| of each row, and
// differences in units of the row's root mean square. What fails names the first row of all that
// differ too much, its column that does most, and the last such row.
inline void ExpectRowsClose(const OwnedTensor& wanted, const OwnedTensor& got, int64_t rows,
                            double row_error, double element_error) {
  const int64_t columns = wanted.view().row_elements();
  int64_t first = -1, last = -1, bad = 0, column = 0;
  double relative = 0, worst = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const float* const a = wanted.data<float>() + r * columns;
    const float* const b = got.data<float>() + r * columns;
    double norm = 1e-60, error = 0, largest = 0;
    int64_t at = 0;
    for (int64_t c = 0; c < columns; ++c) {
      const double difference = std::abs(double{a[c]} - double{b[c]});
      norm += double{a[c]} * a[c];
      error += difference * difference;
      if (difference <= largest) continue;  // not what is no number
      largest = difference;
      at = c;
    }
    const double row = std::sqrt(error / norm);
    const double element = largest / std::sqrt(norm / static_cast<double>(columns));
    if (row < row_error && element < element_error) continue;
    ++bad;
    last = r;
    if (first >= 0) continue;
    first = r;
    relative = row;
    worst = element;
    column = at;
  }
  if (bad == 0) return;
  ADD_FAILURE() << bad << " of " << rows << " rows differ, from " << first << " to " << last
                << "; row " << first << " by " << relative << " (allowed " << row_error
                << "), most in column " << column << " of " << columns << ", by " << worst
                << " of the row's root mean square (allowed " << element_error << "): wanted "
                << wanted.data<float>()[first * columns + column] << ", got "
                << got.data<float>()[first * columns + column];
}

// That the first `rows` rows were written, every element, and none behind them: those are still
// NaN, as new tensors are.
inline void ExpectOnlyWritten(const OwnedTensor& out, int64_t rows) {
  const int64_t columns = out.view().row_elements();
  for (int64_t i = 0; i < out.size(); ++i) {
    if (std::isnan(out.data<float>()[i]) == (i >= rows * columns)) continue;
    ADD_FAILURE() << "row " << i / columns << " of " << rows << ", column " << i % columns << " of "
                  << columns << (i < rows * columns ? " is no number" : " was written");
    return;
  }
}

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

// For ExpectRowsClose: a row's error as above, with room for rows that are unlucky; and an
// element's.
inline constexpr double kTensorCoreRowError = 2e-3, kTensorCoreElementError = 0.05;

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

// Some rows of a matrix.
inline OwnedTensor Some(const OwnedTensor& all, const std::vector<int64_t>& rows) {
  const int64_t columns = all.view().row_elements();
  OwnedTensor some(DType::kF32, {static_cast<int64_t>(rows.size()), columns});
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(all.view().Row<float>(rows[i]), columns,
                some.view().Row<float>(static_cast<int64_t>(i)));
  }
  return some;
}

// Large matrices whose rows are pieces of one sequence of random numbers, each from a place of its
// own: fast to make.
class CutNumbers {
 public:
  explicit CutNumbers(uint32_t seed) : random_(seed), numbers_(kNumbers), codes_(kNumbers) {
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < kNumbers; ++i) {
      numbers_[i] = normal(random_);
      codes_[i] = F32ToF8E4M3(32 * normal(random_));
    }
  }

  // Fills the first `rows`.
  void Fill(const OwnedTensor& to, int64_t rows) {
    const int64_t columns = to.view().row_elements();
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(numbers_.data() + Place(columns), columns, to.data<float>() + r * columns);
    }
  }

  OwnedWeight Weight(int64_t rows, int64_t columns) {
    OwnedWeight weight;
    weight.bytes.resize(static_cast<size_t>(rows * columns));
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(codes_.data() + Place(columns), columns, weight.bytes.data() + r * columns);
    }
    const int64_t scale_columns = (columns + 127) / 128;
    weight.scales.resize(static_cast<size_t>((rows + 127) / 128 * scale_columns));
    std::uniform_real_distribution<float> uniform(0.5f / 32, 2.0f / 32);
    for (float& scale : weight.scales) scale = uniform(random_);
    weight.view = {.data = weight.bytes.data(),
                   .dtype = DType::kF8E4M3,
                   .rows = rows,
                   .cols = columns,
                   .row_stride = columns,
                   .scales = weight.scales.data(),
                   .scale_row_stride = scale_columns};
    return weight;
  }

 private:
  static constexpr size_t kNumbers = size_t{1} << 20;

  size_t Place(int64_t columns) { return random_() % (kNumbers - static_cast<size_t>(columns)); }

  std::mt19937 random_;
  std::vector<float> numbers_;
  std::vector<uint8_t> codes_;
};

}  // namespace sluice
