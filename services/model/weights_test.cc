#include "services/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/float_convert.h"
#include "services/base/json.h"
#include "services/base/mapped_file.h"
#include "services/model/testing_checkpoint.h"

namespace sluice::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

float Stored(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[index];
    case DType::kBF16:
      return Bf16ToF32(static_cast<const uint16_t*>(data)[index]);
    case DType::kF16:
      return F16ToF32(static_cast<const uint16_t*>(data)[index]);
    default:
      return F8E4M3ToF32(static_cast<const uint8_t*>(data)[index]);
  }
}

// The values a matrix stands for.
std::vector<float> Values(const WeightView& view) {
  std::vector<float> values;
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int64_t col = 0; col < view.cols; ++col) {
      values.push_back(Stored(view.data, view.dtype, row * view.row_stride + col) *
                       view.ScaleAt(row, col));
    }
  }
  return values;
}

std::vector<float> Values(const TensorView& view) {
  const float* data = view.As<float>();
  return {data, data + view.rows()};
}

using MatrixVisitor = std::function<void(const std::string&, const WeightView&)>;
using VectorVisitor = std::function<void(const std::string&, const TensorView&)>;

void VisitMlp(const std::string& name, const MlpWeights& mlp, const MatrixVisitor& matrix) {
  matrix(name + "gate", mlp.gate);
  matrix(name + "up", mlp.up);
  matrix(name + "down", mlp.down);
}

void VisitLayer(const std::string& name, const LayerWeights& layer, const MatrixVisitor& matrix,
                const VectorVisitor& vector) {
  vector(name + "input_norm", layer.input_norm);
  matrix(name + "q_proj", layer.q_proj);
  matrix(name + "q_a", layer.q_a);
  vector(name + "q_a_norm", layer.q_a_norm);
  matrix(name + "q_b", layer.q_b);
  matrix(name + "kv_a", layer.kv_a);
  vector(name + "kv_a_norm", layer.kv_a_norm);
  matrix(name + "kv_b", layer.kv_b);
  matrix(name + "o", layer.o);
  vector(name + "post_attention_norm", layer.post_attention_norm);
  if (layer.dense) VisitMlp(name + "dense.", *layer.dense, matrix);
  if (!layer.moe) return;
  matrix(name + "router", layer.moe->gate);
  vector(name + "bias", layer.moe->bias);
  for (size_t expert = 0; expert < layer.moe->slot_of_expert.size(); ++expert) {
    const int32_t slot = layer.moe->slot_of_expert[expert];
    if (slot < 0) continue;
    VisitMlp(name + "expert" + std::to_string(expert) + ".", layer.moe->experts[slot], matrix);
  }
  if (layer.moe->shared) VisitMlp(name + "shared.", *layer.moe->shared, matrix);
}

void Visit(const ModelWeights& weights, const MatrixVisitor& matrix, const VectorVisitor& vector) {
  matrix("embed", weights.embed);
  matrix("head", weights.head);
  vector("final_norm", weights.final_norm);
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    VisitLayer("layer" + std::to_string(i) + ".", weights.layers[i], matrix, vector);
  }
  if (!weights.mtp) return;
  matrix("mtp.embed", weights.mtp->embed);
  matrix("mtp.head", weights.mtp->head);
  matrix("mtp.eh_proj", weights.mtp->eh_proj);
  vector("mtp.enorm", weights.mtp->enorm);
  vector("mtp.hnorm", weights.mtp->hnorm);
  vector("mtp.head_norm", weights.mtp->head_norm);
  VisitLayer("mtp.layer.", weights.mtp->layer, matrix, vector);
}

// Every value of a model, by name.
std::map<std::string, std::vector<float>> AllValues(const ModelWeights& weights) {
  std::map<std::string, std::vector<float>> all;
  Visit(
      weights,
      [&](const std::string& name, const WeightView& view) {
        if (view.present()) all[name] = Values(view);
      },
      [&](const std::string& name, const TensorView& view) {
        if (view.data != nullptr) all[name] = Values(view);
      });
  return all;
}

