#include "services/model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "services/base/mapped_file.h"
#include "services/model/testing_checkpoint.h"

namespace sluice::model {
namespace {

using ::testing::HasSubstr;

constexpr char kOne[] = "model-00001-of-00002.safetensors";
constexpr char kTwo[] = "model-00002-of-00002.safetensors";

TestTensor U8(const std::string& bytes) {
  return {DType::kU8, {static_cast<int64_t>(bytes.size())}, bytes};
}

std::string Index(const std::string& weight_map) {
  return R"({"metadata": {"total_size": 5}, "weight_map": )" + weight_map + "}";
}

const std::string& GoodMap() {
  static const std::string map =
      std::string(R"({"a": ")") + kOne + R"(", "b": ")" + kTwo + R"(", "c": ")" + kTwo + R"("})";
  return map;
}

// a and, in the second file, b and c.
void WriteShards(const std::string& dir) {
  WriteTensors(dir + "/" + kOne, {{"a", U8("1")}});
  WriteTensors(dir + "/" + kTwo, {{"b", U8("23")}, {"c", U8("45")}});
  ASSERT_TRUE(WriteFile(dir + "/model.safetensors.index.json", Index(GoodMap())).ok());
}

TEST(CheckpointTest, OneFile) {
  const std::string dir = FreshDir("x");
  WriteTensors(dir + "/model.safetensors", {{"a", U8("1")}, {"b", U8("23")}});
  const auto checkpoint = Checkpoint::Open(dir);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->tensors().size(), 2u);
  EXPECT_EQ(absl::string_view(checkpoint->Find("b")->data, 2), "23");
  EXPECT_EQ(checkpoint->Find("aa"), nullptr);
  EXPECT_EQ(checkpoint->Find("z"), nullptr);
}

TEST(CheckpointTest, Shards) {
  const std::string dir = FreshDir("x");
  WriteShards(dir);
  const auto checkpoint = Checkpoint::Open(dir);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(checkpoint->files().size(), 2u);
  EXPECT_EQ(absl::string_view(checkpoint->Find("a")->data, 1), "1");
  EXPECT_EQ(absl::string_view(checkpoint->Find("c")->data, 2), "45");
  EXPECT_EQ(checkpoint->Find("c")->file->path(), dir + "/" + kTwo);
}

TEST(CheckpointTest, DamagedDirectories) {
  const auto replace_index = [](const std::string& text) {
    return [text](const std::string& dir) {
      ASSERT_TRUE(WriteFile(dir + "/model.safetensors.index.json", text).ok());
    };
  };
  const auto map_c_to = [&](const std::string& file) {
    return replace_index(Index(std::string(R"({"a": ")") + kOne + R"(", "b": ")" + kTwo +
                               R"(", "c": )" + file + "}"));
  };
  const struct {
    const char* name;
    std::function<void(const std::string& dir)> damage;
    absl::StatusCode code;
    const char* wanted;
  } cases[] = {
      {"nothing there", [](const std::string& dir) { FreshDir(dir.substr(dir.rfind('.') + 1)); },
       absl::StatusCode::kNotFound, "holds neither model.safetensors nor"},
      {"index not JSON", replace_index("{"), absl::StatusCode::kInvalidArgument,
       "model.safetensors.index.json: is not JSON"},
      {"index no object", replace_index("[1]"), absl::StatusCode::kInvalidArgument,
       "index.json: is not a JSON object"},
      {"no map", replace_index("{}"), absl::StatusCode::kInvalidArgument,
       "index.json: has no object weight_map"},
      {"map no object", replace_index(Index("[]")), absl::StatusCode::kInvalidArgument,
       "index.json: has no object weight_map"},
      {"empty map", replace_index(Index("{}")), absl::StatusCode::kInvalidArgument,
       "weight_map is empty"},
      {"file name no string", map_c_to("7"), absl::StatusCode::kInvalidArgument,
       "weight_map of tensor \"c\" is 7, wanted a file name"},
      {"absent shard", map_c_to("\"model-00003.safetensors\""), absl::StatusCode::kNotFound,
       "model-00003.safetensors: cannot open: No such file"},
      {"shard outside", map_c_to("\"../model.safetensors\""), absl::StatusCode::kInvalidArgument,
       "weight_map of tensor \"c\" is \"../model.safetensors\", wanted a plain name"},
      {"absolute path", map_c_to("\"/etc/x.safetensors\""), absl::StatusCode::kInvalidArgument,
       "wanted a plain name"},
      {"hidden file", map_c_to("\".safetensors\""), absl::StatusCode::kInvalidArgument,
       "wanted a plain name"},
      {"other suffix", map_c_to("\"config.json\""), absl::StatusCode::kInvalidArgument,
       "wanted a plain name"},
      {"null in a name", map_c_to("\"a\\u0000.safetensors\""), absl::StatusCode::kInvalidArgument,
       "wanted a plain name"},
      {"tensor not in its shard",
       replace_index(Index(std::string(R"({"a": ")") + kOne + R"(", "b": ")" + kTwo +
                           R"(", "c": ")" + kTwo + R"(", "d": ")" + kOne + R"("})")),
       absl::StatusCode::kInvalidArgument,
       "index.json: places tensor \"d\" in model-00001-of-00002.safetensors, which does not hold"},
      {"tensor in the other shard", map_c_to(std::string("\"") + kOne + "\""),
       absl::StatusCode::kInvalidArgument,
       "model-00002-of-00002.safetensors: holds tensor \"c\", which"},
      {"tensor the index does not name",
       replace_index(Index(std::string(R"({"a": ")") + kOne + R"(", "b": ")" + kTwo + R"("})")),
       absl::StatusCode::kInvalidArgument,
       "model-00002-of-00002.safetensors: holds tensor \"c\", which"},
      {"tensor in two shards",
       [](const std::string& dir) {
         WriteTensors(dir + "/" + kOne, {{"a", U8("1")}, {"c", U8("45")}});
       },
       absl::StatusCode::kInvalidArgument, "tensor \"c\" stands in both"},
      {"damaged shard",
       [](const std::string& dir) { ASSERT_TRUE(WriteFile(dir + "/" + kTwo, "damaged!{}").ok()); },
       absl::StatusCode::kInvalidArgument, "model-00002-of-00002.safetensors: header length is"},
      {"a stale single file",
       [](const std::string& dir) {
         WriteTensors(dir + "/model.safetensors", {{"a", U8("1")}});
       },
       absl::StatusCode::kInvalidArgument, "/model.safetensors: lies beside"},
  };
  int number = 0;
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const std::string dir = FreshDir(std::to_string(number++));
    WriteShards(dir);
    c.damage(dir);
    const auto checkpoint = Checkpoint::Open(dir);
    EXPECT_EQ(checkpoint.status().code(), c.code);
    EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr(c.wanted));
    EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr(dir));
  }
}

}  // namespace
}  // namespace sluice::model
