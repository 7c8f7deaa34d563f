#include "services/model/model_config.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status.h"
#include "services/base/json.h"
#include "services/base/mapped_file.h"

namespace sluice::model {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = 4 << 20;

// Reads fields of one JSON object and collects what is wrong with them, so that a person sees every
// reason at once. A field that is absent or null has its default.
class Fields {
 public:
  Fields(const json& object, std::string where, std::vector<std::string>& problems)
      : object_(object), where_(std::move(where)), problems_(problems) {}

  // The field under the first of these names that is present and not null; null if none is.
  const json& Find(std::initializer_list<const char*> names) const {
    static const json kNull;
    for (const char* name : names) {
      const auto found = object_.find(name);
      if (found != object_.end() && !found->is_null()) return *found;
    }
    return kNull;
  }
  bool Has(const char* name) const { return !Find({name}).is_null(); }

  void Complain(absl::string_view name, const json& value, absl::string_view wanted) const {
    problems_.push_back(
        absl::StrCat(where_, name, " is ", JsonForMessage(value), ", wanted ", wanted));
  }

  // `names`: the field's name, then other names it goes by.
  int64_t Int(std::initializer_list<const char*> names, int64_t absent, int64_t low,
              int64_t high) const {
    const json& value = Find(names);
    if (value.is_null() && absent >= low) return absent;
    // An unsigned value above INT64_MAX becomes negative here and is refused below.
    const bool integer = value.is_number_integer();
    const int64_t number = integer ? value.get<int64_t>() : 0;
    const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX;
    if (integer && !huge && number >= low && number <= high) return number;
    Complain(*names.begin(), value, absl::StrCat("an integer from ", low, " to ", high));
    return std::max(low, std::min(absent, high));
  }

  double Number(const char* name, double absent, double low, double high) const {
    const json& value = Find({name});
    if (value.is_null() && absent >= low) return absent;
    if (value.is_number()) {
      const double number = value.get<double>();
      if (number >= low && number <= high) return number;
    }
    Complain(name, value, absl::StrCat("a number from ", low, " to ", high));
    return low;
  }

  bool Bool(const char* name, bool absent) const {
    const json& value = Find({name});
    if (value.is_null()) return absent;
    if (value.is_boolean()) return value.get<bool>();
    Complain(name, value, "true or false");
    return absent;
  }

  // The index of the field's value in `allowed`, the first of which is the default.
  size_t Choice(std::initializer_list<const char*> names,
                std::initializer_list<const char*> allowed) const {
    const json& value = Find(names);
    if (value.is_null()) return 0;
    if (value.is_string()) {
      const auto& text = value.get_ref<const std::string&>();
      const auto found = std::find(allowed.begin(), allowed.end(), text);
      if (found != allowed.end()) return static_cast<size_t>(found - allowed.begin());
    }
    Complain(*names.begin(), value, absl::StrCat("one of ", absl::StrJoin(allowed, ", ")));
    return 0;
  }

  // For switches that Sluice knows in one position only.
  void Require(const char* name, const json& only) const {
    const json& value = Find({name});
    if (!value.is_null() && value != only) Complain(name, value, only.dump());
  }

 private:
  const json& object_;
  const std::string where_;
  std::vector<std::string>& problems_;
};

class ConfigParser {
 public:
  ConfigParser(const json& root, absl::string_view origin)
      : root_(root), top_(root, absl::StrCat(origin, ": "), problems_), origin_(origin) {}

  absl::StatusOr<ModelConfig> Parse() {
    // deepseek_v3 is V3, V3.1 and R1; Kimi-K2 is the same architecture under its own name.
    const size_t type = top_.Choice({"model_type"}, {"deepseek_v3", "kimi_k2", "deepseek_v2"});
    if (!top_.Has("model_type")) {
      top_.Complain("model_type", nullptr, "deepseek_v3, kimi_k2 or deepseek_v2");
    }
    config_.family = type == 2 ? Family::kDeepseekV2 : Family::kDeepseekV3;
    v3_ = config_.family == Family::kDeepseekV3;
    if (!problems_.empty()) return Result();  // the other fields would be judged by wrong rules

    ParseDimensions();
    ParseExperts();
    ParseRope();
    ParseQuantization();
    ParseTokens();
    top_.Require("hidden_act", "silu");
    top_.Require("attention_bias", false);
    top_.Require("mlp_bias", false);
    if (v3_) top_.Require("rope_interleave", true);
    config_.rms_norm_eps = top_.Number("rms_norm_eps", 1e-6, 1e-12, 0.1);
    config_.tie_word_embeddings = top_.Bool("tie_word_embeddings", false);
    return Result();
  }

