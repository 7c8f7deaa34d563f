#include "services/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "services/base/mapped_file.h"
#include "services/model/testing_checkpoint.h"

namespace sluice::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// {"a": {…}} with these three fields.
std::string One(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

TEST(SafetensorsTest, ReadsEveryTypeInOrderOfData) {
  const std::string file = SafetensorsFile(
      R"({"__metadata__":{"format":"pt"},
          "late":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[70,73]},
          "none":{"dtype":"F32","shape":[4,0],"data_offsets":[70,70]},
          "scalar":{"data_offsets":[0,4],"shape":[],"dtype":"F32"},
          "bf":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
          "half":{"dtype":"F16","shape":[1],"data_offsets":[16,18]},
          "i32":{"dtype":"I32","shape":[3],"data_offsets":[18,30]},
          "i64":{"dtype":"I64","shape":[5],"data_offsets":[30,70]},
          "u8":{"dtype":"U8","shape":[1,1,1,1],"data_offsets":[73,74]}}     )",
      74);
  const auto entries = ParseSafetensors(file, "f");
  ASSERT_TRUE(entries.ok()) << entries.status();
  const size_t data = file.size() - 74;
  std::vector<std::string> names;
  for (const SafetensorsEntry& entry : *entries) names.push_back(entry.name);
  EXPECT_THAT(names, ElementsAre("scalar", "bf", "half", "i32", "i64", "none", "late", "u8"));
  EXPECT_EQ((*entries)[1].dtype, DType::kBF16);
  EXPECT_THAT((*entries)[1].shape, ElementsAre(2, 3));
  EXPECT_EQ((*entries)[1].begin, data + 4);
  EXPECT_EQ((*entries)[1].end, data + 16);
  EXPECT_EQ((*entries)[5].begin, (*entries)[5].end);
  EXPECT_EQ((*entries)[6].dtype, DType::kF8E4M3);
}

TEST(SafetensorsTest, NoTensors) {
  EXPECT_THAT(*ParseSafetensors(SafetensorsFile("{}", 0), "f"), IsEmpty());
}

