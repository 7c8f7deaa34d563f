#include "tests/bench/device_weights.h"

#include <cmath>
#include <utility>

#include "tests/bench/cuda_bench.h"

namespace sluice::bench {
namespace {

class Maker {
 public:
  Maker(const model::ModelConfig& config, uint64_t seed) : config_(config), seed_(seed) {}

  WeightView Bf16(int64_t rows, int64_t cols, double stddev) {
    WeightView view{.dtype = DType::kBF16, .rows = rows, .cols = cols, .row_stride = cols};
    view.data = Own(RandomBf16(rows * cols, static_cast<float>(stddev), ++seed_), rows * cols * 2);
    return view;
  }
  WeightView Matrix(int64_t rows, int64_t cols) {
    const double stddev = 1 / std::sqrt(static_cast<double>(cols));
    if (!config_.fp8) return Bf16(rows, cols, stddev);
    // Elements of deviation 100 reach e4m3's largest number about as often as quantised ones do.
    constexpr float kElement = 100;
    const float scale = static_cast<float>(stddev) / kElement;
    const int64_t block = config_.fp8_block;
    const int64_t scale_rows = (rows + block - 1) / block, scale_cols = (cols + block - 1) / block;
    WeightView view{.dtype = DType::kF8E4M3,
                    .rows = rows,
                    .cols = cols,
                    .row_stride = cols,
                    .scale_row_stride = scale_cols,
                    .scale_block = block};
    view.data = Own(RandomF8(rows * cols, kElement, ++seed_), rows * cols);
    view.scales = static_cast<const float*>(
        Own(UniformF32(scale_rows * scale_cols, 0.8f * scale, 1.2f * scale, ++seed_),
            scale_rows * scale_cols * 4));
    return view;
  }
  TensorView Norm(int64_t size) {
    return TensorView(Own(UniformF32(size, 0.9f, 1.1f, ++seed_), size * 4), DType::kF32, {size});
  }
  TensorView Bias(int64_t size) {
    return TensorView(Own(RandomF32(size, 0.01f, ++seed_), size * 4), DType::kF32, {size});
  }
  model::MlpWeights Mlp(int64_t inner) {
    const int64_t hidden = config_.hidden_size;
    return {Matrix(inner, hidden), Matrix(inner, hidden), Matrix(hidden, inner)};
  }

  model::ModelWeights Take() { return std::move(weights_); }

 private:
  void* Own(DeviceMemory memory, int64_t bytes) {
    void* const data = memory.get();
    weights_.owners.push_back(std::shared_ptr<const void>(std::move(memory)));
    weights_.bytes += bytes;
    return data;
  }

  const model::ModelConfig& config_;
  uint64_t seed_;
  model::ModelWeights weights_;
};

model::LayerWeights MakeLayer(const model::ModelConfig& config, int64_t index, int64_t experts,
                              Maker* make) {
  const int64_t hidden = config.hidden_size, heads = config.num_attention_heads;
  const int64_t q_width = heads * config.qk_head_dim();
  model::LayerWeights layer;
  layer.input_norm = make->Norm(hidden);
  if (config.q_lora_rank == 0) {
    layer.q_proj = make->Matrix(q_width, hidden);
  } else {
    layer.q_a = make->Matrix(config.q_lora_rank, hidden);
    layer.q_a_norm = make->Norm(config.q_lora_rank);
    layer.q_b = make->Matrix(q_width, config.q_lora_rank);
  }
  layer.kv_a = make->Matrix(config.kv_dim(), hidden);
  layer.kv_a_norm = make->Norm(config.kv_lora_rank);
  layer.kv_b =
      make->Matrix(heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank);
  layer.o = make->Matrix(hidden, heads * config.v_head_dim);
  layer.post_attention_norm = make->Norm(hidden);
  if (!config.IsMoeLayer(index)) {
    layer.dense = make->Mlp(config.intermediate_size);
    return layer;
  }
  model::LayerWeights::Moe& moe = layer.moe.emplace();
  moe.gate = make->Bf16(config.n_routed_experts, hidden, 1 / std::sqrt(double(hidden)));
  if (config.topk_method == model::TopkMethod::kNoAuxTc) {
    moe.bias = make->Bias(config.n_routed_experts);
  }
  moe.slot_of_expert.assign(config.n_routed_experts, -1);
  for (int64_t expert = 0; expert < experts; ++expert) {
    moe.slot_of_expert[expert] = static_cast<int32_t>(expert);
    moe.experts.push_back(make->Mlp(config.moe_intermediate_size));
  }
  if (config.n_shared_experts > 0) {
    moe.shared = make->Mlp(config.n_shared_experts * config.moe_intermediate_size);
  }
  return layer;
}

}  // namespace

std::shared_ptr<const model::ModelWeights> RandomDeviceWeights(const model::ModelConfig& config,
                                                               int64_t experts, uint64_t seed) {
  Maker make(config, seed);
  const double stddev = 1 / std::sqrt(static_cast<double>(config.hidden_size));
  const WeightView embed = make.Bf16(config.vocab_size, config.hidden_size, 1);
  const WeightView head = make.Bf16(config.vocab_size, config.hidden_size, stddev);
  const TensorView final_norm = make.Norm(config.hidden_size);
  std::vector<model::LayerWeights> layers;
  for (int64_t index = 0; index < config.num_hidden_layers; ++index) {
    layers.push_back(MakeLayer(config, index, experts, &make));
  }
  model::ModelWeights weights = make.Take();
  weights.embed = embed;
  weights.head = head;
  weights.final_norm = final_norm;
  weights.layers = std::move(layers);
  weights.on_device = true;
  return std::make_shared<const model::ModelWeights>(std::move(weights));
}

}  // namespace sluice::bench