 private:
  // Defaults: transformers' DeepseekV3Config and DeepseekV2Config.
  void ParseDimensions() {
    config_.vocab_size = top_.Int({"vocab_size"}, v3_ ? 129280 : 102400, 1, 1 << 22);
    config_.hidden_size = top_.Int({"hidden_size"}, v3_ ? 7168 : 4096, 1, 1 << 16);
    config_.num_hidden_layers = top_.Int({"num_hidden_layers"}, v3_ ? 61 : 32, 1, 512);
    config_.num_attention_heads = top_.Int({"num_attention_heads"}, v3_ ? 128 : 32, 1, 1024);
    const int64_t kv_heads =
        top_.Int({"num_key_value_heads"}, config_.num_attention_heads, 1, 1024);
    if (kv_heads != config_.num_attention_heads) {
      top_.Complain("num_key_value_heads", kv_heads,
                    absl::StrCat("num_attention_heads, ", config_.num_attention_heads));
    }
    // null here means "no low-rank query", not "default".
    const bool null_q_lora = root_.contains("q_lora_rank") && root_["q_lora_rank"].is_null();
    config_.q_lora_rank = null_q_lora ? 0 : top_.Int({"q_lora_rank"}, 1536, 0, 1 << 16);
    config_.kv_lora_rank = top_.Int({"kv_lora_rank"}, 512, 1, 1 << 14);
    config_.qk_nope_head_dim = top_.Int({"qk_nope_head_dim"}, 128, 1, 4096);
    config_.qk_rope_head_dim = top_.Int({"qk_rope_head_dim"}, 64, 2, 4096);
    if (config_.qk_rope_head_dim % 2 != 0) {
      top_.Complain("qk_rope_head_dim", config_.qk_rope_head_dim, "an even number");
    }
    config_.v_head_dim = top_.Int({"v_head_dim"}, 128, 1, 4096);
    config_.intermediate_size = top_.Int({"intermediate_size"}, v3_ ? 18432 : 11008, 1, 1 << 20);
    config_.max_position_embeddings =
        top_.Int({"max_position_embeddings"}, v3_ ? 4096 : 2048, 1, 1 << 24);
    config_.num_nextn_predict_layers =
        top_.Int({"num_nextn_predict_layers", "num_mtp_layers"}, v3_ ? 1 : 0, 0, 1);
  }

  void ParseExperts() {
    const auto null_or = [&](std::initializer_list<const char*> names, int64_t absent,
                             int64_t high) {
      const bool null = root_.contains(*names.begin()) && root_[*names.begin()].is_null();
      return null ? 0 : top_.Int(names, absent, 0, high);
    };
    config_.n_routed_experts =
        null_or({"n_routed_experts", "num_local_experts", "num_experts"}, v3_ ? 256 : 64, 1 << 14);
    config_.n_shared_experts = null_or({"n_shared_experts"}, v3_ ? 1 : 2, 64);
    config_.moe_intermediate_size =
        top_.Int({"moe_intermediate_size"}, v3_ ? 2048 : 1407, 1, 1 << 18);
    config_.first_k_dense_replace = top_.Int({"first_k_dense_replace"}, v3_ ? 3 : 0, 0, 512);
    config_.moe_layer_freq = top_.Int({"moe_layer_freq"}, 1, 1, 512);
    config_.routed_scaling_factor =
        top_.Number("routed_scaling_factor", v3_ ? 2.5 : 1.0, 1e-6, 1e6);
    ParseGate();
    const int64_t experts = config_.n_routed_experts;
    if (experts == 0) return;
    config_.num_experts_per_tok =
        top_.Int({"num_experts_per_tok"}, v3_ ? 8 : 0, 1, std::min<int64_t>(experts, 64));
    constexpr int64_t kMaxExperts = 1 << 17;
    if (experts * config_.num_hidden_layers > kMaxExperts) {
      top_.Complain("n_routed_experts", experts,
                    absl::StrCat("at most ", kMaxExperts, " over all layers"));
    }
    if (config_.topk_method == TopkMethod::kGreedy) return;
    if (experts % config_.n_group != 0) {
      top_.Complain("n_group", config_.n_group,
                    absl::StrCat("a divisor of n_routed_experts, ", experts));
      return;
    }
    const int64_t group = experts / config_.n_group;
    if (config_.topk_group > config_.n_group) {
      top_.Complain("topk_group", config_.topk_group,
                    absl::StrCat("at most n_group, ", config_.n_group));
    } else if (config_.topk_group * group < config_.num_experts_per_tok) {
      top_.Complain("num_experts_per_tok", config_.num_experts_per_tok,
                    absl::StrCat("at most the ", config_.topk_group * group,
                                 " experts of topk_group groups"));
    }
    // A group's score is the sum of its two best experts.
    if (config_.topk_method == TopkMethod::kNoAuxTc && config_.n_group > 1 && group < 2) {
      top_.Complain("n_group", config_.n_group, "groups of at least two experts");
    }
  }