// A small checkpoint on disk.
std::string MakeCheckpoint(const std::string& name, const RandomCheckpointOptions& options,
                           const std::string& config = SmallConfig()) {
  const std::string dir = FreshDir(name);
  const absl::Status status = WriteRandomCheckpoint(config, "config.json", dir, options);
  EXPECT_TRUE(status.ok()) << status;
  return dir;
}

absl::StatusOr<ModelWeights> Load(const std::string& dir, const LoadOptions& options = {}) {
  const auto config = LoadModelConfig(dir);
  if (!config.ok()) return config.status();
  return LoadWeights(dir, *config, options);
}

ModelWeights MustLoad(const std::string& dir, const LoadOptions& options = {}) {
  absl::StatusOr<ModelWeights> weights = Load(dir, options);
  EXPECT_TRUE(weights.ok()) << weights.status();
  return weights.ok() ? *std::move(weights) : ModelWeights();
}

std::string ConfigWith(const std::string& patch) {
  auto config = nlohmann::json::parse(SmallConfig());
  const auto changes = nlohmann::json::parse(patch);
  for (const auto& [key, value] : changes.items()) config[key] = value;
  return config.dump();
}

TEST(LoadWeightsTest, ShapesAndPlaces) {
  const std::string dir = MakeCheckpoint("x", {.seed = 1});
  const ModelWeights weights = MustLoad(dir);
  std::map<std::string, std::vector<int64_t>> shapes;
  Visit(
      weights,
      [&](const std::string& name, const WeightView& view) {
        if (view.present()) shapes[name] = {view.rows, view.cols};
      },
      [&](const std::string& name, const TensorView& view) { shapes[name] = {view.rows()}; });
  EXPECT_THAT(shapes.at("embed"), ElementsAre(50, 160));
  EXPECT_THAT(shapes.at("layer0.q_a"), ElementsAre(136, 160));
  EXPECT_THAT(shapes.at("layer0.q_b"), ElementsAre(8 * 32, 136));
  EXPECT_THAT(shapes.at("layer0.kv_a"), ElementsAre(140, 160));
  EXPECT_THAT(shapes.at("layer0.kv_b"), ElementsAre(8 * 48, 132));
  EXPECT_THAT(shapes.at("layer0.o"), ElementsAre(160, 8 * 24));
  EXPECT_THAT(shapes.at("layer0.dense.down"), ElementsAre(160, 272));
  EXPECT_THAT(shapes.at("layer1.router"), ElementsAre(8, 160));
  EXPECT_THAT(shapes.at("layer1.bias"), ElementsAre(8));
  EXPECT_THAT(shapes.at("layer1.expert7.up"), ElementsAre(40, 160));
  EXPECT_THAT(shapes.at("layer1.shared.gate"), ElementsAre(80, 160));
  EXPECT_THAT(shapes.at("mtp.eh_proj"), ElementsAre(160, 320));
  EXPECT_THAT(shapes.at("mtp.layer.expert0.down"), ElementsAre(160, 40));
  EXPECT_EQ(shapes.count("layer0.q_proj"), 0u);
  EXPECT_EQ(weights.mtp->embed.data, weights.embed.data);
  EXPECT_EQ(weights.mtp->head.data, weights.head.data);
}

