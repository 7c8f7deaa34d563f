// One attention layer and one MoE layer at DeepSeek-V3's true shapes, straight over the ops,
// against transformers' float32. Weights and inputs come from the generator.
//
// With weights in FP8: against the same layer with the values that those stand for, in float64 (the
// experts), or by the exact CPU ops that the goldens hold to transformers with bf16 (attention).

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <initializer_list>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/base/float_convert.h"
#include "services/base/parallel.h"
#include "services/model/model_config.h"
#include "services/model/random_weights.h"
#include "services/model/rope.h"
#include "tests/conformance/device.h"
#include "tests/conformance/harness.h"
#include "tests/golden/golden.h"

namespace sluice::conformance {
namespace {

constexpr double kTolerance = 1e-4;    // exact: of the largest
constexpr double kFastDiffMax = 1e-3;  // fast: calc_diff
// With activations in FP8 on both sides: what is near the middle of two of their values goes either
// way, 1.4e-4. On one side alone they are 9e-4 (experts) and 1.2e-3 (attention).
constexpr double kQuantizedDiffMax = 5e-4;
// What FP8 weights change, and FP8 activations: that a reference is of the right layer at all.
constexpr double kFp8DiffMax = 2e-2;
constexpr int64_t kHidden = 7168;
constexpr int64_t kHeads = 128;
constexpr int64_t kQLora = 1536;
constexpr int64_t kExperts = 256;
constexpr int64_t kTopK = 8;
constexpr int64_t kExpertWidth = 2048;
constexpr int64_t kBlock = 128;  // of FP8 scales
constexpr int64_t kContext = 130;
constexpr MlaDims kDims{
    .num_heads = kHeads, .nope_dim = 128, .rope_dim = 64, .v_dim = 128, .kv_lora_rank = 512};

model::ModelConfig RopeConfig() {
  model::ModelConfig config;
  config.qk_nope_head_dim = kDims.nope_dim;
  config.qk_rope_head_dim = kDims.rope_dim;
  config.yarn = {.factor = 40, .mscale = 1, .mscale_all_dim = 1};
  return config;
}

// A weight as an FP8 checkpoint holds it.
struct Fp8Weight {
  std::vector<uint8_t> codes;
  std::vector<float> scales;  // [blocks of rows, blocks of cols]
};

model::RandomTensor Generator(const std::string& name, int64_t rows, int64_t cols, uint64_t seed) {
  return model::RandomTensor(
      {.role = model::TensorRole::kO, .name = name, .rows = rows, .cols = cols}, seed);
}

Fp8Weight MakeFp8(const std::string& name, int64_t rows, int64_t cols, uint64_t seed) {
  const model::RandomTensor random = Generator(name, rows, cols, seed);
  const int64_t bands = (rows + kBlock - 1) / kBlock, blocks = (cols + kBlock - 1) / kBlock;
  Fp8Weight weight{.codes = std::vector<uint8_t>(rows * cols),
                   .scales = std::vector<float>(bands * blocks)};
  const auto fill = [&](int64_t band) {
    const int64_t begin = band * kBlock;
    random.FillF8({.row_begin = begin, .rows = std::min(kBlock, rows - begin), .cols = cols},
                  kBlock, weight.codes.data() + begin * cols, cols,
                  weight.scales.data() + band * blocks, blocks);
    return absl::OkStatus();
  };
  EXPECT_TRUE(ParallelFor(bands, 2, fill).ok());
  return weight;
}

// What such a weight stands for.
std::vector<float> MakeDequantized(const std::string& name, int64_t rows, int64_t cols,
                                   uint64_t seed) {
  const Fp8Weight weight = MakeFp8(name, rows, cols, seed);
  const int64_t blocks = (cols + kBlock - 1) / kBlock;
  std::vector<float> of_code(256), values(rows * cols);
  for (int code = 0; code < 256; ++code) of_code[code] = F8E4M3ToF32(static_cast<uint8_t>(code));
  const auto fill = [&](int64_t row) {
    for (int64_t col = 0; col < cols; ++col) {
      values[row * cols + col] = of_code[weight.codes[row * cols + col]] *
                                 weight.scales[row / kBlock * blocks + col / kBlock];
    }
    return absl::OkStatus();
  };
  EXPECT_TRUE(ParallelFor(rows, 2, fill).ok());
  return values;
}

// Rows of x as products with FP8 activations see them: DeepSeek-V3 inference/kernel.py, act_quant.
std::vector<float> Quantized(std::vector<float> x) {
  for (size_t block = 0; block < x.size(); block += kBlock) {
    float amax = 1e-4f;
    for (int64_t i = 0; i < kBlock; ++i) amax = std::max(amax, std::abs(x[block + i]));
    const float scale = amax / 448.0f;
    for (int64_t i = 0; i < kBlock; ++i) {
      x[block + i] = F8E4M3ToF32(F32ToF8E4M3(x[block + i] / scale)) * scale;
    }
  }
  return x;
}

// On a backend, which it owns with all that it makes; views stay valid as long as it lives.
class Tensors {
 public:
  // Weights are kBF16 or kF8E4M3, as checkpoints hold them, or kF32: what the latter stand for.
  Tensors(uint64_t seed, DType weights, std::unique_ptr<Backend> backend)
      : seed_(seed), weights_(weights), backend_(std::move(backend)) {}

