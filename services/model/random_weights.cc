#include "services/model/random_weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/base/float_convert.h"
#include "services/base/parallel.h"
#include "services/base/progress.h"
#include "services/model/buffer_pool.h"

namespace sluice::model {
namespace {

constexpr int64_t kStripElements = 1 << 20;  // work of one thread at a time

uint64_t Fnv1a64(const std::string& text) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3;
  return hash;
}

RandomNumbers NumbersOf(const TensorSpec& spec, uint64_t seed) {
  const uint64_t key = MixBits(seed ^ Fnv1a64(spec.name));
  if (spec.role == TensorRole::kRouterBias) return NormalNumbers(key, 0.01);
  if (spec.is_vector()) return NormalNumbers(key, 0.1, /*mean=*/1);
  if (spec.role == TensorRole::kEmbed || spec.role == TensorRole::kMtpEmbed) {
    return NormalNumbers(key, 1);
  }
  return NormalNumbers(key, 1 / std::sqrt(static_cast<double>(spec.cols)));
}

// F32ToF8E4M3 for |value| <= 448, without branches so that loops over it become vector code.
uint8_t ToF8(float value) {
  const uint32_t sign = (std::bit_cast<uint32_t>(value) >> 24) & 0x80;
  const float magnitude = std::fabs(value);
  // Adding 2^14 leaves multiples of 2^-9, the step of subnormals, in the low bits.
  const uint32_t subnormal = std::bit_cast<uint32_t>(magnitude + 0x1p14f) & 0xff;
  const uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  const uint32_t normal = ((bits + 0x7ffffu + ((bits >> 20) & 1)) >> 20) - (120u << 3);
  const uint32_t code = magnitude < 0x1p-6f ? subnormal : normal;
  return static_cast<uint8_t>(sign | std::min(code, 0x7eu));
}

float Amax(const float* values, int64_t rows, int64_t stride, int64_t cols) {
  float amax = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      amax = std::max(amax, std::fabs(values[row * stride + col]));
    }
  }
  return amax;
}

}  // namespace

RandomTensor::RandomTensor(const TensorSpec& spec, uint64_t seed)
    : cols_(spec.is_vector() ? 1 : spec.cols), numbers_(NumbersOf(spec, seed)) {}

void RandomTensor::Fill(int64_t first, int64_t count, float* out) const {
  RandomNumbers numbers = numbers_;
  numbers.key += static_cast<uint64_t>(first) * kRandomStep;
  for (int64_t i = 0; i < count; ++i) out[i] = RandomNumber(numbers, static_cast<uint64_t>(i));
}

void RandomTensor::FillBf16(const Region& region, uint16_t* out, int64_t out_stride) const {
  std::vector<float> row_values(region.cols);
  for (int64_t row = 0; row < region.rows; ++row) {
    Fill((region.row_begin + row) * cols_ + region.col_begin, region.cols, row_values.data());
    uint16_t* to = out + row * out_stride;
    for (int64_t col = 0; col < region.cols; ++col) {
      const uint32_t bits = std::bit_cast<uint32_t>(row_values[col]);  // never NaN
      to[col] = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
    }
  }
}

void RandomTensor::FillF8(const Region& region, int64_t block, uint8_t* out, int64_t out_stride,
                          float* scales, int64_t scale_stride) const {
  std::vector<float> values(block * region.cols);
  for (int64_t top = 0; top < region.rows; top += block) {
    const int64_t rows = std::min(block, region.rows - top);
    for (int64_t row = 0; row < rows; ++row) {
      Fill((region.row_begin + top + row) * cols_ + region.col_begin, region.cols,
           values.data() + row * region.cols);
    }
    for (int64_t left = 0; left < region.cols; left += block) {
      const int64_t cols = std::min(block, region.cols - left);
      const float amax = Amax(values.data() + left, rows, region.cols, cols);
      const float scale = amax == 0 ? 1.0f : amax / 448.0f;
      scales[top / block * scale_stride + left / block] = scale;
      for (int64_t row = 0; row < rows; ++row) {
        const float* from = values.data() + row * region.cols + left;
        uint8_t* to = out + (top + row) * out_stride + left;
        for (int64_t col = 0; col < cols; ++col) to[col] = ToF8(from[col] / scale);
      }
    }
  }
}

namespace {

class RandomSource final : public WeightSource {
 public:
  RandomSource(const ModelConfig& config, uint64_t seed, bool for_device)
      : config_(config), seed_(seed), for_device_(for_device) {}

  bool Has(const TensorSpec& spec) const override {
    return spec.need != TensorNeed::kTied && spec.need != TensorNeed::kMtpShared;
  }

  WeightView Matrix(const TensorSpec& spec, const Region& region) override {
    const bool fp8 = config_.fp8 && spec.quantized;
    const WeightView view = fp8 ? F8Matrix(spec, region) : Bf16Matrix(spec, region);
    if (for_device_) {
      random_[view.data] = {.numbers = RandomTensor(spec, seed_).numbers(),
                            .rows = spec.rows,
                            .cols = spec.cols,
                            .row_begin = region.row_begin,
                            .col_begin = region.col_begin};
    }
    return view;
  }

