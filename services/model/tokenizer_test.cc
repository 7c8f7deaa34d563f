#include "services/model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "services/model/test_tokenizer.h"

namespace sluice::model {
namespace {

using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;
using nlohmann::json;

constexpr char kBos[] = "<｜begin▁of▁sentence｜>";

TEST(Tokenizer, RawPromptsHonourAddBosToken) {
  const std::string bos =
      R"("bos_token": {"__type": "AddedToken", "content": ")" + std::string(kBos) + R"("})";
  const auto with = TestTokenizer("deepseek", "{" + bos + R"(, "add_bos_token": true})");
  const auto without = TestTokenizer("deepseek", "{" + bos + R"(, "add_bos_token": false})");
  const auto silent = TestTokenizer("deepseek", "{" + bos + "}");
  const Ids plain = *with->Encode("hi", {});
  Ids prefixed = plain;
  prefixed.insert(prefixed.begin(), 0);
  EXPECT_EQ(with->bos_id(), 0);
  EXPECT_EQ(*with->EncodePrompt("hi"), prefixed);
  EXPECT_EQ(*without->EncodePrompt("hi"), plain);
  EXPECT_EQ(*silent->EncodePrompt("hi"), plain);
  EXPECT_EQ(*with->EncodePrompt(""), Ids{0});
  EXPECT_EQ(*without->EncodePrompt(""), Ids{});
}

TEST(Tokenizer, ThePostProcessorMayPutBosFirst) {
  json tokenizer = TestTokenizerJson("deepseek");
  const json byte_level = tokenizer["post_processor"];
  tokenizer["post_processor"] = json::parse(R"({"type": "Sequence", "processors": [{"type":
      "TemplateProcessing", "single": [{"SpecialToken": {"id": "<｜begin▁of▁sentence｜>", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}}], "pair": []}]})");
  tokenizer["post_processor"]["processors"].push_back(byte_level);
  const auto by_template = Tokenizer::FromJson(tokenizer.dump(), "");
  ASSERT_TRUE(by_template.ok()) << by_template.status();
  EXPECT_EQ((*by_template)->bos_id(), 0);
  EXPECT_TRUE((*by_template)->add_bos_token());
  const auto overruled = Tokenizer::FromJson(tokenizer.dump(), R"({"add_bos_token": false})");
  ASSERT_TRUE(overruled.ok()) << overruled.status();
  EXPECT_FALSE((*overruled)->add_bos_token());
}

TEST(Tokenizer, SpecialIdsAndTokens) {
  const auto tokenizer = TestTokenizer("deepseek", R"({"bos_token": "<｜begin▁of▁sentence｜>",
      "eos_token": "<｜end▁of▁sentence｜>", "pad_token": "<｜▁pad▁｜>", "unk_token": null})");
  EXPECT_EQ(tokenizer->bos_id(), 0);
  EXPECT_EQ(tokenizer->eos_id(), 1);
  EXPECT_EQ(tokenizer->pad_id(), 2);
  EXPECT_EQ(tokenizer->vocab_size(), 4096);
  EXPECT_TRUE(tokenizer->IsSpecial(0));
  EXPECT_EQ(tokenizer->TokenBytes(0), kBos);
  const int32_t think = *tokenizer->AddedTokenId("<think>");
  EXPECT_FALSE(tokenizer->IsSpecial(think));
  EXPECT_EQ(tokenizer->TokenBytes(think), "<think>");
  EXPECT_FALSE(tokenizer->AddedTokenId("the"));
  for (const int32_t id : {-1, 4096}) {
    EXPECT_FALSE(tokenizer->IsSpecial(id));
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
  }
  const Ids ids = *tokenizer->Encode(" \xC3\xA9", {});
  EXPECT_EQ(tokenizer->Decode(ids, true), " é");
  EXPECT_EQ(TestTokenizer()->bos_id(), -1);
}

TEST(Tokenizer, ModesDifferInWhichAddedTokensTheySee) {
  const auto tokenizer = TestTokenizer("added");
  const auto has = [&](const char* text, AddedTokenMode mode) {
    const Ids ids = *tokenizer->Encode(text, {.added_tokens = mode});
    return ids.size() == 1 && ids[0] == tokenizer->AddedTokenId(text);
  };
  const struct {
    const char* token;
    bool non_special;
    bool plain_text;
  } cases[] = {
      {kBos, false, false},      {"<|EOT|>", false, false}, {"<｜User｜>", true, false},
      {"</think>", true, false}, {"<right>", true, false},  {"wordy", true, true},
      {"ü", true, true},         {"<mask>", false, false},
  };
  for (const auto& c : cases) {
    EXPECT_TRUE(has(c.token, AddedTokenMode::kAll)) << c.token;
    EXPECT_EQ(has(c.token, AddedTokenMode::kNonSpecial), c.non_special) << c.token;
    EXPECT_EQ(has(c.token, AddedTokenMode::kPlainText), c.plain_text) << c.token;
  }
}