  Backend& backend() { return *backend_; }

  WeightView Weight(const std::string& name, int64_t rows, int64_t cols) {
    if (weights_ == DType::kBF16) return Bf16Weight(name, rows, cols);
    WeightView view{.dtype = weights_, .rows = rows, .cols = cols, .row_stride = cols};
    if (weights_ == DType::kF32) {
      view.data = Put(MakeDequantized(name, rows, cols, seed_));
      return view;
    }
    const Fp8Weight weight = MakeFp8(name, rows, cols, seed_);
    view.data = Put(weight.codes);
    view.scales = static_cast<const float*>(Put(weight.scales));
    view.scale_row_stride = (cols + kBlock - 1) / kBlock;
    view.scale_block = kBlock;
    return view;
  }
  WeightView Bf16Weight(const std::string& name, int64_t rows, int64_t cols) {
    const model::RandomTensor random = Generator(name, rows, cols, seed_);
    std::vector<uint16_t> data(rows * cols);
    constexpr int64_t kStrip = 64;
    const auto fill = [&](int64_t strip) {
      const int64_t begin = strip * kStrip;
      random.FillBf16({.row_begin = begin, .rows = std::min(kStrip, rows - begin), .cols = cols},
                      data.data() + begin * cols, cols);
      return absl::OkStatus();
    };
    EXPECT_TRUE(ParallelFor((rows + kStrip - 1) / kStrip, 2, fill).ok());
    return {
        .data = Put(data), .dtype = DType::kBF16, .rows = rows, .cols = cols, .row_stride = cols};
  }

  // Values of stddev 1, not rounded.
  std::vector<float> Input(const std::string& name, int64_t rows, int64_t cols) {
    std::vector<float> out(rows * cols);
    model::RandomTensor(
        {.role = model::TensorRole::kEmbed, .name = name, .rows = rows, .cols = cols}, seed_)
        .Fill(0, rows * cols, out.data());
    return out;
  }

  // A norm's weight or a router's bias.
  TensorView Vector(const std::string& name, model::TensorRole role, int64_t count) {
    std::vector<float> out(count);
    const model::RandomTensor random({.role = role, .name = name, .rows = count}, seed_);
    if (role == model::TensorRole::kRouterBias) {
      random.Fill(0, count, out.data());
      return Floats(out, {count});
    }
    std::vector<uint16_t> stored(count);
    random.FillBf16({.rows = count, .cols = 1}, stored.data(), 1);
    std::transform(stored.begin(), stored.end(), out.begin(), Bf16ToF32);
    return Floats(out, {count});
  }