  void ParseGate() {
    if (v3_) {
      top_.Choice({"scoring_func"}, {"sigmoid"});
      top_.Choice({"topk_method"}, {"noaux_tc"});
      config_.scoring = Scoring::kSigmoid;
      config_.topk_method = TopkMethod::kNoAuxTc;
      config_.norm_topk_prob = top_.Bool("norm_topk_prob", true);
    } else {
      top_.Choice({"scoring_func"}, {"softmax"});
      config_.scoring = Scoring::kSoftmax;
      config_.topk_method = top_.Choice({"topk_method"}, {"greedy", "group_limited_greedy"}) == 0
                                ? TopkMethod::kGreedy
                                : TopkMethod::kGroupLimitedGreedy;
      // DeepSeek's code normalises and then leaves out routed_scaling_factor; transformers does
      // neither. No known V2 model sets it.
      top_.Require("norm_topk_prob", false);
      config_.norm_topk_prob = false;
    }
    const bool grouped = config_.topk_method != TopkMethod::kGreedy;
    config_.n_group = top_.Int({"n_group"}, v3_ ? 8 : 1, 1, 256);
    config_.topk_group = top_.Int({"topk_group"}, v3_ ? 4 : 1, 1, 256);
    if (!grouped) config_.n_group = config_.topk_group = 1;
  }

  // rope_scaling, or transformers 5's rope_parameters (which holds rope_theta too).
  void ParseRope() {
    config_.rope_theta = top_.Number("rope_theta", 10000, 1.001, 1e12);
    const char* name = top_.Has("rope_scaling") ? "rope_scaling" : "rope_parameters";
    const json& rope = top_.Find({name});
    if (rope.is_null()) return;
    if (!rope.is_object()) return top_.Complain(name, rope, "an object or null");
    const Fields fields(rope, absl::StrCat(origin_, ": ", name, "."), problems_);
    config_.rope_theta = fields.Number("rope_theta", config_.rope_theta, 1.001, 1e12);
    if (fields.Choice({"rope_type", "type"}, {"default", "yarn"}) == 0) return;
    YarnScaling yarn;
    yarn.factor = fields.Number("factor", 0, 1, 1e4);
    yarn.beta_fast = fields.Number("beta_fast", 32, 1e-3, 1e6);
    yarn.beta_slow = fields.Number("beta_slow", 1, 1e-3, 1e6);
    if (yarn.beta_fast < yarn.beta_slow) {
      fields.Complain("beta_fast", yarn.beta_fast,
                      absl::StrCat("at least beta_slow, ", yarn.beta_slow));
    }
    yarn.mscale = fields.Number("mscale", 1, 0, 100);
    yarn.mscale_all_dim = fields.Number("mscale_all_dim", 0, 0, 100);
    // With one of the two alone, DeepSeek's code and transformers scale differently.
    const bool both = fields.Has("mscale") && yarn.mscale > 0 && yarn.mscale_all_dim > 0;
    const bool neither = yarn.mscale == 1 && yarn.mscale_all_dim == 0;
    if (!both && !neither) {
      fields.Complain("mscale_all_dim", yarn.mscale_all_dim,
                      "mscale and mscale_all_dim given together, or neither");
    }
    yarn.original_max_position_embeddings =
        fields.Int({"original_max_position_embeddings"}, 0, 1, 1 << 24);
    fields.Require("attention_factor", nullptr);
    fields.Require("truncate", true);
    fields.Require("partial_rotary_factor", 1.0);
    config_.yarn = yarn;
  }