// The values, against the file's bytes looked up by the checkpoint's own names.
TEST(LoadWeightsTest, EachTensorLandsInItsField) {
  const std::string dir = MakeCheckpoint("x", {.seed = 2});
  const ModelWeights weights = MustLoad(dir);
  const auto values = AllValues(weights);
  const std::pair<const char*, const char*> fields[] = {
      {"embed", "model.embed_tokens.weight"},
      {"head", "lm_head.weight"},
      {"final_norm", "model.norm.weight"},
      {"layer0.input_norm", "model.layers.0.input_layernorm.weight"},
      {"layer0.post_attention_norm", "model.layers.0.post_attention_layernorm.weight"},
      {"layer0.q_a", "model.layers.0.self_attn.q_a_proj.weight"},
      {"layer0.q_a_norm", "model.layers.0.self_attn.q_a_layernorm.weight"},
      {"layer0.q_b", "model.layers.0.self_attn.q_b_proj.weight"},
      {"layer1.kv_a", "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"},
      {"layer1.kv_a_norm", "model.layers.1.self_attn.kv_a_layernorm.weight"},
      {"layer1.kv_b", "model.layers.1.self_attn.kv_b_proj.weight"},
      {"layer1.o", "model.layers.1.self_attn.o_proj.weight"},
      {"layer0.dense.gate", "model.layers.0.mlp.gate_proj.weight"},
      {"layer0.dense.up", "model.layers.0.mlp.up_proj.weight"},
      {"layer0.dense.down", "model.layers.0.mlp.down_proj.weight"},
      {"layer1.router", "model.layers.1.mlp.gate.weight"},
      {"layer1.bias", "model.layers.1.mlp.gate.e_score_correction_bias"},
      {"layer1.expert5.gate", "model.layers.1.mlp.experts.5.gate_proj.weight"},
      {"layer1.expert5.up", "model.layers.1.mlp.experts.5.up_proj.weight"},
      {"layer1.expert5.down", "model.layers.1.mlp.experts.5.down_proj.weight"},
      {"layer1.shared.gate", "model.layers.1.mlp.shared_experts.gate_proj.weight"},
      {"layer1.shared.up", "model.layers.1.mlp.shared_experts.up_proj.weight"},
      {"layer1.shared.down", "model.layers.1.mlp.shared_experts.down_proj.weight"},
      {"mtp.enorm", "model.layers.2.enorm.weight"},
      {"mtp.hnorm", "model.layers.2.hnorm.weight"},
      {"mtp.eh_proj", "model.layers.2.eh_proj.weight"},
      {"mtp.head_norm", "model.layers.2.shared_head.norm.weight"},
      {"mtp.layer.o", "model.layers.2.self_attn.o_proj.weight"},
      {"mtp.layer.bias", "model.layers.2.mlp.gate.e_score_correction_bias"},
  };
  const TestTensors tensors = ReadTensors(dir);
  for (const auto& [field, name] : fields) {
    const TestTensor& tensor = tensors.at(name);
    std::vector<float> wanted(tensor.bytes.size() / DTypeBytes(tensor.dtype));
    for (size_t i = 0; i < wanted.size(); ++i) {
      wanted[i] = Stored(tensor.bytes.data(), tensor.dtype, static_cast<int64_t>(i));
    }
    EXPECT_EQ(values.at(field), wanted) << field;
  }
}

TEST(LoadWeightsTest, DummyEqualsAWrittenCheckpoint) {
  for (const bool fp8 : {false, true}) {
    SCOPED_TRACE(fp8 ? "fp8" : "bf16");
    const std::string dir = MakeCheckpoint(fp8 ? "fp8" : "bf16", {.seed = 3, .fp8 = fp8});
    const ModelWeights stored = MustLoad(dir);
    const ModelWeights dummy =
        MustLoad(dir, {.format = LoadFormat::kDummy, .dummy_seed = 3, .threads = 2});
    EXPECT_EQ(AllValues(dummy), AllValues(stored));
    EXPECT_EQ(dummy.bytes, stored.bytes);
    EXPECT_EQ(dummy.layers[0].o.dtype, fp8 ? DType::kF8E4M3 : DType::kBF16);
    EXPECT_NE(AllValues(MustLoad(dir, {.format = LoadFormat::kDummy, .dummy_seed = 4})),
              AllValues(stored));
  }
}