  TensorView Zeros(DType dtype, std::initializer_list<int64_t> shape) {
    TensorView view(nullptr, dtype, shape);
    buffers_.push_back(
        *backend_->Allocate(view.rows() * view.row_elements() * DTypeBytes(dtype), "test tensor"));
    view.data = buffers_.back().memory.get();
    return view;
  }
  TensorView Floats(const std::vector<float>& values, std::initializer_list<int64_t> shape) {
    return TensorView(Put(values), DType::kF32, shape);
  }
  TensorView Ints(const std::vector<int32_t>& values) {
    return TensorView(Put(values), DType::kI32, {static_cast<int64_t>(values.size())});
  }
  // What lies in a tensor without gaps.
  template <typename T>
  std::vector<T> Get(const TensorView& view) {
    std::vector<T> values(view.rows() * view.row_elements());
    EXPECT_TRUE(backend_->CopyToHost(values.data(), view.data, values.size() * sizeof(T), {}).ok());
    EXPECT_TRUE(backend_->Sync({}).ok());
    return values;
  }

 private:
  template <typename T>
  void* Put(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    buffers_.push_back(*backend_->Allocate(bytes, "test tensor"));
    void* const memory = buffers_.back().memory.get();
    EXPECT_TRUE(backend_->CopyToDevice(memory, values.data(), bytes, {}).ok());
    EXPECT_TRUE(backend_->Sync({}).ok());
    return memory;
  }

  const uint64_t seed_;
  const DType weights_;
  const std::unique_ptr<Backend> backend_;
  std::vector<DeviceBuffer> buffers_;
};

struct LayerCase {
  const char* name;
  Numerics numerics;
  DType weights;
};

void PrintTo(const LayerCase& c, std::ostream* os) { *os << c.name; }

class LayerTest : public ::testing::TestWithParam<LayerCase> {
 protected:
  static bool exact() { return GetParam().numerics == Numerics::kExact; }
  static bool fp8() { return GetParam().weights == DType::kF8E4M3; }
  // Whether products see their activations in FP8.
  static bool quantizes() { return fp8() && !exact() && QuantizesActivations(); }
  static Tensors MakeTensors(uint64_t seed) {
    return {seed, GetParam().weights,
            *MakeTestBackend({.threads = 2, .numerics = GetParam().numerics})};
  }
  static void ExpectClose(const std::vector<float>& got, absl::Span<const float> want,
                          const char* what) {
    const double error = RelativeError(got, want), diff = CalcDiff(got, want);
    std::printf("%s, %s: %.2g of the largest, calc_diff %.2g\n", GetParam().name, what, error,
                diff);
    if (exact()) {
      EXPECT_LT(error, kTolerance) << what;
    } else {
      EXPECT_LT(diff, quantizes() ? kQuantizedDiffMax : kFastDiffMax) << what;
    }
  }
  // That a reference with FP8 weights is near the layer with the weights that those were made from.
  static void ExpectNear(absl::Span<const float> reference, absl::Span<const float> golden) {
    const double diff = CalcDiff(reference, golden);
    std::printf("%s: FP8 changes calc_diff %.2g\n", GetParam().name, diff);
    EXPECT_LT(diff, kFp8DiffMax) << "the reference itself is wrong";
  }
};

#define ASSERT_OK(expr)                 \
  do {                                  \
    const absl::Status status = (expr); \
    ASSERT_TRUE(status.ok()) << status; \
  } while (false)

struct Attended {
  std::vector<float> absorbed, unabsorbed;  // [queries, kHidden]
};

// The layer at some positions of a sequence of kContext. `quantizes`: products see their
// activations as FP8 has them, for a backend that does not do so itself.
void Attend(Tensors& t, const std::vector<int32_t>& queries, DType cache_type, bool quantizes,
            Attended* result) {
  const int64_t count = static_cast<int64_t>(queries.size());
  const std::string p = "model.layers.0.self_attn.";
  const model::ModelConfig config = RopeConfig();
  const StreamId stream;
  Backend& backend = t.backend();
  const auto multiply = [&](const TensorView& x, const WeightView& w, const TensorView& out) {
    const TensorView seen =
        quantizes ? t.Floats(Quantized(t.Get<float>(x)), {x.rows(), x.row_elements()}) : x;
    return backend.linear().Linear({.x = seen, .w = w, .out = out}, stream);
  };

  const TensorView x = t.Floats(t.Input("attention.input", kContext, kHidden), {kContext, kHidden});
  const TensorView kv = t.Zeros(DType::kF32, {kContext, kDims.kv_dim()});
  const WeightView kv_a = t.Weight(p + "kv_a_proj_with_mqa.weight", kDims.kv_dim(), kHidden);
  ASSERT_OK(multiply(x, kv_a, kv));

  // Queries of the asked positions only, put where they stand in the sequence.
  const int64_t q_width = kHeads * kDims.q_dim();
  const TensorView x_asked = t.Zeros(DType::kF32, {count, kHidden});
  ASSERT_OK(
      backend.elementwise().GatherRows({.x = x, .rows = t.Ints(queries), .out = x_asked}, stream));
  const TensorView q_latent = t.Zeros(DType::kF32, {count, kQLora});
  ASSERT_OK(multiply(x_asked, t.Weight(p + "q_a_proj.weight", kQLora, kHidden), q_latent));
  ASSERT_OK(backend.elementwise().RmsNorm(
      {.x = q_latent,
       .weight = t.Vector(p + "q_a_layernorm.weight", model::TensorRole::kQANorm, kQLora),
       .out = q_latent},
      stream));
  const TensorView q_asked = t.Zeros(DType::kF32, {count, q_width});
  ASSERT_OK(multiply(q_latent, t.Weight(p + "q_b_proj.weight", q_width, kQLora), q_asked));
  const std::vector<float> asked_rows = t.Get<float>(q_asked);
  std::vector<float> q_rows(kContext * q_width);
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(asked_rows.begin() + i * q_width, q_width, q_rows.begin() + queries[i] * q_width);
  }
  const TensorView q = t.Floats(q_rows, {kContext, q_width});

