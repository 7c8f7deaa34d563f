#include "services/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "services/base/json.h"
#include "services/base/mapped_file.h"

namespace sluice::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kConfigs[] = "services/model/testdata/configs/";

ModelConfig Load(const std::string& name) {
  const std::string path = kConfigs + name + ".json";
  const auto text = ReadFile(path, 1 << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  const auto config = ParseModelConfig(*text, path);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.value_or(ModelConfig());
}

// deepseek_v3.json with some fields replaced (RFC 7386: null removes, so nulls are set by hand).
std::string V3With(const std::string& patch) {
  nlohmann::json config = *ReadJsonFile(std::string(kConfigs) + "deepseek_v3.json", 1 << 20);
  const auto changes = nlohmann::json::parse(patch);
  for (const auto& [key, value] : changes.items()) config[key] = value;
  return config.dump();
}

TEST(ModelConfigTest, KnownModels) {
  const struct {
    const char* name;
    Family family;
    int64_t layers, heads, q_lora, experts, groups, topk_groups, vocab, dense_layers, mtp;
    Scoring scoring;
    TopkMethod method;
    double routed_scaling, softmax_scale;
    bool fp8;
  } cases[] = {
      // clang-format off
      {"deepseek_v3", Family::kDeepseekV3, 61, 128, 1536, 256, 8, 4, 129280, 3, 1,
       Scoring::kSigmoid, TopkMethod::kNoAuxTc, 2.5, 0.135233779, true},
      {"deepseek_r1", Family::kDeepseekV3, 61, 128, 1536, 256, 8, 4, 129280, 3, 1,
       Scoring::kSigmoid, TopkMethod::kNoAuxTc, 2.5, 0.135233779, true},
      {"deepseek_v3_1", Family::kDeepseekV3, 61, 128, 1536, 256, 8, 4, 129280, 3, 1,
       Scoring::kSigmoid, TopkMethod::kNoAuxTc, 2.5, 0.135233779, true},
      {"kimi_k2", Family::kDeepseekV3, 61, 64, 1536, 384, 1, 1, 163840, 1, 0,
       Scoring::kSigmoid, TopkMethod::kNoAuxTc, 2.827, 0.130860800, true},
      {"deepseek_v2", Family::kDeepseekV2, 60, 128, 1536, 160, 8, 3, 102400, 1, 0,
       Scoring::kSoftmax, TopkMethod::kGroupLimitedGreedy, 16, 0.114721387, false},
      {"deepseek_v2_lite", Family::kDeepseekV2, 27, 16, 0, 64, 1, 1, 102400, 1, 0,
       Scoring::kSoftmax, TopkMethod::kGreedy, 1, 0.114721387, false},
      // clang-format on
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const ModelConfig config = Load(c.name);
    EXPECT_EQ(config.family, c.family);
    EXPECT_EQ(config.num_hidden_layers, c.layers);
    EXPECT_EQ(config.num_attention_heads, c.heads);
    EXPECT_EQ(config.q_lora_rank, c.q_lora);
    EXPECT_EQ(config.n_routed_experts, c.experts);
    EXPECT_EQ(config.n_group, c.groups);
    EXPECT_EQ(config.topk_group, c.topk_groups);
    EXPECT_EQ(config.vocab_size, c.vocab);
    EXPECT_EQ(config.first_k_dense_replace, c.dense_layers);
    EXPECT_EQ(config.num_nextn_predict_layers, c.mtp);
    EXPECT_EQ(config.scoring, c.scoring);
    EXPECT_EQ(config.topk_method, c.method);
    EXPECT_EQ(config.routed_scaling_factor, c.routed_scaling);
    EXPECT_NEAR(config.SoftmaxScale(), c.softmax_scale, 1e-9);
    EXPECT_EQ(config.fp8, c.fp8);
    EXPECT_EQ(config.kv_dim(), 576);
    EXPECT_FALSE(config.tie_word_embeddings);
    EXPECT_FALSE(config.IsMoeLayer(c.dense_layers - 1));
    EXPECT_TRUE(config.IsMoeLayer(c.dense_layers));
  }
}

TEST(ModelConfigTest, TheRestOfDeepseekV3) {
  const ModelConfig config = Load("deepseek_v3");
  EXPECT_EQ(config.hidden_size, 7168);
  EXPECT_EQ(config.kv_lora_rank, 512);
  EXPECT_EQ(config.qk_nope_head_dim, 128);
  EXPECT_EQ(config.qk_rope_head_dim, 64);
  EXPECT_EQ(config.v_head_dim, 128);
  EXPECT_EQ(config.intermediate_size, 18432);
  EXPECT_EQ(config.moe_intermediate_size, 2048);
  EXPECT_EQ(config.n_shared_experts, 1);
  EXPECT_EQ(config.num_experts_per_tok, 8);
  EXPECT_EQ(config.moe_layer_freq, 1);
  EXPECT_TRUE(config.norm_topk_prob);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope_theta, 10000);
  EXPECT_EQ(config.max_position_embeddings, 163840);
  EXPECT_EQ(config.fp8_block, 128);
  EXPECT_EQ(config.bos_token_id, 0);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(1));
  ASSERT_TRUE(config.yarn.has_value());
  EXPECT_EQ(config.yarn->factor, 40);
  EXPECT_EQ(config.yarn->beta_fast, 32);
  EXPECT_EQ(config.yarn->beta_slow, 1);
  EXPECT_EQ(config.yarn->mscale, 1);
  EXPECT_EQ(config.yarn->mscale_all_dim, 1);
  EXPECT_EQ(config.yarn->original_max_position_embeddings, 4096);
}