TEST(LoadWeightsTest, ShardedEqualsSingle) {
  const std::string single = MakeCheckpoint("single", {.seed = 3, .fp8 = true});
  const std::string sharded =
      MakeCheckpoint("sharded", {.seed = 3, .fp8 = true, .shard_bytes = 100000, .threads = 3});
  EXPECT_FALSE(std::filesystem::exists(sharded + "/model.safetensors"));
  EXPECT_GT(Checkpoint::Open(sharded)->files().size(), 3u);
  EXPECT_EQ(AllValues(MustLoad(sharded)), AllValues(MustLoad(single)));
}

TEST(LoadWeightsTest, SlicesArePartsOfTheWhole) {
  for (const bool fp8 : {false, true}) {
    const std::string dir = MakeCheckpoint(fp8 ? "fp8" : "bf16", {.seed = 4, .fp8 = fp8});
    const ModelWeights whole = MustLoad(dir);
    for (const int64_t tp_size : {1, 2, 8}) {
      for (const int64_t tp_rank : {int64_t{0}, tp_size / 2, tp_size - 1}) {
        for (const LoadFormat format : {LoadFormat::kSafetensors, LoadFormat::kDummy}) {
          SCOPED_TRACE(testing::Message()
                       << "fp8 " << fp8 << " rank " << tp_rank << " of " << tp_size << " dummy "
                       << (format == LoadFormat::kDummy));
          const ModelWeights part =
              MustLoad(dir, {.format = format,
                             .slice = {.tp_rank = tp_rank, .tp_size = tp_size},
                             .dummy_seed = 4});
          EXPECT_LE(part.bytes, whole.bytes);
          const auto rows = [&](const WeightView& view) {
            const int64_t count = view.rows / tp_size;
            return Values(view.RowSlice(tp_rank * count, count));
          };
          const auto cols = [&](const WeightView& view) {
            const int64_t count = view.cols / tp_size;
            return Values(view.ColSlice(tp_rank * count, count));
          };
          const LayerWeights& a = part.layers[1];
          const LayerWeights& b = whole.layers[1];
          EXPECT_EQ(Values(a.q_a), Values(b.q_a));
          EXPECT_EQ(Values(a.q_b), rows(b.q_b));
          EXPECT_EQ(Values(a.kv_a), Values(b.kv_a));
          EXPECT_EQ(Values(a.kv_b), rows(b.kv_b));
          EXPECT_EQ(Values(a.o), cols(b.o));
          EXPECT_EQ(Values(a.moe->shared->gate), rows(b.moe->shared->gate));
          EXPECT_EQ(Values(a.moe->shared->up), rows(b.moe->shared->up));
          EXPECT_EQ(Values(a.moe->shared->down), cols(b.moe->shared->down));
          EXPECT_EQ(Values(a.moe->experts[3].down), Values(b.moe->experts[3].down));
          EXPECT_EQ(Values(a.moe->gate), Values(b.moe->gate));
          EXPECT_EQ(Values(part.layers[0].dense->gate), rows(whole.layers[0].dense->gate));
          EXPECT_EQ(Values(part.layers[0].dense->up), rows(whole.layers[0].dense->up));
          EXPECT_EQ(Values(part.layers[0].dense->down), cols(whole.layers[0].dense->down));
          EXPECT_EQ(Values(part.mtp->layer.o), cols(whole.mtp->layer.o));
          EXPECT_EQ(Values(part.head), Values(whole.head));
        }
      }
    }
  }
}

TEST(LoadWeightsTest, ExpertSubsets) {
  const std::string dir = MakeCheckpoint("x", {.seed = 5, .fp8 = true});
  const auto whole = AllValues(MustLoad(dir));
  const ModelWeights weights = MustLoad(dir, {.slice = {.experts = {6, 0, 3}}});
  const LayerWeights::Moe& moe = *weights.layers[1].moe;
  EXPECT_THAT(moe.slot_of_expert, ElementsAre(1, -1, -1, 2, -1, -1, 0, -1));
  ASSERT_EQ(moe.experts.size(), 3u);
  EXPECT_EQ(Values(moe.experts[0].gate), whole.at("layer1.expert6.gate"));
  EXPECT_EQ(Values(moe.experts[2].down), whole.at("layer1.expert3.down"));
  EXPECT_THAT(weights.mtp->layer.moe->slot_of_expert, ElementsAre(1, -1, -1, 2, -1, -1, 0, -1));
  for (const auto& [name, values] : AllValues(weights)) EXPECT_EQ(values, whole.at(name)) << name;
}

