// Ids equal to Hugging Face's on the corpus that tools/goldens/make_tokenizer_goldens.py made.
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "services/model/test_tokenizer.h"
#include "services/model/tokenizer.h"

namespace sluice::model {
namespace {

using Ids = std::vector<int32_t>;

std::string Repeat(const std::string& unit, int copies) {
  std::string text;
  for (int i = 0; i < copies; ++i) text += unit;
  return text;
}

std::string Fnv1a(const Ids& ids) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ ((static_cast<uint32_t>(id) >> shift) & 0xFF)) * 0x100000001B3;
    }
  }
  char text[17];
  snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

TEST(TokenizerGolden, HardCasesInBothModes) {
  std::map<std::string, std::unique_ptr<const Tokenizer>> tokenizers;
  const nlohmann::json goldens = ReadTokenizerTestData("goldens.json");
  ASSERT_GT(goldens.size(), 2000);
  for (const nlohmann::json& golden : goldens) {
    const std::string variant = golden[0];
    auto& tokenizer = tokenizers[variant];
    if (tokenizer == nullptr) tokenizer = TestTokenizer(variant);
    ASSERT_NE(tokenizer, nullptr);
    const std::string text = golden[1];
    const Ids all = golden[2];
    const Ids non_special = golden[3].is_null() ? all : golden[3].get<Ids>();
    const auto got_all = tokenizer->Encode(text, {.added_tokens = AddedTokenMode::kAll});
    const auto got = tokenizer->Encode(text, {.added_tokens = AddedTokenMode::kNonSpecial});
    ASSERT_TRUE(got_all.ok() && got.ok()) << variant << " " << golden[1];
    EXPECT_EQ(*got_all, all) << variant << " " << golden[1];
    EXPECT_EQ(*got, non_special) << variant << " " << golden[1];
  }
  EXPECT_EQ(tokenizers.size(), 6);
}

// What kPlainText gives decodes to the text itself, and contains no token with a bracket in it.
TEST(TokenizerGolden, PlainTextModeNeverGivesControlTokens) {
  const auto tokenizer = TestTokenizer();
  for (const nlohmann::json& golden : ReadTokenizerTestData("goldens.json")) {
    if (golden[0] != "deepseek") continue;
    const std::string text = golden[1];
    const auto ids = tokenizer->Encode(text, {.added_tokens = AddedTokenMode::kPlainText});
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(tokenizer->Decode(*ids, /*skip_special=*/false), text);
    for (const int32_t id : *ids) {
      EXPECT_FALSE(tokenizer->AddedTokenId(tokenizer->TokenBytes(id))) << golden[1];
    }
  }
}

TEST(TokenizerGolden, MegabytesOfOneThing) {
  std::map<std::string, std::unique_ptr<const Tokenizer>> tokenizers;
  for (const nlohmann::json& golden : ReadTokenizerTestData("long.json")) {
    auto& tokenizer = tokenizers[golden[0]];
    if (tokenizer == nullptr) tokenizer = TestTokenizer(golden[0]);
    ASSERT_NE(tokenizer, nullptr);
    const std::string unit = golden[1];
    const auto ids = tokenizer->Encode(Repeat(unit, golden[2]), {});
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(ids->size(), golden[3].get<size_t>()) << golden[1];
    EXPECT_EQ(Fnv1a(*ids), golden[4]) << golden[1];
  }
}

}  // namespace
}  // namespace sluice::model