  // Pages 2, 0, 3 of a cache of 4.
  const std::vector<int32_t> pages = {2, 0, 3};
  std::vector<int32_t> positions(kContext), rows(kContext);
  std::iota(positions.begin(), positions.end(), 0);
  for (int i = 0; i < kContext; ++i) {
    rows[i] = pages[i / kPageTokens] * kPageTokens + i % kPageTokens;
  }
  const TensorView cos_sin =
      t.Floats(model::MakeCosSinTable(config, kContext), {kContext, kDims.rope_dim});
  const TensorView cache = t.Zeros(cache_type, {4, kPageTokens, kDims.kv_dim()});
  ASSERT_OK(backend.attention().MlaCacheWrite(
      {.dims = kDims,
       .q = q,
       .kv_a = kv,
       .kv_norm =
           t.Vector(p + "kv_a_layernorm.weight", model::TensorRole::kKvANorm, kDims.kv_lora_rank),
       .cos_sin = cos_sin,
       .positions = t.Ints(positions),
       .kv_rows = t.Ints(rows),
       .cache = cache},
      stream));

  const WeightView kv_b =
      t.Weight(p + "kv_b_proj.weight", kHeads * (kDims.nope_dim + kDims.v_dim), kDims.kv_lora_rank);
  const WeightView o = t.Weight(p + "o_proj.weight", kHidden, kHeads * kDims.v_dim);
  const float scale = static_cast<float>(config.SoftmaxScale());
  const auto project = [&](const TensorView& attended, std::vector<float>* to) {
    const TensorView out = t.Zeros(DType::kF32, {count, kHidden});
    ASSERT_OK(multiply(attended, o, out));
    *to = t.Get<float>(out);
  };

