// One attention layer and one MoE layer at DeepSeek-V3's true shapes, straight over the ops,
// against transformers' float32. Weights and inputs come from the generator.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <memory>
#include <numeric>
#include <string>
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
constexpr int64_t kHidden = 7168;
constexpr int64_t kHeads = 128;
constexpr int64_t kQLora = 1536;
constexpr int64_t kExperts = 256;
constexpr int64_t kTopK = 8;
constexpr int64_t kExpertWidth = 2048;
constexpr MlaDims kDims{
    .num_heads = kHeads, .nope_dim = 128, .rope_dim = 64, .v_dim = 128, .kv_lora_rank = 512};

model::ModelConfig RopeConfig() {
  model::ModelConfig config;
  config.qk_nope_head_dim = kDims.nope_dim;
  config.qk_rope_head_dim = kDims.rope_dim;
  config.yarn = {.factor = 40, .mscale = 1, .mscale_all_dim = 1};
  return config;
}

// On a backend, which it owns with all that it makes; views stay valid as long as it lives.
class Tensors {
 public:
  Tensors(uint64_t seed, Numerics numerics)
      : seed_(seed), backend_(*MakeTestBackend({.threads = 2, .numerics = numerics})) {}

  Backend& backend() { return *backend_; }

  // A weight as a bf16 checkpoint holds it.
  WeightView Weight(const std::string& name, int64_t rows, int64_t cols) {
    const model::RandomTensor random(
        {.role = model::TensorRole::kO, .name = name, .rows = rows, .cols = cols}, seed_);
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
  const std::unique_ptr<Backend> backend_;
  std::vector<DeviceBuffer> buffers_;
};

class LayerTest : public ::testing::TestWithParam<Numerics> {
 protected:
  static bool exact() { return GetParam() == Numerics::kExact; }
  static DType CacheType() { return exact() ? DType::kF32 : DType::kBF16; }
  static void ExpectClose(const std::vector<float>& got, absl::Span<const float> want,
                          const char* what) {
    if (exact()) {
      EXPECT_LT(RelativeError(got, want), kTolerance) << what;
    } else {
      EXPECT_LT(CalcDiff(got, want), kFastDiffMax) << what;
    }
  }
};

#define ASSERT_OK(expr)                 \
  do {                                  \
    const absl::Status status = (expr); \
    ASSERT_TRUE(status.ok()) << status; \
  } while (false)

TEST_P(LayerTest, AttentionAtTrueShapes) {
  constexpr int64_t kContext = 130;
  const Golden golden = Golden::Load("v3_attention_layer");
  const std::vector<int32_t> queries(golden.I32("positions").begin(),
                                     golden.I32("positions").end());
  const int64_t count = static_cast<int64_t>(queries.size());
  const std::string p = "model.layers.0.self_attn.";
  const model::ModelConfig config = RopeConfig();
  const StreamId stream;
  Tensors t(golden.seed(), GetParam());
  Backend& backend = t.backend();

  const TensorView x = t.Floats(t.Input("attention.input", kContext, kHidden), {kContext, kHidden});
  const TensorView kv = t.Zeros(DType::kF32, {kContext, kDims.kv_dim()});
  const WeightView kv_a = t.Weight(p + "kv_a_proj_with_mqa.weight", kDims.kv_dim(), kHidden);
  ASSERT_OK(backend.linear().Linear({.x = x, .w = kv_a, .out = kv}, stream));

  // Queries of the asked positions only, put where they stand in the sequence.
  const int64_t q_width = kHeads * kDims.q_dim();
  const TensorView x_asked = t.Zeros(DType::kF32, {count, kHidden});
  ASSERT_OK(
      backend.elementwise().GatherRows({.x = x, .rows = t.Ints(queries), .out = x_asked}, stream));
  const TensorView q_latent = t.Zeros(DType::kF32, {count, kQLora});
  ASSERT_OK(backend.linear().Linear(
      {.x = x_asked, .w = t.Weight(p + "q_a_proj.weight", kQLora, kHidden), .out = q_latent},
      stream));
  ASSERT_OK(backend.elementwise().RmsNorm(
      {.x = q_latent,
       .weight = t.Vector(p + "q_a_layernorm.weight", model::TensorRole::kQANorm, kQLora),
       .out = q_latent},
      stream));
  const TensorView q_asked = t.Zeros(DType::kF32, {count, q_width});
  ASSERT_OK(backend.linear().Linear(
      {.x = q_latent, .w = t.Weight(p + "q_b_proj.weight", q_width, kQLora), .out = q_asked},
      stream));
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
  const TensorView cache = t.Zeros(CacheType(), {4, kPageTokens, kDims.kv_dim()});
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
  const auto project_and_compare = [&](const char* form, const TensorView& attended) {
    const TensorView out = t.Zeros(DType::kF32, {count, kHidden});
    ASSERT_OK(backend.linear().Linear({.x = attended, .w = o, .out = out}, stream));
    ExpectClose(t.Get<float>(out), golden.F32("output"), form);
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
  project_and_compare("absorbed", absorbed);

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
  project_and_compare("unabsorbed", asked);
}

TEST_P(LayerTest, MixtureOfExpertsAtTrueShapes) {
  const Golden golden = Golden::Load("v3_moe_layer");
  const absl::Span<const int32_t> want = golden.I32("experts");
  const int64_t count = static_cast<int64_t>(want.size()) / kTopK;
  const std::string p = "model.layers.3.mlp.";
  const StreamId stream;
  Tensors t(golden.seed(), GetParam());
  Backend& backend = t.backend();

  std::vector<float> inputs = t.Input("moe.input", count, kHidden);
  const std::vector<float> common = t.Input("moe.input.common", 1, kHidden);
  for (int64_t i = 0; i < count * kHidden; ++i) {
    inputs[i] = common[i % kHidden] + inputs[i] * 0.125f;
  }
  const TensorView x = t.Floats(inputs, {count, kHidden});
  const TensorView logits = t.Zeros(DType::kF32, {count, kExperts});
  ASSERT_OK(backend.linear().Linear({.x = x,
                                     .w = t.Weight(p + "gate.weight", kExperts, kHidden),
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
  ExpectClose(t.Get<float>(out), golden.F32("output"), "experts");
}

INSTANTIATE_TEST_SUITE_P(Numerics, LayerTest, ::testing::Values(Numerics::kExact, Numerics::kFast),
                         [](const auto& info) {
                           return info.param == Numerics::kExact ? "exact" : "fast";
                         });

}  // namespace
}  // namespace sluice::conformance