TEST(LoadWeightsTest, SlicesThatDoNotFit) {
  const std::string dir = MakeCheckpoint("x", {});
  const struct {
    RankSlice slice;
    const char* wanted;
  } cases[] = {
      {{.tp_rank = 0, .tp_size = 3}, "num_attention_heads is 8, wanted a multiple of tp_size, 3"},
      {{.tp_rank = 2, .tp_size = 2}, "tp_rank is 2 of tp_size 2"},
      {{.tp_rank = -1, .tp_size = 2}, "tp_rank is -1 of tp_size 2"},
      {{.tp_rank = 0, .tp_size = 0}, "tp_rank is 0 of tp_size 0"},
      {{.experts = {8}}, "experts hold 8, wanted each of 0 to 7"},
      {{.experts = {-1}}, "experts hold -1"},
      {{.experts = {1, 2, 1}}, "experts hold 1, wanted each of 0 to 7 at most once"},
  };
  for (const auto& c : cases) {
    const auto weights = Load(dir, {.slice = c.slice});
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kInvalidArgument) << c.wanted;
    EXPECT_THAT(std::string(weights.status().message()), HasSubstr(c.wanted));
  }
}

TEST(LoadWeightsTest, EveryFloatType) {
  const std::string dir = MakeCheckpoint("x", {.seed = 6});
  const auto wanted = AllValues(MustLoad(dir));
  TestTensors tensors = ReadTensors(dir);
  for (auto& [name, tensor] : tensors) {  // f32 holds every bf16 exactly
    if (tensor.dtype != DType::kBF16) continue;
    std::string wide;
    for (size_t i = 0; i < tensor.bytes.size() / 2; ++i) {
      const float value = Stored(tensor.bytes.data(), DType::kBF16, static_cast<int64_t>(i));
      wide.append(reinterpret_cast<const char*>(&value), 4);
    }
    tensor.dtype = DType::kF32;
    tensor.bytes = wide;
  }
  WriteTensors(dir + "/model.safetensors", tensors);
  const ModelWeights f32 = MustLoad(dir);
  EXPECT_EQ(f32.embed.dtype, DType::kF32);
  EXPECT_EQ(AllValues(f32), wanted);
  // 0x3e00 is 1.5 in f16 and 0.125 in bf16.
  for (auto& [name, tensor] : tensors) {
    if (tensor.shape.size() != 1) continue;
    tensor.dtype = DType::kF16;
    tensor.bytes.clear();
    for (int64_t i = 0; i < tensor.shape[0]; ++i) tensor.bytes += std::string("\x00\x3e", 2);
  }
  WriteTensors(dir + "/model.safetensors", tensors);
  const ModelWeights f16 = MustLoad(dir);
  for (const float value : Values(f16.layers[1].moe->bias)) EXPECT_EQ(value, 1.5f);
  for (const float value : Values(f16.final_norm)) EXPECT_EQ(value, 1.5f);
}