TEST(ModelConfigTest, AbsentFieldsHaveTransformersDefaults) {
  const auto v3 = ParseModelConfig(R"({"model_type": "deepseek_v3"})", "config.json");
  ASSERT_TRUE(v3.ok()) << v3.status();
  EXPECT_EQ(v3->num_hidden_layers, 61);
  EXPECT_EQ(v3->max_position_embeddings, 4096);
  EXPECT_EQ(v3->scoring, Scoring::kSigmoid);
  EXPECT_EQ(v3->num_nextn_predict_layers, 1);
  EXPECT_FALSE(v3->yarn.has_value());
  EXPECT_NEAR(v3->SoftmaxScale(), 0.072168784, 1e-9);
  const auto v2 = ParseModelConfig(
      R"({"model_type": "deepseek_v2", "num_experts_per_tok": 6, "n_group": null})", "config.json");
  ASSERT_TRUE(v2.ok()) << v2.status();
  EXPECT_EQ(v2->q_lora_rank, 1536);
  EXPECT_EQ(v2->n_shared_experts, 2);
  EXPECT_EQ(v2->topk_method, TopkMethod::kGreedy);
  EXPECT_EQ(v2->n_group, 1);
  EXPECT_EQ(v2->num_nextn_predict_layers, 0);
  EXPECT_THAT(v2->eos_token_ids, ElementsAre(2));
}

TEST(ModelConfigTest, AcceptedForms) {
  const struct {
    const char* name;
    const char* patch;
    void (*check)(const ModelConfig&);
  } cases[] = {
      {"rope_parameters of transformers 5",
       R"({"rope_scaling": null, "rope_theta": null, "rope_parameters":
           {"rope_type": "yarn", "type": "yarn", "rope_theta": 5e4, "factor": 4,
            "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 512}})",
       [](const ModelConfig& c) {
         EXPECT_EQ(c.rope_theta, 5e4);
         EXPECT_EQ(c.yarn->factor, 4);
         EXPECT_EQ(c.yarn->beta_fast, 32);
       }},
      {"rope_parameters without scaling",
       R"({"rope_scaling": null, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}})",
       [](const ModelConfig& c) {
         EXPECT_FALSE(c.yarn.has_value());
         EXPECT_EQ(c.rope_theta, 7);
       }},
      {"yarn without mscale",
       R"({"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 9}})",
       [](const ModelConfig& c) {
         EXPECT_EQ(c.yarn->mscale, 1);
         EXPECT_EQ(c.yarn->mscale_all_dim, 0);
         EXPECT_NEAR(c.SoftmaxScale(), 0.072168784, 1e-9);
       }},
      {"MTP under its newer name", R"({"num_nextn_predict_layers": null, "num_mtp_layers": 0})",
       [](const ModelConfig& c) { EXPECT_EQ(c.num_nextn_predict_layers, 0); }},
      {"no low-rank query", R"({"q_lora_rank": null})",
       [](const ModelConfig& c) { EXPECT_EQ(c.q_lora_rank, 0); }},
      {"no experts", R"({"n_routed_experts": null, "n_shared_experts": null})",
       [](const ModelConfig& c) {
         EXPECT_EQ(c.n_routed_experts, 0);
         EXPECT_FALSE(c.IsMoeLayer(60));
       }},
      {"not quantised", R"({"quantization_config": null})",
       [](const ModelConfig& c) { EXPECT_FALSE(c.fp8); }},
      {"several end tokens", R"({"eos_token_id": [1, 129279], "bos_token_id": null})",
       [](const ModelConfig& c) {
         EXPECT_THAT(c.eos_token_ids, ElementsAre(1, 129279));
         EXPECT_EQ(c.bos_token_id, -1);
       }},
      {"no end token", R"({"eos_token_id": null})",
       [](const ModelConfig& c) { EXPECT_THAT(c.eos_token_ids, IsEmpty()); }},
      {"every second layer", R"({"moe_layer_freq": 2})",
       [](const ModelConfig& c) {
         EXPECT_FALSE(c.IsMoeLayer(3));
         EXPECT_TRUE(c.IsMoeLayer(4));
       }},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const auto config = ParseModelConfig(V3With(c.patch), "config.json");
    ASSERT_TRUE(config.ok()) << config.status();
    c.check(*config);
  }
}

