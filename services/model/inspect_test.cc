#include "services/model/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "services/base/mapped_file.h"
#include "services/model/testing_checkpoint.h"

namespace sluice::model {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string MakeServable(const std::string& name, const RandomCheckpointOptions& options) {
  const std::string dir = FreshDir(name);
  EXPECT_TRUE(WriteRandomCheckpoint(SmallConfig(), "c", dir, options).ok());
  for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
    const auto text = ReadFile(std::string("deploy/models/sluice-tiny/") + file, size_t{1} << 20);
    EXPECT_TRUE(text.ok()) << text.status();
    EXPECT_TRUE(WriteFile(dir + "/" + file, text.value_or("")).ok());
  }
  return dir;
}

TEST(InspectTest, SaysWhatBecomesOfChats) {
  const std::string dir = MakeServable("x", {});
  EXPECT_THAT(InspectCheckpoint(dir).text, HasSubstr("chat template      deepseek-r1\n"));
  ASSERT_TRUE(WriteFile(dir + "/chat_template.jinja", "{{ messages[0].content }}").ok());
  const Inspection unknown = InspectCheckpoint(dir);
  EXPECT_TRUE(unknown.servable) << unknown.text;
  EXPECT_THAT(unknown.text, HasSubstr("chat template      chats are off: the model's chat "
                                      "template is unknown; there are deepseek-v2, "));
  ASSERT_TRUE(WriteFile(dir + "/tokenizer.json", "{}").ok());
  const Inspection broken = InspectCheckpoint(dir);
  EXPECT_FALSE(broken.servable);
  EXPECT_THAT(broken.text, HasSubstr("tokenizer.json: decoder: is missing"));
}

TEST(InspectTest, AServableCheckpoint) {
  const std::string dir = MakeServable("x", {.fp8 = true, .shard_bytes = 100000});
  const Inspection inspection = InspectCheckpoint(dir, {.check_data = true});
  EXPECT_TRUE(inspection.servable) << inspection.text;
  // Parameters, counted by hand: embedding and head 8,000 each, norms included.
  //   attention of a layer: q_a 21,760 + 136, q_b 34,816, kv_a 22,400 + 132, kv_b 50,688, o 30,720,
  //   two norms of 160: 160,972; dense MLP 130,560; an expert 19,200; shared 38,400;
  //   router 1,280 + 8; final norm 160.
  //   total 16,160 + 2 * 160,972 + 130,560 + 8 * 19,200 + 38,400 + 1,288 = 661,952
  //   active: one embedding row and two experts instead: 661,952 - 7,840 - 6 * 19,200 = 538,912
  EXPECT_THAT(inspection.text,
              AllOf(HasSubstr("deepseek_v3"), HasSubstr("2 + 1 MTP, 1 dense"),
                    HasSubstr("8 heads of 24 + 8 (value 24), latent 132, query latent 136"),
                    HasSubstr("2 of 8 + 2 shared, each 40; sigmoid, 2 of 4 groups"),
                    HasSubstr("0.66 M, 0.54 M active per token; MTP 0.41 M"),
                    HasSubstr("560 bytes in bf16, 1120 in f32"),
                    HasSubstr("FP8 e4m3 in blocks of 128 x 128"), HasSubstr("F8_E4M3"),
                    HasSubstr("MTP module         present"), HasSubstr("all finite"),
                    HasSubstr("Sluice can serve this checkpoint.")));
}

TEST(InspectTest, NamesEveryReason) {
  const std::string dir = MakeServable("x", {});
  ASSERT_TRUE(WriteFile(dir + "/config.json",
                        R"({"model_type": "deepseek_v3", "hidden_act": "relu", "n_group": 0})")
                  .ok());
  std::filesystem::remove(dir + "/model.safetensors");
  std::filesystem::remove(dir + "/tokenizer.json");
  const Inspection inspection = InspectCheckpoint(dir);
  EXPECT_FALSE(inspection.servable);
  EXPECT_THAT(
      inspection.text,
      AllOf(HasSubstr("Sluice cannot serve this checkpoint:\n"),
            HasSubstr("config.json: hidden_act is \"relu\", wanted \"silu\"\n"),
            HasSubstr("config.json: n_group is 0, wanted an integer"),
            HasSubstr("holds neither model.safetensors nor"), HasSubstr("none: token ids only")));
}

TEST(InspectTest, FindsNumbersThatAreNotFiniteWhenAsked) {
  const std::string o = "model.layers.1.self_attn.o_proj.weight";
  for (const bool fp8 : {false, true}) {
    const std::string dir = MakeServable(fp8 ? "fp8" : "bf16", {.fp8 = fp8});
    TestTensors tensors = ReadTensors(dir);
    tensors[o].bytes.replace(fp8 ? 1000 : 2000, 2, fp8 ? "\x10\xff" : "\x80\x7f");
    WriteTensors(dir + "/model.safetensors", tensors);
    EXPECT_TRUE(InspectCheckpoint(dir).servable);
    const Inspection inspection = InspectCheckpoint(dir, {.check_data = true});
    EXPECT_FALSE(inspection.servable);
    EXPECT_THAT(inspection.text, HasSubstr("tensor \"" + o + "\" is not finite at index " +
                                           (fp8 ? "1001" : "1000")));
    EXPECT_THAT(inspection.text, Not(HasSubstr("all finite")));
  }
}

TEST(InspectTest, AMismatchIsAReason) {
  const std::string dir = MakeServable("x", {});
  TestTensors tensors = ReadTensors(dir);
  tensors.erase("model.norm.weight");
  WriteTensors(dir + "/model.safetensors", tensors);
  EXPECT_THAT(InspectCheckpoint(dir).text, HasSubstr("1 tensor missing: \"model.norm.weight\""));
  EXPECT_FALSE(InspectCheckpoint("/nonexistent").servable);
}

}  // namespace
}  // namespace sluice::model