TEST(LoadWeightsTest, AlignedDataIsNotCopiedUnalignedDataIs) {
  const std::string dir = MakeCheckpoint("x", {.seed = 7, .fp8 = true});
  const auto wanted = AllValues(MustLoad(dir));
  const std::string path = dir + "/model.safetensors";
  const auto distances = [&] {  // between two FP8 and two bf16 tensors, in memory and in the file
    const ModelWeights w = MustLoad(dir);
    const auto checkpoint = Checkpoint::Open(dir);
    const auto memory = [](const WeightView& a, const WeightView& b) {
      return static_cast<const char*>(b.data) - static_cast<const char*>(a.data);
    };
    const auto file = [&](const char* a, const char* b) {
      return checkpoint->Find(b)->data - checkpoint->Find(a)->data;
    };
    return std::vector<std::pair<std::ptrdiff_t, std::ptrdiff_t>>{
        {memory(w.layers[0].dense->gate, w.layers[0].dense->up),
         file("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight")},
        {memory(w.embed, w.head), file("model.embed_tokens.weight", "lm_head.weight")}};
  };
  for (const auto& [memory, file] : distances()) EXPECT_EQ(memory, file);

  // One more space in the header moves all data to odd addresses.
  std::string bytes = *ReadFile(path, 100 << 20);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  bytes.insert(8 + length, 1, ' ');
  ++length;
  std::memcpy(bytes.data(), &length, 8);
  ASSERT_TRUE(WriteFile(path, bytes).ok());
  EXPECT_EQ(AllValues(MustLoad(dir)), wanted);
  EXPECT_EQ(distances()[0].first, distances()[0].second);  // single bytes need no alignment
  EXPECT_NE(distances()[1].first, distances()[1].second);
  const ModelWeights weights = MustLoad(dir, {.slice = {.tp_rank = 3, .tp_size = 8}});
  Visit(
      weights,
      [](const std::string& name, const WeightView& view) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % DTypeBytes(view.dtype), 0u) << name;
        EXPECT_EQ(reinterpret_cast<uintptr_t>(view.scales) % 4, 0u) << name;
      },
      [](const std::string& name, const TensorView& view) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % 64, 0u) << name;
      });
  const ModelWeights whole = MustLoad(dir);
  EXPECT_EQ(Values(weights.layers[1].o), Values(whole.layers[1].o.ColSlice(3 * 24, 24)));
}