TEST(Tokenizer, InvalidUtf8IsReplacedFirst) {
  const auto tokenizer = TestTokenizer();
  EXPECT_EQ(*tokenizer->Encode("a\xFF\xE2\x82z", {}), *tokenizer->Encode("a\uFFFD\uFFFDz", {}));
  // Repairing must not glue the halves of a control token together.
  EXPECT_EQ(*tokenizer->Encode("<think\xFF>", {}), *tokenizer->Encode("<think\uFFFD>", {}));
}

TEST(Tokenizer, ManyThreadsGetTheSameIds) {
  const auto tokenizer = TestTokenizer("llama3");
  const auto fast = TestTokenizer();
  std::string text;
  for (int i = 0; i < 300; ++i) text += "word" + std::to_string(i * 7919) + " größer 素早い\n";
  const Ids expected = *tokenizer->Encode(text, {});
  const Ids expected_fast = *TestTokenizer()->Encode(text, {});
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5; ++i) {
        wrong[t] += *tokenizer->Encode(text, {}) != expected;
        wrong[t] += *fast->Encode(text, {}) != expected_fast;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

class TokenizerDir : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = ::testing::TempDir() + "tokenizer_test";
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ + "/" + name) << text;
  }
  std::string dir_;
};

TEST_F(TokenizerDir, LoadsFilesThatAreThere) {
  EXPECT_TRUE(absl::IsNotFound(Tokenizer::Load(dir_).status()));
  Write("tokenizer.json", TestTokenizerJson("deepseek").dump());
  auto tokenizer = Tokenizer::Load(dir_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->chat_template(), "");
  Write("tokenizer_config.json", R"({"chat_template": "a", "eos_token": "<|EOT|>"})");
  tokenizer = Tokenizer::Load(dir_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->chat_template(), "a");
  EXPECT_EQ((*tokenizer)->TokenBytes((*tokenizer)->eos_id()), "<|EOT|>");
  Write("chat_template.jinja", "b");
  tokenizer = Tokenizer::Load(dir_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->chat_template(), "b");
  Write("tokenizer_config.json", "{");
  EXPECT_THAT(std::string(Tokenizer::Load(dir_).status().message()),
              HasSubstr(dir_ + "/tokenizer_config.json: not JSON"));
}

TEST(TokenizerErrors, ConfigsNameTheField) {
  const std::string tokenizer = TestTokenizerJson("deepseek").dump();
  const struct {
    const char* config;
    const char* error;
  } cases[] = {
      {"[]", "tokenizer_config.json: expected a JSON object"},
      {R"({"bos_token": 3})", "bos_token: expected a string, found 3"},
      {R"({"bos_token": {"text": "x"}})", "bos_token: \"content\" is missing"},
      {R"({"eos_token": "<nowhere>"})", "eos_token: \"<nowhere>\" is not among the added_tokens"},
      {R"({"add_bos_token": "yes"})", "add_bos_token: expected true or false, found \"yes\""},
      {R"({"add_bos_token": true})", "add_bos_token is true, but there is no bos_token"},
      {R"({"chat_template": 1})", "chat_template: expected a string, found 1"},
  };
  for (const auto& c : cases) {
    const auto result = Tokenizer::FromJson(tokenizer, c.config);
    EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << c.config;
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(c.error));
  }
  const auto named = Tokenizer::FromJson(
      tokenizer,
      R"({"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]})");
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ((*named)->chat_template(), "d");
}