TEST(ModelConfigTest, ErrorsNameFieldValueAndLimit) {
  const struct {
    const char* patch;
    const char* wanted;
  } cases[] = {
      {R"({"model_type": "llama"})", "model_type is \"llama\", wanted one of deepseek_v3"},
      {R"({"model_type": null})", "model_type is null, wanted deepseek_v3"},
      {R"({"hidden_size": 0})", "hidden_size is 0, wanted an integer from 1 to 65536"},
      {R"({"hidden_size": -7168})", "hidden_size is -7168,"},
      {R"({"hidden_size": 7168.0})", "hidden_size is 7168.0, wanted an integer"},
      {R"({"hidden_size": "7168"})", "hidden_size is \"7168\", wanted an integer"},
      {R"({"hidden_size": 18446744073709551615})", "hidden_size is 18446744073709551615,"},
      {R"({"num_hidden_layers": 100000000})", "num_hidden_layers is 100000000,"},
      {R"({"vocab_size": 1e30})", "vocab_size is 1e+30,"},
      {R"({"qk_rope_head_dim": 63})", "qk_rope_head_dim is 63, wanted an even number"},
      {R"({"num_key_value_heads": 8})", "num_key_value_heads is 8, wanted num_attention_heads"},
      {R"({"n_group": 7})", "n_group is 7, wanted a divisor of n_routed_experts, 256"},
      {R"({"n_group": 256, "topk_group": 8})",
       "n_group is 256, wanted groups of at least two experts"},
      {R"({"topk_group": 9})", "topk_group is 9, wanted at most n_group, 8"},
      {R"({"topk_group": 1, "num_experts_per_tok": 33})",
       "num_experts_per_tok is 33, wanted at most the 32 experts of topk_group groups"},
      {R"({"n_routed_experts": 16384})", "n_routed_experts is 16384, wanted at most 131072 over"},
      {R"({"num_experts_per_tok": 0})", "num_experts_per_tok is 0, wanted an integer from 1"},
      {R"({"num_nextn_predict_layers": 2})", "num_nextn_predict_layers is 2,"},
      {R"({"scoring_func": "softmax"})", "scoring_func is \"softmax\", wanted one of sigmoid"},
      {R"({"topk_method": "greedy"})", "topk_method is \"greedy\", wanted one of noaux_tc"},
      {R"({"norm_topk_prob": 1})", "norm_topk_prob is 1, wanted true or false"},
      {R"({"hidden_act": "gelu"})", "hidden_act is \"gelu\", wanted \"silu\""},
      {R"({"attention_bias": true})", "attention_bias is true, wanted false"},
      {R"({"rope_interleave": false})", "rope_interleave is false, wanted true"},
      {R"({"rms_norm_eps": 0})", "rms_norm_eps is 0, wanted a number from"},
      {R"({"rope_theta": 1})", "rope_theta is 1, wanted a number from"},
      {R"({"rope_scaling": 4})", "rope_scaling is 4, wanted an object or null"},
      {R"({"rope_scaling": {"type": "linear", "factor": 2}})",
       "rope_scaling.rope_type is \"linear\", wanted one of default, yarn"},
      {R"({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 4096}})",
       "rope_scaling.factor is null, wanted a number from 1"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 4}})",
       "rope_scaling.original_max_position_embeddings is null, wanted an integer from 1"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 4, "mscale_all_dim": 1,
                            "original_max_position_embeddings": 4096}})",
       "rope_scaling.mscale_all_dim is 1.0, wanted mscale and mscale_all_dim given together"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 32,
                            "original_max_position_embeddings": 4096}})",
       "rope_scaling.beta_fast is 1.0, wanted at least beta_slow, 32"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 1.2,
                            "original_max_position_embeddings": 4096}})",
       "rope_scaling.attention_factor is 1.2, wanted null"},
      {R"({"quantization_config": {"quant_method": "awq", "bits": 4}})",
       "quantization_config.quant_method is \"awq\", wanted \"fp8\""},
      {R"({"quantization_config": {"quant_method": "fp8"}})",
       "quantization_config.weight_block_size is null, wanted [128, 128]"},
      {R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}})",
       "quantization_config.weight_block_size is [64,64], wanted [128,128]"},
      {R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128],
                                   "fmt": "e5m2"}})",
       "quantization_config.fmt is \"e5m2\", wanted \"e4m3\""},
      {R"({"eos_token_id": 129280})", "eos_token_id is 129280, wanted token ids from 0 to 129279"},
      {R"({"eos_token_id": [1, -1]})", "eos_token_id is [1,-1], wanted token ids"},
      {R"({"bos_token_id": "x"})", "bos_token_id is \"x\", wanted an integer"},
  };
  for (const auto& c : cases) {
    const auto config = ParseModelConfig(V3With(c.patch), "DIR/config.json");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << c.patch;
    const std::string message(config.status().message());
    EXPECT_THAT(message, HasSubstr(std::string("DIR/config.json: ") + c.wanted)) << c.patch;
    EXPECT_THAT(message, Not(HasSubstr("\n"))) << c.patch;  // one fault, one complaint
  }
  EXPECT_THAT(ParseModelConfig("[]", "c.json").status().message(),
              HasSubstr("c.json: is not a JSON object"));
}