TEST(LoadWeightsTest, MtpAndTiedEmbeddings) {
  const std::string with = MakeCheckpoint("with", {.seed = 8});
  const std::string without = MakeCheckpoint("without", {.seed = 8, .include_mtp = false});
  EXPECT_FALSE(MustLoad(without).mtp.has_value());
  EXPECT_EQ(LoadModelConfig(without)->num_nextn_predict_layers, 0);

  // The configuration promises a module that the files leave out.
  std::filesystem::copy_file(with + "/config.json", without + "/config.json",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_FALSE(MustLoad(without).mtp.has_value());

  // The module brings an embedding and a head of its own.
  TestTensors tensors = ReadTensors(with);
  tensors["model.layers.2.embed_tokens.weight"] = tensors["lm_head.weight"];
  tensors["model.layers.2.shared_head.head.weight"] = tensors["model.embed_tokens.weight"];
  WriteTensors(with + "/model.safetensors", tensors);
  const ModelWeights own = MustLoad(with);
  EXPECT_EQ(Values(own.mtp->embed), Values(own.head));
  EXPECT_EQ(Values(own.mtp->head), Values(own.embed));

  const std::string tied =
      MakeCheckpoint("tied", {.seed = 8}, ConfigWith(R"({"tie_word_embeddings": true})"));
  EXPECT_EQ(ReadTensors(tied).count("lm_head.weight"), 0u);
  const ModelWeights weights = MustLoad(tied);
  EXPECT_EQ(weights.head.data, weights.embed.data);
  EXPECT_EQ(weights.mtp->head.data, weights.embed.data);
}

TEST(LoadWeightsTest, V2LiteHasADirectQueryAndNoBias) {
  const std::string dir =
      MakeCheckpoint("x", {}, ConfigWith(R"({"model_type": "deepseek_v2", "q_lora_rank": null,
                              "num_nextn_predict_layers": null, "n_group": 1, "topk_group": 1})"));
  const ModelWeights weights = MustLoad(dir, {.slice = {.tp_rank = 1, .tp_size = 2}});
  EXPECT_EQ(weights.layers[0].q_proj.rows, 4 * 32);
  EXPECT_EQ(weights.layers[0].q_proj.cols, 160);
  EXPECT_FALSE(weights.layers[0].q_a.present());
  EXPECT_EQ(weights.layers[1].moe->bias.data, nullptr);
  EXPECT_FALSE(weights.mtp.has_value());
}

TEST(LoadWeightsTest, RotaryInverseFrequenciesAreIgnored) {
  const std::string dir = MakeCheckpoint("x", {});
  TestTensors tensors = ReadTensors(dir);
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {DType::kF32, {1}, "1234"};
  WriteTensors(dir + "/model.safetensors", tensors);
  MustLoad(dir);
}

std::string Floats(size_t count, float last) {
  std::vector<float> values(count, 1.0f);
  values.back() = last;
  return {reinterpret_cast<const char*>(values.data()), count * 4};
}

TEST(LoadWeightsTest, DamagedCheckpoints) {
  const float kNan = std::numeric_limits<float>::quiet_NaN();
  const float kInf = std::numeric_limits<float>::infinity();
  const std::string o = "model.layers.1.self_attn.o_proj.weight";
  const struct {
    const char* name;
    bool fp8;
    std::function<void(TestTensors&)> damage;
    std::string wanted;
  } cases[] = {
      {"one missing", false, [&](TestTensors& t) { t.erase(o); },
       "model.safetensors: 1 tensor missing: \"" + o + "\""},
      {"many missing", false,
       [](TestTensors& t) {
         std::erase_if(t,
                       [](const auto& e) { return e.first.find("layers.1.mlp") != e.first.npos; });
       },
       "29 tensors missing: \"model.layers.1.mlp.experts.0.down_proj.weight\", "
       "\"model.layers.1.mlp.experts.0.gate_proj.weight\", "
       "\"model.layers.1.mlp.experts.0.up_proj.weight\", "
       "\"model.layers.1.mlp.experts.1.down_proj.weight\", "
       "\"model.layers.1.mlp.experts.1.gate_proj.weight\", ..."},
      {"one too many", false,
       [](TestTensors& t) {
         t["model.layers.9.x"] = {DType::kF32, {1}, "1234"};
       },
       "1 tensor unexpected: \"model.layers.9.x\""},
      {"one missing and one too many", false,
       [&](TestTensors& t) {
         t["renamed"] = t[o];
         t.erase(o);
       },
       "1 tensor missing: \"" + o + "\"; 1 tensor unexpected: \"renamed\""},
      {"a bias nobody asked for", false,
       [](TestTensors& t) {
         t["model.layers.0.self_attn.o_proj.bias"] = {DType::kF32, {160}, Floats(160, 1)};
       },
       "1 tensor unexpected: \"model.layers.0.self_attn.o_proj.bias\""},
      {"part of the MTP module missing", false,
       [](TestTensors& t) { t.erase("model.layers.2.enorm.weight"); },
       "1 tensor missing: \"model.layers.2.enorm.weight\""},
      {"only the MTP head there", false,
       [](TestTensors& t) {
         std::erase_if(t, [](const auto& e) { return e.first.find("layers.2.") != e.first.npos; });
         t["model.layers.2.shared_head.head.weight"] = t["lm_head.weight"];
       },
       "tensors missing: \"model.layers.2.eh_proj.weight\""},
      {"transposed", false, [&](TestTensors& t) { std::swap(t[o].shape[0], t[o].shape[1]); },
       "tensor \"" + o + "\" is BF16 [192, 160], wanted BF16, F16 or F32 [160, 192]"},
      {"flattened", false, [&](TestTensors& t) { t[o].shape = {160 * 192}; },
       "tensor \"" + o + "\" is BF16 [30720], wanted BF16, F16 or F32 [160, 192]"},
      {"integers", false,
       [](TestTensors& t) {
         t["model.norm.weight"] = {DType::kI32, {160}, Floats(160, 1)};
       },
       "tensor \"model.norm.weight\" is I32 [160], wanted BF16, F16 or F32 [160]"},
      {"FP8 data without quantization_config", false,
       [&](TestTensors& t) {
         t[o] = {DType::kF8E4M3, {160, 192}, std::string(160 * 192, '\x38')};
         t[o + "_scale_inv"] = {DType::kF32, {2, 2}, Floats(4, 1)};
       },
       "tensor \"" + o +
           "\" is F8_E4M3 [160, 192], wanted BF16, F16 or F32 [160, 192] "
           "(config.json has no quantization_config)"},
      {"bf16 data with an fp8 quantization_config", true,
       [&](TestTensors& t) {
         t[o] = {DType::kBF16, {160, 192}, std::string(2 * 160 * 192, '\x38')};
       },
       "tensor \"" + o +
           "\" is BF16 [160, 192], wanted F8_E4M3 [160, 192] (config.json has an fp8"},
      {"FP8 where it is never used", true,
       [](TestTensors& t) {
         t["lm_head.weight"] = {DType::kF8E4M3, {50, 160}, std::string(8000, '\x38')};
       },
       "tensor \"lm_head.weight\" is F8_E4M3 [50, 160], wanted BF16, F16 or F32 [50, 160]"},
      {"no scales", true, [&](TestTensors& t) { t.erase(o + "_scale_inv"); },
       "1 tensor missing: \"" + o + "_scale_inv\""},
      {"scales of whole blocks only", true,
       [&](TestTensors& t) {
         t[o + "_scale_inv"] = {DType::kF32, {1, 1}, Floats(1, 1)};
       },
       "tensor \"" + o + "_scale_inv\" is F32 [1, 1], wanted F32 [2, 2]"},
      {"scales in bf16", true,
       [&](TestTensors& t) {
         t[o + "_scale_inv"] = {DType::kBF16, {2, 2}, "12345678"};
       },
       "tensor \"" + o + "_scale_inv\" is BF16 [2, 2], wanted F32 [2, 2]"},
      {"a scale that is no number", true,
       [&](TestTensors& t) { t[o + "_scale_inv"].bytes = Floats(4, kNan); },
       "tensor \"" + o + "_scale_inv\" has the scale nan at index 3, wanted finite numbers"},
      {"a negative scale", true, [&](TestTensors& t) { t[o + "_scale_inv"].bytes = Floats(4, -1); },
       "tensor \"" + o + "_scale_inv\" has the scale -1 at index 3, wanted finite numbers"},
      {"an infinite norm weight", false,
       [&](TestTensors& t) {
         t["model.norm.weight"] = {DType::kF32, {160}, Floats(160, kInf)};
       },
       "tensor \"model.norm.weight\" has inf at index 159, wanted finite numbers"},
  };
  int number = 0;
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const std::string dir = MakeCheckpoint(std::to_string(number++), {.fp8 = c.fp8});
    TestTensors tensors = ReadTensors(dir);
    c.damage(tensors);
    WriteTensors(dir + "/model.safetensors", tensors);
    const auto weights = Load(dir);
    EXPECT_EQ(weights.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(weights.status().message()), HasSubstr(c.wanted));
    EXPECT_THAT(std::string(weights.status().message()), HasSubstr(dir + "/model.safetensors"));
  }
}

TEST(RandomCheckpointTest, RefusesWhatItCannotDo) {
  const std::string dir = MakeCheckpoint("x", {});
  const auto write = [](const std::string& config, const std::string& out) {
    return WriteRandomCheckpoint(config, "c.json", out, {});
  };
  EXPECT_EQ(write(SmallConfig(), dir).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(write("[]", FreshDir("y")).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(write("{\"model_type\": 3}", FreshDir("y")).message()),
              HasSubstr("c.json: model_type is 3"));
  EXPECT_EQ(write(SmallConfig(), "/dev/null/x").code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace sluice::model
