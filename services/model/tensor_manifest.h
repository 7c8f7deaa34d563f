// Every tensor a checkpoint of a given configuration must or may hold: the one place that knows
// their names and shapes. The loader, the generator of random weights and the inspector all follow
// this list. Source: the listing of deepseek-ai/DeepSeek-V3 and DeepSeek-V2-Lite.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "services/model/model_config.h"

namespace sluice::model {

// What a tensor is in its layer: the field of ModelWeights it fills.
enum class TensorRole : uint8_t {
  kEmbed,
  kFinalNorm,
  kHead,
  kInputNorm,
  kQProj,
  kQA,
  kQANorm,
  kQB,
  kKvA,
  kKvANorm,
  kKvB,
  kO,
  kPostAttentionNorm,
  kDenseGate,
  kDenseUp,
  kDenseDown,
  kRouter,
  kRouterBias,
  kExpertGate,
  kExpertUp,
  kExpertDown,
  kSharedGate,
  kSharedUp,
  kSharedDown,
  kMtpEmbed,
  kMtpEmbedNorm,
  kMtpHiddenNorm,
  kMtpProj,
  kMtpHeadNorm,
  kMtpHead,
};

enum class TensorNeed : uint8_t {
  kRequired,
  kTied,       // lm_head of tied embeddings: may be there, is never read
  kMtp,        // the MTP module: all of it or nothing
  kMtpShared,  // may be absent from an MTP module, which then uses the main model's
};

struct TensorSpec {
  TensorRole role = TensorRole::kEmbed;
  TensorNeed need = TensorNeed::kRequired;
  int64_t layer = -1;   // num_hidden_layers: the MTP module
  int32_t expert = -1;  // of routed experts
  std::string name;     // as checkpoints have it
  int64_t rows = 0;
  int64_t cols = 0;        // 0: a vector of `rows`
  bool quantized = false;  // stored as FP8 with a scale tensor when the configuration says fp8

  bool is_vector() const { return cols == 0; }
  std::vector<int64_t> shape() const;
  // Of an FP8 tensor: NAME_scale_inv, one f32 per block.
  std::string scale_name() const { return name + "_scale_inv"; }
  std::vector<int64_t> scale_shape(int64_t block) const;
};

// In the order of layers; the MTP module, if the configuration has one, comes last.
std::vector<TensorSpec> ExpectedTensors(const ModelConfig& config);

}  // namespace sluice::model