  void ParseQuantization() {
    const json& quantization = top_.Find({"quantization_config"});
    if (quantization.is_null()) return;
    if (!quantization.is_object()) {
      return top_.Complain("quantization_config", quantization, "an object or null");
    }
    const Fields fields(quantization, absl::StrCat(origin_, ": quantization_config."), problems_);
    const json& method = fields.Find({"quant_method"});
    if (method != "fp8") return fields.Complain("quant_method", method, "\"fp8\"");
    fields.Require("fmt", "e4m3");
    fields.Require("activation_scheme", "dynamic");
    if (!fields.Has("weight_block_size")) {
      fields.Complain("weight_block_size", nullptr, "[128, 128]");
    }
    fields.Require("weight_block_size", {128, 128});
    config_.fp8 = true;
    config_.fp8_block = 128;
  }

  void ParseTokens() {
    const int64_t last = config_.vocab_size - 1;
    const auto given_or = [&](const char* name, int64_t absent) {
      return root_.contains(name) ? -1 : std::min(absent, last);
    };
    if (top_.Has("bos_token_id") || given_or("bos_token_id", 0) >= 0) {
      config_.bos_token_id = static_cast<int32_t>(top_.Int({"bos_token_id"}, v3_ ? 0 : 1, 0, last));
    }
    const json& eos = top_.Find({"eos_token_id"});
    if (eos.is_null()) {
      const int64_t absent = given_or("eos_token_id", v3_ ? 1 : 2);
      if (absent >= 0) config_.eos_token_ids = {static_cast<int32_t>(absent)};
      return;
    }
    for (const json& id : eos.is_array() ? eos : json::array({eos})) {
      if (!id.is_number_integer() || id < 0 || id > last) {
        return top_.Complain("eos_token_id", eos,
                             absl::StrCat("token ids from 0 to ", last, " (vocab_size - 1)"));
      }
      config_.eos_token_ids.push_back(id.get<int32_t>());
    }
  }

  absl::StatusOr<ModelConfig> Result() const {
    if (problems_.empty()) return config_;
    return absl::InvalidArgumentError(absl::StrJoin(problems_, "\n"));
  }

  const json& root_;
  std::vector<std::string> problems_;
  const Fields top_;
  const std::string origin_;
  ModelConfig config_;
  bool v3_ = true;
};

// generation_config.json may name further end tokens (chat models do).
absl::Status AddGenerationEos(const std::string& path, ModelConfig& config) {
  absl::StatusOr<json> generation = ReadJsonFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(generation.status())) return absl::OkStatus();
  if (!generation.ok()) return generation.status();
  if (!generation->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a JSON object"));
  }
  const auto found = generation->find("eos_token_id");
  if (found == generation->end() || found->is_null()) return absl::OkStatus();
  for (const json& id : found->is_array() ? *found : json::array({*found})) {
    if (!id.is_number_integer() || id < 0 || id >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": eos_token_id is ", JsonForMessage(*found),
                       ", wanted token ids from 0 to ", config.vocab_size - 1));
    }
    const int32_t token = id.get<int32_t>();
    auto& ids = config.eos_token_ids;
    if (std::find(ids.begin(), ids.end(), token) == ids.end()) ids.push_back(token);
  }
  return absl::OkStatus();
}

}  // namespace

double ModelConfig::SoftmaxScale() const {
  const double scale = 1 / std::sqrt(static_cast<double>(qk_head_dim()));
  if (!yarn || yarn->factor <= 1) return scale;
  const double mscale = 0.1 * yarn->mscale_all_dim * std::log(yarn->factor) + 1;
  return scale * mscale * mscale;
}

absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view text, absl::string_view origin) {
  SLUICE_ASSIGN_OR_RETURN(const json root, ParseJson(text, origin));
  if (!root.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": is not a JSON object"));
  }
  return ConfigParser(root, origin).Parse();
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir) {
  const std::string path = dir + "/config.json";
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  SLUICE_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(text, path));
  SLUICE_RETURN_IF_ERROR(AddGenerationEos(dir + "/generation_config.json", config));
  return config;
}

}  // namespace sluice::model