TEST(TokenizerErrors, TokenizersNameTheField) {
  const json base = TestTokenizerJson("deepseek");
  const struct {
    const char* patch;  // a JSON patch
    const char* error;
  } cases[] = {
      {R"([{"op": "add", "path": "/normalizer", "value": {"type": "NFC"}}])",
       "normalizer: expected none"},
      {R"([{"op": "remove", "path": "/decoder"}])", "decoder: is missing"},
      {R"([{"op": "replace", "path": "/decoder", "value": {"type": "Metaspace"}}])",
       "decoder: type Metaspace is not supported (only ByteLevel)"},
      {R"([{"op": "replace", "path": "/post_processor", "value": {"type": "BertProcessing"}}])",
       "post_processor: type BertProcessing is not supported"},
      {R"([{"op": "replace", "path": "/post_processor", "value": {"type": "TemplateProcessing",
          "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "x"}}]}}])",
       "post_processor.single[0]"},
      {R"([{"op": "remove", "path": "/pre_tokenizer"}])", "pre_tokenizer: is missing"},
      {R"([{"op": "remove", "path": "/pre_tokenizer/pretokenizers/3"}])",
       "pre_tokenizer: does not end with ByteLevel"},
      {R"([{"op": "move", "from": "/pre_tokenizer/pretokenizers/3", "path": "/pre_tokenizer/pretokenizers/0"}])",
       "pre_tokenizer.pretokenizers[1]: Split after ByteLevel"},
      {R"([{"op": "replace", "path": "/pre_tokenizer/pretokenizers/3/add_prefix_space", "value": true}])",
       "pre_tokenizer.pretokenizers[3]: add_prefix_space true is not supported"},
      {R"([{"op": "replace", "path": "/pre_tokenizer/pretokenizers/0/behavior", "value": "Removed"}])",
       "pre_tokenizer.pretokenizers[0]: behavior Removed is not supported"},
      {R"([{"op": "replace", "path": "/pre_tokenizer/pretokenizers/0/pattern", "value": {"Regex": "("}}])",
       "regular expression (: missing closing parenthesis"},
      {R"([{"op": "replace", "path": "/pre_tokenizer/pretokenizers/0/type", "value": "Metaspace"}])",
       "pre_tokenizer.pretokenizers[0]: type Metaspace is not supported"},
      {R"([{"op": "replace", "path": "/model/type", "value": "Unigram"}])",
       "model: type Unigram is not supported"},
      {R"([{"op": "replace", "path": "/model/byte_fallback", "value": true}])",
       "model.byte_fallback: true"},
      {R"([{"op": "replace", "path": "/model/dropout", "value": 0.1}])",
       "model.dropout: expected null, found 0.1"},
      {R"([{"op": "replace", "path": "/model/end_of_word_suffix", "value": "</w>"}])",
       "model.end_of_word_suffix"},
      {R"([{"op": "replace", "path": "/model/vocab", "value": []}])",
       "model.vocab: expected an object"},
      {R"([{"op": "replace", "path": "/model/vocab/!", "value": -1}])",
       "model.vocab[\"!\"]: expected an id from 0"},
      {R"([{"op": "replace", "path": "/model/vocab/!", "value": 99999999}])", "found 99999999"},
      {R"([{"op": "replace", "path": "/model/vocab/!", "value": 1.5}])", "found 1.5"},
      {R"([{"op": "replace", "path": "/model/vocab/!", "value": 50}])", "id 50 is there twice"},
      {R"([{"op": "remove", "path": "/model/vocab/!"}, {"op": "replace", "path": "/model/merges", "value": []}])",
       "no token for the byte 0x21"},
      {R"([{"op": "add", "path": "/model/merges/0", "value": ["zzqj", "q"]}])",
       "model.merges[0]: \"zzqj\" is not in model.vocab"},
      {R"([{"op": "add", "path": "/model/merges/0", "value": ["q", "Ĝ"]}])",
       "model.merges[0]: \"qĜ\" is not in model.vocab"},
      {R"([{"op": "add", "path": "/model/merges/1", "value": "a b c"}])",
       "model.merges[1]: expected two tokens"},
      {R"([{"op": "add", "path": "/model/merges/1", "value": ["a"]}])",
       "model.merges[1]: expected two tokens"},
      {R"([{"op": "replace", "path": "/added_tokens/0/id", "value": 7}])", "model.vocab says 0"},
      {R"([{"op": "replace", "path": "/added_tokens/5/id", "value": 300}])",
       "id 300 belongs to another token"},
      {R"([{"op": "replace", "path": "/added_tokens/5/id", "value": "5"}])",
       "added_tokens[5].id: expected an id"},
      {R"([{"op": "replace", "path": "/added_tokens/5/content", "value": ""}])",
       "added_tokens[5]: an empty token"},
      {R"([{"op": "copy", "from": "/added_tokens/5/content", "path": "/added_tokens/6/content"}])",
       "added_tokens[6]: \"<｜place▁holder▁no▁2｜>\" is there twice"},
      {R"([{"op": "replace", "path": "/added_tokens/5/lstrip", "value": 1}])",
       "added_tokens[5].lstrip: expected true or false, found 1"},
  };
  for (const auto& c : cases) {
    const auto result = Tokenizer::FromJson(base.patch(json::parse(c.patch)).dump(), "");
    EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << c.patch;
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(c.error)) << c.patch;
    EXPECT_THAT(std::string(result.status().message()), HasSubstr("tokenizer.json"));
  }
  for (const char* text : {"", "{", "[]", "3", "{}"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Tokenizer::FromJson(text, "").status())) << text;
  }
}

// DeepSeek-V2's vocabulary has no tokens for bytes that UTF-8 never has.
TEST(Tokenizer, BytesThatUtf8NeverHasNeedNoToken) {
  json tokenizer = TestTokenizerJson("deepseek");
  for (const char* token : {"À", "Á", "õ", "ö", "÷", "ø", "ù", "ú", "û", "ü", "ý", "þ", "ÿ"}) {
    ASSERT_EQ(tokenizer["model"]["vocab"].erase(token), 1) << token;
  }
  const auto loaded = Tokenizer::FromJson(tokenizer.dump(), "");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(*(*loaded)->Encode("größer \xFF", {}), *TestTokenizer()->Encode("größer \xFF", {}));
}

}  // namespace
}  // namespace sluice::model
