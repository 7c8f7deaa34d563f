#include "services/model/tensor_manifest.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::model {
namespace {

class ManifestBuilder {
 public:
  explicit ManifestBuilder(const ModelConfig& config) : config_(config) {}

  std::vector<TensorSpec> Build() {
    const int64_t vocab = config_.vocab_size;
    const int64_t hidden = config_.hidden_size;
    const int64_t layers = config_.num_hidden_layers;
    Matrix(TensorRole::kEmbed, "model.embed_tokens", vocab, hidden);
    for (layer_ = 0; layer_ < layers; ++layer_) AddLayer();
    layer_ = -1;
    Vector(TensorRole::kFinalNorm, "model.norm.weight", hidden);
    need_ = config_.tie_word_embeddings ? TensorNeed::kTied : TensorNeed::kRequired;
    Matrix(TensorRole::kHead, "lm_head", vocab, hidden);
    if (config_.num_nextn_predict_layers > 0) {
      layer_ = layers;
      AddMtp();
    }
    return std::move(specs_);
  }

 private:
  void Vector(TensorRole role, const std::string& name, int64_t size) {
    specs_.push_back({.role = role, .need = need_, .layer = layer_, .name = name, .rows = size});
  }
  void Matrix(TensorRole role, const std::string& name, int64_t rows, int64_t cols,
              bool quantized = false, int32_t expert = -1) {
    specs_.push_back({.role = role,
                      .need = need_,
                      .layer = layer_,
                      .expert = expert,
                      .name = name + ".weight",
                      .rows = rows,
                      .cols = cols,
                      .quantized = quantized});
  }
  void Quantized(TensorRole role, const std::string& name, int64_t rows, int64_t cols,
                 int32_t expert = -1) {
    Matrix(role, name, rows, cols, /*quantized=*/true, expert);
  }

  void AddLayer() {
    const std::string prefix = absl::StrCat("model.layers.", layer_, ".");
    Vector(TensorRole::kInputNorm, prefix + "input_layernorm.weight", config_.hidden_size);
    AddAttention(prefix + "self_attn.");
    Vector(TensorRole::kPostAttentionNorm, prefix + "post_attention_layernorm.weight",
           config_.hidden_size);
    if (config_.IsMoeLayer(layer_)) {
      AddExperts(prefix + "mlp.");
    } else {
      AddMlp(TensorRole::kDenseGate, prefix + "mlp.", config_.intermediate_size);
    }
  }

  void AddAttention(const std::string& prefix) {
    const int64_t hidden = config_.hidden_size;
    const int64_t heads = config_.num_attention_heads;
    const int64_t q_rows = heads * config_.qk_head_dim();
    if (config_.q_lora_rank == 0) {
      Quantized(TensorRole::kQProj, prefix + "q_proj", q_rows, hidden);
    } else {
      Quantized(TensorRole::kQA, prefix + "q_a_proj", config_.q_lora_rank, hidden);
      Vector(TensorRole::kQANorm, prefix + "q_a_layernorm.weight", config_.q_lora_rank);
      Quantized(TensorRole::kQB, prefix + "q_b_proj", q_rows, config_.q_lora_rank);
    }
    Quantized(TensorRole::kKvA, prefix + "kv_a_proj_with_mqa", config_.kv_dim(), hidden);
    Vector(TensorRole::kKvANorm, prefix + "kv_a_layernorm.weight", config_.kv_lora_rank);
    Quantized(TensorRole::kKvB, prefix + "kv_b_proj",
              heads * (config_.qk_nope_head_dim + config_.v_head_dim), config_.kv_lora_rank);
    Quantized(TensorRole::kO, prefix + "o_proj", hidden, heads * config_.v_head_dim);
  }

  // `gate` is the first of three successive roles.
  void AddMlp(TensorRole gate, const std::string& prefix, int64_t width, int32_t expert = -1) {
    const int64_t hidden = config_.hidden_size;
    const auto role = [&](int i) { return static_cast<TensorRole>(static_cast<int>(gate) + i); };
    Quantized(role(0), prefix + "gate_proj", width, hidden, expert);
    Quantized(role(1), prefix + "up_proj", width, hidden, expert);
    Quantized(role(2), prefix + "down_proj", hidden, width, expert);
  }

  void AddExperts(const std::string& prefix) {
    const int64_t experts = config_.n_routed_experts;
    const int64_t width = config_.moe_intermediate_size;
    Matrix(TensorRole::kRouter, prefix + "gate", experts, config_.hidden_size);
    if (config_.topk_method == TopkMethod::kNoAuxTc) {
      Vector(TensorRole::kRouterBias, prefix + "gate.e_score_correction_bias", experts);
    }
    for (int32_t expert = 0; expert < experts; ++expert) {
      AddMlp(TensorRole::kExpertGate, absl::StrCat(prefix, "experts.", expert, "."), width, expert);
    }
    if (config_.n_shared_experts > 0) {
      AddMlp(TensorRole::kSharedGate, prefix + "shared_experts.", config_.n_shared_experts * width);
    }
  }

  void AddMtp() {
    const int64_t hidden = config_.hidden_size;
    const std::string prefix = absl::StrCat("model.layers.", layer_, ".");
    need_ = TensorNeed::kMtpShared;
    Matrix(TensorRole::kMtpEmbed, prefix + "embed_tokens", config_.vocab_size, hidden);
    Matrix(TensorRole::kMtpHead, prefix + "shared_head.head", config_.vocab_size, hidden);
    need_ = TensorNeed::kMtp;
    Vector(TensorRole::kMtpEmbedNorm, prefix + "enorm.weight", hidden);
    Vector(TensorRole::kMtpHiddenNorm, prefix + "hnorm.weight", hidden);
    Matrix(TensorRole::kMtpProj, prefix + "eh_proj", hidden, 2 * hidden);
    AddLayer();
    Vector(TensorRole::kMtpHeadNorm, prefix + "shared_head.norm.weight", hidden);
  }

  const ModelConfig& config_;
  int64_t layer_ = -1;
  TensorNeed need_ = TensorNeed::kRequired;
  std::vector<TensorSpec> specs_;
};

}  // namespace

std::vector<int64_t> TensorSpec::shape() const {
  return is_vector() ? std::vector<int64_t>{rows} : std::vector<int64_t>{rows, cols};
}

std::vector<int64_t> TensorSpec::scale_shape(int64_t block) const {
  return {(rows + block - 1) / block, (cols + block - 1) / block};
}

std::vector<TensorSpec> ExpectedTensors(const ModelConfig& config) {
  return ManifestBuilder(config).Build();
}

}  // namespace sluice::model