  ASSERT_OK(
      backend.elementwise().GatherRows({.x = q, .rows = t.Ints(queries), .out = q_asked}, stream));
  const TensorView table_of_pages = t.Ints(pages);
  const TensorView absorbed = t.Zeros(DType::kF32, {count, kHeads * kDims.v_dim});
  ASSERT_OK(backend.attention().MlaAbsorbed(
      {.dims = kDims,
       .q = q_asked,
       .kv_b = kv_b,
       .cache = cache,
       .page_table = TensorView(table_of_pages.data, DType::kI32, {1, 3}),
       .seq_of_token = t.Ints(std::vector<int32_t>(count, 0)),
       .positions = t.Ints(queries),
       .scale = scale,
       .out = absorbed},
      stream));
  project(absorbed, &result->absorbed);

  const TensorView all = t.Zeros(DType::kF32, {kContext, kHeads * kDims.v_dim});
  const PromptChunk chunk = {.num_tokens = kContext};
  ASSERT_OK(backend.attention().MlaPrompt(
      {.dims = kDims,
       .q = q,
       .kv_b = kv_b,
       .cache = cache,
       .page_table = TensorView(table_of_pages.data, DType::kI32, {1, 3}),
       .chunks = {&chunk, 1},
       .scale = scale,
       .out = all},
      stream));
  const TensorView asked = t.Zeros(DType::kF32, {count, kHeads * kDims.v_dim});
  ASSERT_OK(
      backend.elementwise().GatherRows({.x = all, .rows = t.Ints(queries), .out = asked}, stream));
  project(asked, &result->unabsorbed);
}

TEST_P(LayerTest, AttentionAtTrueShapes) {
  const Golden golden = Golden::Load("v3_attention_layer");
  const std::vector<int32_t> queries(golden.I32("positions").begin(),
                                     golden.I32("positions").end());
  Attended got, want;
  {
    Tensors t = MakeTensors(golden.seed());
    ASSERT_NO_FATAL_FAILURE(
        Attend(t, queries, exact() ? DType::kF32 : DType::kBF16, /*quantizes=*/false, &got));
  }
  if (fp8()) {
    Tensors t(golden.seed(), DType::kF32,
              *MakeCpuBackend({.threads = 2, .numerics = Numerics::kExact}));
    ASSERT_NO_FATAL_FAILURE(Attend(t, queries, DType::kF32, quantizes(), &want));
    ExpectNear(want.absorbed, golden.F32("output"));
  } else {
    want.absorbed.assign(golden.F32("output").begin(), golden.F32("output").end());
    want.unabsorbed = want.absorbed;
  }
  ExpectClose(got.absorbed, want.absorbed, "absorbed");
  ExpectClose(got.unabsorbed, want.unabsorbed, "unabsorbed");
}

// w x, of the generator's weight in FP8.
class Dequantized {
 public:
  Dequantized(const std::string& name, int64_t rows, int64_t cols, uint64_t seed)
      : rows_(rows), cols_(cols), values_(MakeDequantized(name, rows, cols, seed)) {}

  std::vector<double> Times(const float* x) const {
    std::vector<double> out(rows_);
    const auto dot = [&](int64_t row) {
      const float* const w = values_.data() + row * cols_;
      double sums[8] = {};
      for (int64_t col = 0; col < cols_; col += 8) {
        for (int64_t i = 0; i < 8; ++i) sums[i] += double{w[col + i]} * x[col + i];
      }
      out[row] = std::accumulate(sums, sums + 8, 0.0);
      return absl::OkStatus();
    };
    EXPECT_TRUE(ParallelFor(rows_, 2, dot).ok());
    return out;
  }

