#include "services/model/page_hash.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "services/base/mapped_file.h"
#include "services/model/testing_checkpoint.h"

namespace sluice::model {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

std::string Hex(const PageHash& hash) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(hash.data()), hash.size()));
}

std::vector<std::string> Hex(const std::vector<PageHash>& hashes) {
  std::vector<std::string> all;
  for (const PageHash& hash : hashes) all.push_back(Hex(hash));
  return all;
}

PageHash Counting(uint8_t first) {
  PageHash hash;
  for (size_t i = 0; i < hash.size(); ++i) hash[i] = static_cast<uint8_t>(first + i);
  return hash;
}

std::vector<int32_t> Tokens(int64_t count) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(i * i * int64_t{2654435761} % 129280));
  }
  return tokens;
}

// The values are those of Python's hashlib:
//   h = lambda *parts: hashlib.sha256(b''.join(parts)).digest()[:16]
//   root = h(bytes(range(16)), bytes(range(16, 32)), salt)
//   h_i = h(h_(i-1), struct.pack('<64I', *tokens[64 * i:64 * i + 64]))
constexpr char kRoot[] = "630dcd2966c4336691125448bbb25b4f";
constexpr char kPages[][33] = {"a1a4bc7f7091b41cfa08298ae2ff25f3",
                               "5d2e0b26152e071fb651f7d49b55cf76",
                               "da1871833fd44008a12d15b7f2f0f1c3"};

TEST(PageHashTest, ChainOfKnownTokens) {
  PageHasher hasher;
  const PageHash root = hasher.Root(Counting(0), Counting(16), "");
  EXPECT_EQ(Hex(root), kRoot);
  std::vector<PageHash> hashes;
  hasher.Extend(root, Tokens(200), &hashes);
  EXPECT_THAT(Hex(hashes), ElementsAre(kPages[0], kPages[1], kPages[2]));
}

TEST(PageHashTest, TheSaltChangesEveryPage) {
  PageHasher hasher;
  const PageHash root = hasher.Root(Counting(0), Counting(16), "tenant-7");
  EXPECT_EQ(Hex(root), "e082dde7f92da903abfe002f7354e5ac");
  std::vector<PageHash> hashes;
  hasher.Extend(root, Tokens(64), &hashes);
  EXPECT_THAT(Hex(hashes), ElementsAre("4eaf9eeeaec4e795de6487b00820bbaa"));
}

TEST(PageHashTest, OnlyFullPagesHaveNames) {
  for (const int64_t count : {0, 1, 63, 64, 65, 127, 128}) {
    PageHasher hasher;
    std::vector<PageHash> hashes;
    hasher.Extend(Counting(0), Tokens(count), &hashes);
    EXPECT_THAT(hashes, SizeIs(count / 64)) << count;
  }
}

TEST(PageHashTest, ExtendsInSlicesOfAnySize) {
  PageHasher hasher;
  const PageHash root = hasher.Root(Counting(0), Counting(16), "");
  const std::vector<int32_t> tokens = Tokens(200);
  for (const size_t slice : {1, 7, 63, 64, 65, 199}) {
    std::vector<PageHash> hashes;
    for (size_t end = slice; end < tokens.size() + slice; end += slice) {
      hasher.Extend(root, absl::MakeConstSpan(tokens).first(std::min(end, tokens.size())), &hashes);
    }
    EXPECT_THAT(Hex(hashes), ElementsAre(kPages[0], kPages[1], kPages[2])) << slice;
  }
}

TEST(PageHashTest, AnyTokenChangesItsPageAndAllAfterIt) {
  PageHasher hasher;
  std::vector<PageHash> want;
  hasher.Extend(Counting(0), Tokens(256), &want);
  for (const size_t changed : {0, 63, 64, 200}) {
    std::vector<int32_t> tokens = Tokens(256);
    ++tokens[changed];
    std::vector<PageHash> got;
    hasher.Extend(Counting(0), tokens, &got);
    for (size_t page = 0; page < want.size(); ++page) {
      EXPECT_EQ(got[page] == want[page], page < changed / 64) << changed << " " << page;
    }
  }
}

TEST(KvLayoutHashTest, KnownLayouts) {
  ModelConfig config;
  config.kv_lora_rank = 64;
  config.qk_rope_head_dim = 16;
  config.num_hidden_layers = 7;
  EXPECT_EQ(Hex(KvLayoutHash(config, DType::kF32)), "2806314c36ac766301231f3e6af8093a");
  config.kv_lora_rank = 512;
  config.qk_rope_head_dim = 64;
  config.num_hidden_layers = 61;
  EXPECT_EQ(Hex(KvLayoutHash(config, DType::kBF16)), "7504831186194acab89905a3c11702ad");
}

class ModelHashTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = FreshDir("model");
    Write("config.json", R"({"a": 1})");
    Write("tokenizer.json", R"({"version": "1.0"})");
    WriteSafetensors("w", "[2]", 8);
  }
  void Write(const std::string& name, const std::string& text) {
    ASSERT_TRUE(WriteFile(dir_ + "/" + name, text).ok());
  }
  // One f32 tensor of zeros, or of other bytes.
  void WriteSafetensors(const std::string& name, const std::string& shape, size_t bytes,
                        char filler = 0) {
    const std::string header = R"({")" + name + R"(":{"dtype":"F32","shape":)" + shape +
                               R"(,"data_offsets":[0,)" + std::to_string(bytes) + "]}}";
    std::string file(8, '\0');
    file[0] = static_cast<char>(header.size());
    Write("model.safetensors", file + header + std::string(bytes, filler));
  }
  std::string Hash() {
    const auto hash = ModelHash(dir_);
    EXPECT_TRUE(hash.ok()) << hash.status();
    return hash.ok() ? Hex(*hash) : "";
  }

  std::string dir_;
};

TEST_F(ModelHashTest, KnownFiles) {
  EXPECT_EQ(Hash(), "9ce0ef1288566f2d0ac313fe661fa900");
  std::filesystem::remove(dir_ + "/model.safetensors");
  EXPECT_EQ(Hash(), "364d4e3e7f06695878eacfa6b0685fee");
}

TEST_F(ModelHashTest, EveryPartCounts) {
  absl::flat_hash_set<std::string> seen = {Hash()};
  Write("config.json", R"({"a": 2})");
  EXPECT_TRUE(seen.insert(Hash()).second);
  Write("tokenizer.json", R"({"version": "1.1"})");
  EXPECT_TRUE(seen.insert(Hash()).second);
  Write("tokenizer_config.json", "");
  EXPECT_TRUE(seen.insert(Hash()).second) << "an empty file is not an absent one";
  WriteSafetensors("v", "[2]", 8);
  EXPECT_TRUE(seen.insert(Hash()).second);
  WriteSafetensors("v", "[3]", 12);
  EXPECT_TRUE(seen.insert(Hash()).second);
  const std::string before = Hash();
  WriteSafetensors("v", "[3]", 12, 'x');
  EXPECT_EQ(Hash(), before) << "weights are not read";
}

TEST_F(ModelHashTest, DamagedDirectoriesHaveNone) {
  Write("model.safetensors", "xx");
  EXPECT_EQ(ModelHash(dir_).status().code(), absl::StatusCode::kInvalidArgument);
  std::filesystem::remove(dir_ + "/config.json");
  EXPECT_EQ(ModelHash(dir_).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace sluice::model
