// What the tests of CPU ops share: tensors that own their memory, poisoned outputs, and a backend
// to run on for every instruction set and thread count.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/float_convert.h"
#include "kernels/base/tensor_view.h"
#include "kernels/cpu/cpu_context.h"

namespace sluice {

// A tensor with its memory, aligned to cache lines, between guard bytes. All bytes start as
// 0xff: NaN as a float, -1 as an integer.
class OwnedTensor {
 public:
  OwnedTensor() = default;
  OwnedTensor(DType dtype, std::initializer_list<int64_t> shape) : view_(nullptr, dtype, shape) {
    lines_.resize(2 + (static_cast<size_t>(size()) * DTypeBytes(dtype) + 63) / 64);
    std::memset(lines_.data(), 0xff, lines_.size() * 64);
  }

  TensorView view() const {
    TensorView view = view_;
    view.data = data<void>();
    return view;
  }
  template <typename T>
  T* data() const {
    return reinterpret_cast<T*>(const_cast<CacheLine*>(lines_.data()) + 1);
  }
  int64_t size() const { return view_.rows() * view_.row_elements(); }
  bool GuardsIntact() const {
    const uint8_t* begin = lines_.front().bytes;
    const uint8_t* end = lines_.back().bytes + 64;
    const uint8_t* data_end =
        data<uint8_t>() + static_cast<size_t>(size()) * DTypeBytes(view_.dtype);
    const auto untouched = [](uint8_t byte) { return byte == 0xff; };
    return std::all_of(begin, begin + 64, untouched) && std::all_of(data_end, end, untouched);
  }
  bool SameBytes(const OwnedTensor& other) const {
    return lines_.size() == other.lines_.size() &&
           std::memcmp(lines_.data(), other.lines_.data(), lines_.size() * 64) == 0;
  }

 private:
  struct alignas(64) CacheLine {
    uint8_t bytes[64];
  };
  TensorView view_;
  std::vector<CacheLine> lines_;  // a guard line, the data, at least one more guard line
};

inline OwnedTensor MakeF32(std::initializer_list<int64_t> shape, const std::vector<float>& values) {
  OwnedTensor tensor(DType::kF32, shape);
  std::copy(values.begin(), values.end(), tensor.data<float>());
  return tensor;
}

inline OwnedTensor MakeI32(std::initializer_list<int64_t> shape,
                           const std::vector<int32_t>& values) {
  OwnedTensor tensor(DType::kI32, shape);
  std::copy(values.begin(), values.end(), tensor.data<int32_t>());
  return tensor;
}

inline OwnedTensor RandomF32(std::initializer_list<int64_t> shape, uint32_t seed,
                             float stddev = 1.0f, float mean = 0.0f) {
  OwnedTensor tensor(DType::kF32, shape);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(mean, stddev);
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.data<float>()[i] = normal(random);
  return tensor;
}

// A weight matrix in some storage type, and what it stands for.
struct OwnedWeight {
  WeightView view;
  std::vector<uint8_t> bytes;
  std::vector<float> scales;
  std::vector<double> values;  // row-major
};

// Random weights; FP8 ones get random scales per block of 128 x 128 (the last blocks partial).
// `offset` rows and columns of the whole matrix lie before the view, so that slices are tested.
inline OwnedWeight RandomWeight(DType dtype, int64_t rows, int64_t cols, uint32_t seed,
                                float stddev, int64_t offset = 0) {
  OwnedWeight weight;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, stddev);
  const int64_t all_rows = rows + offset, all_cols = cols + offset;
  const int64_t element = static_cast<int64_t>(DTypeBytes(dtype));
  weight.bytes.resize(static_cast<size_t>(all_rows * all_cols * element));
  const int64_t scale_cols = (all_cols + 127) / 128;
  if (dtype == DType::kF8E4M3) {
    std::uniform_real_distribution<float> uniform(0.5f, 2.0f);
    weight.scales.resize(static_cast<size_t>((all_rows + 127) / 128 * scale_cols));
    for (float& scale : weight.scales) scale = stddev / 32 * uniform(random);
  }
  weight.values.resize(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < all_rows; ++r) {
    for (int64_t c = 0; c < all_cols; ++c) {
      float value = normal(random);
      uint8_t* out = weight.bytes.data() + (r * all_cols + c) * element;
      if (dtype == DType::kF32) {
        std::memcpy(out, &value, 4);
      } else if (dtype == DType::kBF16) {
        const uint16_t bits = F32ToBf16(value);
        std::memcpy(out, &bits, 2);
        value = Bf16ToF32(bits);
      } else if (dtype == DType::kF16) {
        // Multiples of 2^-10 below 2 are f16 numbers; the bits of those come from their f32 form.
        value = std::max(-1.9f, std::min(1.9f, value));
        value = static_cast<float>(static_cast<int>(value * 1024)) / 1024;
        const uint32_t f32 = std::bit_cast<uint32_t>(value * 0x1p-112f);
        const uint16_t bits =
            static_cast<uint16_t>((f32 >> 31) << 15 | ((f32 & 0x7fffffffu) >> 13));
        std::memcpy(out, &bits, 2);
        value = F16ToF32(bits);
      } else {
        const float scale = weight.scales[static_cast<size_t>(r / 128 * scale_cols + c / 128)];
        *out = F32ToF8E4M3(value / scale);
        value = F8E4M3ToF32(*out) * scale;
      }
      if (r >= offset && c >= offset) {
        weight.values[static_cast<size_t>((r - offset) * cols + c - offset)] = value;
      }
    }
  }
  WeightView whole;
  whole.data = weight.bytes.data();
  whole.dtype = dtype;
  whole.rows = all_rows;
  whole.cols = all_cols;
  whole.row_stride = all_cols;
  whole.scales = weight.scales.empty() ? nullptr : weight.scales.data();
  whole.scale_row_stride = scale_cols;
  weight.view = whole.RowSlice(offset, rows).ColSlice(offset, cols);
  return weight;
}

// One configuration of the CPU backend.
struct CpuSetting {
  CpuIsa isa;
  int threads;
  Numerics numerics;
};

inline std::string Name(const CpuSetting& setting) {
  static const char* const kIsa[] = {"generic", "avx2", "avx512", "avx512bf16", "amx"};
  return std::string(kIsa[static_cast<int>(setting.isa)]) + ", " + std::to_string(setting.threads) +
         " threads, " + (setting.numerics == Numerics::kExact ? "exact" : "fast");
}

// Every instruction set of this machine with 1, 2 and 3 threads.
inline std::vector<CpuSetting> AllSettings(Numerics numerics) {
  std::vector<CpuSetting> settings;
  for (int isa = 0; isa <= static_cast<int>(DetectCpuIsa()); ++isa) {
    for (int threads = 1; threads <= 3; ++threads) {
      settings.push_back({static_cast<CpuIsa>(isa), threads, numerics});
    }
  }
  return settings;
}

// The ops of one setting.
class OpsUnderTest {
 public:
  explicit OpsUnderTest(const CpuSetting& setting)
      : pool_(setting.threads), context_{pool_, setting.isa, setting.numerics} {}
  const CpuContext& context() const { return context_; }

 private:
  ThreadPool pool_;
  CpuContext context_;
};

}  // namespace sluice