TEST(SafetensorsTest, DamagedFiles) {
  const std::string good = One("\"F32\"", "[2]", "[0,8]");
  std::string length_max = SafetensorsFile(good, 8);
  length_max.replace(0, 8, "\xff\xff\xff\xff\xff\xff\xff\xff");
  std::string length_huge = SafetensorsFile(good, 8);
  length_huge.replace(0, 8, std::string("\x01\xe1\xf5\x05\0\0\0\0", 8));  // 100,000,001
  const struct {
    const char* name;
    std::string file;
    const char* wanted;
  } cases[] = {
      {"empty", "", "is 0 bytes long"},
      {"seven bytes", "1234567", "is 7 bytes long"},
      {"header length 2^64 - 1", length_max, "header length is 18446744073709551615, at most"},
      {"header length over the limit", length_huge, "header length is 100000001, at most"},
      {"header beyond the file", SafetensorsFile(good, 0).substr(0, 30),
       "the file has only 22 bytes after it"},
      {"no header", SafetensorsFile("", 0), "header is not JSON"},
      {"not JSON", SafetensorsFile("{\"a\": nonsense}", 0), "header is not JSON"},
      {"binary", SafetensorsFile(std::string(100, '\0'), 0), "header is not JSON"},
      {"bad UTF-8", SafetensorsFile("{\"\xff\": 1}", 0), "header is not JSON"},
      {"trailing text", SafetensorsFile("{} x", 0), "header is not JSON"},
      {"deep", SafetensorsFile(std::string(1000000, '['), 0), "header is not JSON"},
      {"deep in the metadata",
       SafetensorsFile("{\"__metadata__\":" + std::string(50, '[') + std::string(50, ']') + "}", 0),
       "header is not JSON"},
      {"an array", SafetensorsFile("[]", 0), "header is not a JSON object"},
      {"metadata no object", SafetensorsFile(R"({"__metadata__":3})", 0),
       "__metadata__ is not an object"},
      {"metadata no strings", SafetensorsFile(R"({"__metadata__":{"x":{}}})", 0),
       "__metadata__ field \"x\" is not a string"},
      {"tensor no object", SafetensorsFile(R"({"a":7})", 0), "tensor \"a\" is not a JSON object"},
      {"same name twice",
       SafetensorsFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                           "a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                       2),
       "tensor \"a\" appears twice"},
      {"same field twice",
       SafetensorsFile(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
       "tensor \"a\" has an unexpected field \"dtype\""},
      {"unknown field",
       SafetensorsFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":0}})", 1),
       "tensor \"a\" has an unexpected field \"x\""},
      {"no shape", SafetensorsFile(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1),
       "tensor \"a\" lacks dtype, shape or data_offsets"},
      {"unknown type", SafetensorsFile(One("\"F64\"", "[1]", "[0,8]"), 8),
       "tensor \"a\" has dtype \"F64\", wanted F32, BF16,"},
      {"type no string", SafetensorsFile(One("32", "[1]", "[0,4]"), 4),
       "tensor \"a\" has a dtype that is no string"},
      {"shape no array", SafetensorsFile(One("\"F32\"", "1", "[0,4]"), 4),
       "tensor \"a\" has a shape that is no array"},
      {"negative dimension", SafetensorsFile(One("\"F32\"", "[-1,-1]", "[0,4]"), 4),
       "tensor \"a\" has -1 in its shape, wanted integers"},
      {"fraction", SafetensorsFile(One("\"F32\"", "[1.0]", "[0,4]"), 4), "has 1.0 in its shape"},
      {"dimension over 2^63", SafetensorsFile(One("\"U8\"", "[9223372036854775808]", "[0,4]"), 4),
       "has 9223372036854775808 in its shape"},
      {"rank 9", SafetensorsFile(One("\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1),
       "has a shape of more than 8 numbers"},
      {"product overflows", SafetensorsFile(One("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 0),
       "has shape [4294967296, 4294967296], more bytes than can be counted"},
      {"product overflows to the right size",
       SafetensorsFile(One("\"F32\"", "[4611686018427387905]", "[0,4]"), 4),
       "more bytes than can be counted"},
      {"one offset", SafetensorsFile(One("\"F32\"", "[1]", "[4]"), 4),
       "has data_offsets [4], wanted [begin, end]"},
      {"offsets backwards", SafetensorsFile(One("\"F32\"", "[1]", "[4,0]"), 4),
       "has data_offsets [4, 0], wanted [begin, end]"},
      {"negative offset", SafetensorsFile(One("\"F32\"", "[1]", "[-4,0]"), 4),
       "has -4 in its data_offsets"},
      {"size is not shape times type", SafetensorsFile(One("\"F32\"", "[2,3]", "[0,20]"), 20),
       "tensor \"a\" is F32 [2, 3], which takes 24 bytes, but its data_offsets [0, 20] hold 20"},
      {"beyond the file", SafetensorsFile(good, 7),
       "tensor \"a\" has data_offsets [0, 8], the file has only 7 bytes of data"},
      {"far beyond the file",
       SafetensorsFile(One("\"U8\"", "[1]", "[9223372036854775806,9223372036854775807]"), 8),
       "the file has only 8 bytes of data"},
      {"bytes left over", SafetensorsFile(good, 9), "has 9 bytes of data, its tensors take 8"},
      {"hole at the start", SafetensorsFile(One("\"F32\"", "[1]", "[4,8]"), 8),
       "tensor \"a\" begins at byte 4 of the data, after a hole"},
      {"hole between",
       SafetensorsFile(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                           "b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                       3),
       "tensor \"b\" begins at byte 2 of the data, after a hole"},
      {"overlap",
       SafetensorsFile(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
                           "b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                       3),
       "tensor \"b\" begins at byte 1 of the data, inside the tensor before it, which ends at 2"},
      {"same data twice",
       SafetensorsFile(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
                           "b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                       2),
       "inside the tensor before it"},
      {"control characters in a name", SafetensorsFile("{\"a\\n\\u0007\":7}", 0),
       "tensor \"a\\n\\007\" is not"},
  };
  for (const auto& c : cases) {
    const auto entries = ParseSafetensors(c.file, "DIR/x.safetensors");
    EXPECT_EQ(entries.status().code(), absl::StatusCode::kInvalidArgument) << c.name;
    const std::string message(entries.status().message());
    EXPECT_THAT(message, HasSubstr("DIR/x.safetensors: ")) << c.name;
    EXPECT_THAT(message, HasSubstr(c.wanted)) << c.name;
    EXPECT_LT(message.size(), 1000u) << c.name;
  }
}

TEST(SafetensorsTest, EveryTruncationAndEveryByteFlipIsHandled) {
  const std::string file = SafetensorsFile(
      R"({"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[1],)"
      R"("data_offsets":[8,9]}})",
      9);
  ASSERT_TRUE(ParseSafetensors(file, "f").ok());
  for (size_t size = 0; size < file.size(); ++size) {
    // A copy on the heap, so that a sanitizer sees reads beyond its end.
    const std::vector<char> cut(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_FALSE(ParseSafetensors({cut.data(), cut.size()}, "f").ok()) << size;
  }
  for (size_t at = 0; at < file.size() - 9; ++at) {
    for (const int flip : {1, 2, 4, 8, 16, 32, 64, 128}) {
      std::string damaged = file;
      damaged[at] = static_cast<char>(damaged[at] ^ flip);
      const auto entries = ParseSafetensors(damaged, "f");
      if (!entries.ok()) continue;  // a changed name, or another size with the same bytes, may pass
      EXPECT_EQ(entries->size(), 2u);
      for (const auto& entry : *entries) EXPECT_LE(entry.end, damaged.size());
    }
  }
}

TEST(SafetensorsWriterTest, WritesWhatTheParserReads) {
  const std::string path = FreshDir("x") + "/model.safetensors";
  WriteTensors(path, {{"b", {DType::kBF16, {2, 1}, "abcd"}},
                      {"a \"quoted\" \xc3\xa9", {DType::kF32, {1}, "1234"}},
                      {"z", {DType::kU8, {0}, ""}}});
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok());
  const auto entries = ParseSafetensors((*file)->bytes(), path);
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 3u);
  EXPECT_EQ((*entries)[0].name, "a \"quoted\" \xc3\xa9");
  EXPECT_EQ((*entries)[0].begin % 8, 0u);
  const auto& b = (*entries)[1];
  EXPECT_EQ((*file)->bytes().substr(b.begin, b.end - b.begin), "abcd");
}

TEST(SafetensorsWriterTest, AnUnfinishedFileIsNotLeftBehind) {
  const std::string dir = FreshDir("x");
  { ASSERT_TRUE(SafetensorsWriter::Create(dir + "/m.safetensors", {{"a", DType::kU8, {4}}}).ok()); }
  EXPECT_TRUE(std::filesystem::is_empty(dir));
  EXPECT_EQ(SafetensorsWriter::Create(dir + "/no/m.safetensors", {}).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace sluice::model