TEST(ModelConfigTest, V2IsStrictWhereImplementationsDisagree) {
  const auto config = ParseModelConfig(
      R"({"model_type": "deepseek_v2", "norm_topk_prob": true, "scoring_func": "sigmoid"})", "c");
  EXPECT_THAT(config.status().message(), HasSubstr("norm_topk_prob is true, wanted false"));
  EXPECT_THAT(config.status().message(), HasSubstr("scoring_func is \"sigmoid\", wanted one of "
                                                   "softmax"));
  EXPECT_THAT(config.status().message(), HasSubstr("num_experts_per_tok is null, wanted"));
}

TEST(LoadModelConfigTest, AddsTheEndTokensOfGenerationConfig) {
  const std::string dir = testing::TempDir() + "/load_model_config";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directory(dir);
  EXPECT_EQ(LoadModelConfig(dir).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(WriteFile(dir + "/config.json", V3With("{}")).ok());
  EXPECT_THAT(LoadModelConfig(dir)->eos_token_ids, ElementsAre(1));
  ASSERT_TRUE(WriteFile(dir + "/generation_config.json", R"({"eos_token_id": [7, 1]})").ok());
  EXPECT_THAT(LoadModelConfig(dir)->eos_token_ids, ElementsAre(1, 7));
  ASSERT_TRUE(WriteFile(dir + "/generation_config.json", R"({"eos_token_id": 1.5})").ok());
  EXPECT_THAT(LoadModelConfig(dir).status().message(),
              HasSubstr("generation_config.json: eos_token_id is 1.5, wanted token ids"));
  ASSERT_TRUE(WriteFile(dir + "/generation_config.json", "{").ok());
  EXPECT_THAT(LoadModelConfig(dir).status().message(), HasSubstr("is not JSON"));
}

}  // namespace
}  // namespace sluice::model