  void Vector(const TensorSpec& spec, float* out) override {
    jobs_.push_back({spec.rows * 2, [tensor = RandomTensor(spec, seed_), out, spec] {
                       tensor.Fill(0, spec.rows, out);
                       if (spec.role == TensorRole::kRouterBias) return;  // f32 in checkpoints
                       for (int64_t i = 0; i < spec.rows; ++i)
                         out[i] = Bf16ToF32(F32ToBf16(out[i]));
                     }});
  }

  absl::Status Finish(int threads, const ProgressOut& progress_out) override {
    int64_t total = 0;
    for (const Job& job : jobs_) total += job.bytes;
    Progress progress("generating weights", total, progress_out);
    return ParallelFor(static_cast<int64_t>(jobs_.size()), threads, [&](int64_t i) {
      jobs_[i].run();
      progress.Add(jobs_[i].bytes);
      return absl::OkStatus();
    });
  }

  std::vector<std::shared_ptr<const void>> owners() const override {
    return {pool_.owners().begin(), pool_.owners().end()};
  }
  absl::flat_hash_map<const void*, RandomPart> random() const override { return random_; }

 private:
  struct Job {
    int64_t bytes;
    std::function<void()> run;
  };

  // Calls add(strip) for strips of whole rows, each a multiple of `rows_multiple` high, if they are
  // to be made here.
  void ForEachStrip(const Region& region, int64_t rows_multiple,
                    const std::function<void(const Region&)>& add) const {
    if (for_device_) return;
    const int64_t wanted = std::max<int64_t>(1, kStripElements / std::max<int64_t>(1, region.cols));
    const int64_t height = (wanted + rows_multiple - 1) / rows_multiple * rows_multiple;
    for (int64_t row = 0; row < region.rows; row += height) {
      Region strip = region;
      strip.row_begin += row;
      strip.rows = std::min(height, region.rows - row);
      add(strip);
    }
  }

  WeightView Bf16Matrix(const TensorSpec& spec, const Region& region) {
    uint16_t* data = pool_.Allocate<uint16_t>(region.rows * region.cols);
    const RandomTensor tensor(spec, seed_);
    ForEachStrip(region, 1, [&](const Region& strip) {
      uint16_t* out = data + (strip.row_begin - region.row_begin) * region.cols;
      jobs_.push_back(
          {strip.rows * strip.cols * 2, [=] { tensor.FillBf16(strip, out, strip.cols); }});
    });
    return {.data = data,
            .dtype = DType::kBF16,
            .rows = region.rows,
            .cols = region.cols,
            .row_stride = region.cols,
            .row_begin = region.row_begin,
            .col_begin = region.col_begin};
  }

  // Generates the whole blocks that the region touches: their scales need all their elements.
  WeightView F8Matrix(const TensorSpec& spec, const Region& region) {
    const int64_t block = config_.fp8_block;
    const auto down = [&](int64_t n) { return n / block * block; };
    const auto up = [&](int64_t n) { return (n + block - 1) / block * block; };
    Region whole;
    whole.row_begin = down(region.row_begin);
    whole.col_begin = down(region.col_begin);
    whole.rows = std::min(up(region.row_begin + region.rows), spec.rows) - whole.row_begin;
    whole.cols = std::min(up(region.col_begin + region.cols), spec.cols) - whole.col_begin;
    const std::vector<int64_t> blocks = spec.scale_shape(block);
    uint8_t* data = pool_.Allocate<uint8_t>(whole.rows * whole.cols);
    float* scales = pool_.Allocate<float>(blocks[0] * blocks[1]);
    const RandomTensor tensor(spec, seed_);
    ForEachStrip(whole, block, [&](const Region& strip) {
      uint8_t* out = data + (strip.row_begin - whole.row_begin) * whole.cols;
      float* strip_scales = scales + strip.row_begin / block * blocks[1] + strip.col_begin / block;
      jobs_.push_back({strip.rows * strip.cols, [=] {
                         tensor.FillF8(strip, block, out, strip.cols, strip_scales, blocks[1]);
                       }});
    });
    const WeightView view{.data = data,
                          .dtype = DType::kF8E4M3,
                          .rows = whole.rows,
                          .cols = whole.cols,
                          .row_stride = whole.cols,
                          .scales = scales,
                          .scale_row_stride = blocks[1],
                          .scale_block = block,
                          .row_begin = whole.row_begin,
                          .col_begin = whole.col_begin};
    return view.RowSlice(region.row_begin - whole.row_begin, region.rows)
        .ColSlice(region.col_begin - whole.col_begin, region.cols);
  }

  const ModelConfig& config_;
  const uint64_t seed_;
  const bool for_device_;
  std::vector<Job> jobs_;
  BufferPool pool_;
  absl::flat_hash_map<const void*, RandomPart> random_;
};

}  // namespace

std::unique_ptr<WeightSource> MakeRandomSource(const ModelConfig& config, uint64_t seed,
                                               bool for_device) {
  return std::make_unique<RandomSource>(config, seed, for_device);
}

}  // namespace sluice::model
