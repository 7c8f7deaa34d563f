// The dimensions and switches of one DeepSeek-family model, as its config.json gives them, checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice::model {

enum class Family { kDeepseekV2, kDeepseekV3 };
enum class Scoring { kSigmoid, kSoftmax };
enum class TopkMethod { kGreedy, kGroupLimitedGreedy, kNoAuxTc };

// YaRN: rope_scaling of type "yarn".
struct YarnScaling {
  double factor = 1;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 0;
  int64_t original_max_position_embeddings = 4096;
};

struct ModelConfig {
  Family family = Family::kDeepseekV3;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;  // without MTP layers
  int64_t num_attention_heads = 0;
  int64_t q_lora_rank = 0;  // 0: q is projected directly (q_proj)
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;

  int64_t intermediate_size = 0;      // dense layers
  int64_t moe_intermediate_size = 0;  // one expert
  int64_t n_routed_experts = 0;       // 0: no mixture of experts at all
  int64_t n_shared_experts = 0;       // the shared expert is this many times as wide
  int64_t num_experts_per_tok = 0;
  int64_t first_k_dense_replace = 0;
  int64_t moe_layer_freq = 1;
  int64_t n_group = 1;
  int64_t topk_group = 1;
  Scoring scoring = Scoring::kSigmoid;
  TopkMethod topk_method = TopkMethod::kNoAuxTc;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1;

  double rms_norm_eps = 1e-6;  // of the layer norms; the q and kv latent norms always use 1e-6
  double rope_theta = 10000;
  std::optional<YarnScaling> yarn;
  int64_t max_position_embeddings = 0;
  bool tie_word_embeddings = false;
  int64_t num_nextn_predict_layers = 0;

  bool fp8 = false;  // quantization_config: fp8 e4m3 in blocks
  int64_t fp8_block = 128;

  int32_t bos_token_id = -1;           // -1: none
  std::vector<int32_t> eos_token_ids;  // config.json's and generation_config.json's together

  bool IsMoeLayer(int64_t layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t kv_dim() const { return kv_lora_rank + qk_rope_head_dim; }
  // qk_head_dim^-0.5, times YaRN's mscale(factor, mscale_all_dim) squared.
  double SoftmaxScale() const;
};

// Reads config.json's text; `origin` names the file in errors. Every error is InvalidArgument and
// names the field, the value and what is allowed.
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json, absl::string_view origin);

// Reads DIR/config.json and, if present, DIR/generation_config.json (eos ids).
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir);

}  // namespace sluice::model