 private:
  const int64_t rows_, cols_;
  const std::vector<float> values_;
};

// out += weight * (the expert of this name of x), in float64.
void AddExpert(const std::string& name, uint64_t seed, const std::vector<float>& x, bool quantizes,
               const std::vector<double>& weight_of_token, std::vector<double>* out) {
  const Dequantized gate(name + "gate_proj.weight", kExpertWidth, kHidden, seed);
  const Dequantized up(name + "up_proj.weight", kExpertWidth, kHidden, seed);
  const Dequantized down(name + "down_proj.weight", kHidden, kExpertWidth, seed);
  for (size_t token = 0; token < weight_of_token.size(); ++token) {
    if (weight_of_token[token] == 0) continue;
    const std::vector<double> g = gate.Times(x.data() + token * kHidden);
    const std::vector<double> u = up.Times(x.data() + token * kHidden);
    std::vector<float> inner(kExpertWidth);
    for (int64_t i = 0; i < kExpertWidth; ++i) {
      inner[i] = static_cast<float>(g[i] / (1 + std::exp(-g[i])) * u[i]);
    }
    if (quantizes) inner = Quantized(std::move(inner));
    const std::vector<double> y = down.Times(inner.data());
    for (int64_t i = 0; i < kHidden; ++i) {
      (*out)[token * kHidden + i] += weight_of_token[token] * y[i];
    }
  }
}

// The layer with FP8 weights, of the golden's experts.
std::vector<float> MoeReference(const Golden& golden, std::vector<float> x, bool quantizes) {
  const absl::Span<const int32_t> experts = golden.I32("experts");
  const absl::Span<const float> weights = golden.F32("expert_weights");
  const size_t count = experts.size() / kTopK;
  const std::string p = "model.layers.3.mlp.";
  if (quantizes) x = Quantized(std::move(x));
  std::vector<double> sum(count * kHidden);
  for (int32_t expert = 0; expert < kExperts; ++expert) {
    std::vector<double> weight_of_token(count);
    bool chosen = false;
    for (size_t pair = 0; pair < experts.size(); ++pair) {
      if (experts[pair] != expert) continue;
      chosen = true;
      weight_of_token[pair / kTopK] = weights[pair];
    }
    if (!chosen) continue;
    AddExpert(absl::StrCat(p, "experts.", expert, "."), golden.seed(), x, quantizes,
              weight_of_token, &sum);
  }
  AddExpert(p + "shared_experts.", golden.seed(), x, quantizes, std::vector<double>(count, 1),
            &sum);
  return std::vector<float>(sum.begin(), sum.end());
}

TEST_P(LayerTest, MixtureOfExpertsAtTrueShapes) {
  const Golden golden = Golden::Load("v3_moe_layer");
  const absl::Span<const int32_t> want = golden.I32("experts");
  const int64_t count = static_cast<int64_t>(want.size()) / kTopK;
  const std::string p = "model.layers.3.mlp.";
  const StreamId stream;
  Tensors t = MakeTensors(golden.seed());
  Backend& backend = t.backend();

  std::vector<float> inputs = t.Input("moe.input", count, kHidden);
  const std::vector<float> common = t.Input("moe.input.common", 1, kHidden);
  for (int64_t i = 0; i < count * kHidden; ++i) {
    inputs[i] = common[i % kHidden] + inputs[i] * 0.125f;
  }
  const TensorView x = t.Floats(inputs, {count, kHidden});
  const TensorView logits = t.Zeros(DType::kF32, {count, kExperts});
  ASSERT_OK(backend.linear().Linear({.x = x,
                                     .w = t.Bf16Weight(p + "gate.weight", kExperts, kHidden),
                                     .out = logits,
                                     .precision = Precision::kF32},
                                    stream));
  const TensorView ids = t.Zeros(DType::kI32, {count, kTopK});
  const TensorView weights = t.Zeros(DType::kF32, {count, kTopK});
  const TensorView load = t.Zeros(DType::kI64, {kExperts});
  ASSERT_OK(backend.moe().Gate({.logits = logits,
                                .bias = t.Vector(p + "gate.e_score_correction_bias",
                                                 model::TensorRole::kRouterBias, kExperts),
                                .num_groups = 8,
                                .topk_groups = 4,
                                .scaling = 2.5f,
                                .expert_ids = ids,
                                .expert_weights = weights,
                                .expert_load = load},
                               stream));
  ASSERT_EQ(absl::MakeConstSpan(t.Get<int32_t>(ids)), want);
  EXPECT_LT(RelativeError(t.Get<float>(weights), golden.F32("expert_weights")), 1e-5);

  // Only the chosen experts have a slot, the last one the first.
  std::vector<int32_t> chosen(want.begin(), want.end());
  std::sort(chosen.begin(), chosen.end(), std::greater<int32_t>());
  chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
  std::vector<int32_t> slot_of_expert(kExperts, -1);
  std::vector<WeightView> gates, ups, downs;
  for (const int32_t expert : chosen) {
    slot_of_expert[expert] = static_cast<int32_t>(gates.size());
    const std::string e = absl::StrCat(p, "experts.", expert, ".");
    gates.push_back(t.Weight(e + "gate_proj.weight", kExpertWidth, kHidden));
    ups.push_back(t.Weight(e + "up_proj.weight", kExpertWidth, kHidden));
    downs.push_back(t.Weight(e + "down_proj.weight", kHidden, kExpertWidth));
  }
  const TensorView offsets = t.Zeros(DType::kI32, {static_cast<int64_t>(chosen.size()) + 1});
  const TensorView pair_rows = t.Zeros(DType::kI32, {count, kTopK});
  const TensorView pairs = t.Zeros(DType::kF32, {count * kTopK, kHidden});
  ASSERT_OK(backend.moe().Permute({.expert_ids = ids,
                                   .slot_of_expert = t.Ints(slot_of_expert),
                                   .offsets = offsets,
                                   .pair_rows = pair_rows},
                                  stream));
  const TensorView inner = t.Zeros(DType::kF32, {count * kTopK, kExpertWidth});
  ASSERT_OK(backend.linear().GroupedGatedLinear({.x = x,
                                                 .gates = gates,
                                                 .ups = ups,
                                                 .offsets = offsets,
                                                 .out = inner,
                                                 .pair_rows = pair_rows},
                                                stream));
  ASSERT_OK(backend.linear().GroupedLinear(
      {.x = inner, .weights = downs, .offsets = offsets, .out = pairs}, stream));

  const std::string s = p + "shared_experts.";
  const TensorView shared_inner = t.Zeros(DType::kF32, {count, kExpertWidth});
  const TensorView shared = t.Zeros(DType::kF32, {count, kHidden});
  ASSERT_OK(
      backend.linear().GatedLinear({.x = x,
                                    .gate = t.Weight(s + "gate_proj.weight", kExpertWidth, kHidden),
                                    .up = t.Weight(s + "up_proj.weight", kExpertWidth, kHidden),
                                    .out = shared_inner},
                                   stream));
  ASSERT_OK(backend.linear().Linear({.x = shared_inner,
                                     .w = t.Weight(s + "down_proj.weight", kHidden, kExpertWidth),
                                     .out = shared},
                                    stream));
  const TensorView out = t.Zeros(DType::kF32, {count, kHidden});
  ASSERT_OK(backend.moe().Combine({.rows = pairs,
                                   .pair_rows = pair_rows,
                                   .expert_weights = weights,
                                   .shared = shared,
                                   .out = out},
                                  stream));
  std::vector<float> want_out(golden.F32("output").begin(), golden.F32("output").end());
  if (fp8()) {
    want_out = MoeReference(golden, inputs, quantizes());
    ExpectNear(want_out, golden.F32("output"));
  }
  ExpectClose(t.Get<float>(out), want_out, "experts");
}

INSTANTIATE_TEST_SUITE_P(Numerics, LayerTest,
                         ::testing::Values(LayerCase{"exact", Numerics::kExact, DType::kBF16},
                                           LayerCase{"fast", Numerics::kFast, DType::kBF16},
                                           LayerCase{"exact_fp8", Numerics::kExact, DType::kF8E4M3},
                                           LayerCase{"fast_fp8", Numerics::kFast, DType::kF8E4M3}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace sluice::conformance
