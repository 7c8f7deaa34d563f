#include "services/model/reasoning_splitter.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "services/model/detokenizer.h"
#include "services/model/test_tokenizer.h"

namespace sluice::model {
namespace {

struct Reply {
  std::string reasoning;
  std::string content;
  friend bool operator==(const Reply&, const Reply&) = default;
};

void PrintTo(const Reply& reply, std::ostream* out) {
  *out << "reasoning \"" << reply.reasoning << "\" content \"" << reply.content << "\"";
}

Reply SplitIds(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool in_thinking) {
  Detokenizer detokenizer(tokenizer, /*skip_special=*/true);
  ReasoningSplitter splitter(tokenizer, in_thinking);
  Reply reply;
  const auto add = [&](const ReasoningSplitter::Delta& delta) {
    reply.reasoning += delta.reasoning;
    reply.content += delta.content;
  };
  for (const int32_t id : ids) add(splitter.Feed(id, detokenizer.Feed(id)));
  add(splitter.Flush(detokenizer.Flush()));
  return reply;
}

TEST(ReasoningSplitter, Table) {
  const auto tokenizer = TestTokenizer();
  const struct {
    const char* name;
    std::string text;  // with control tokens
    bool in_thinking;
    Reply reply;
  } cases[] = {
      {"reasoning, then content", "7+5=12</think>\n\n132.", true, {"7+5=12", "132."}},
      {"opening newline of the reasoning",
       "\nI add.\n</think>\n\n132.\n",
       true,
       {"I add.", "132.\n"}},
      {"blank lines within stay", "a\n\nb\n\n\n</think>c\n\nd", true, {"a\n\nb", "c\n\nd"}},
      {"the model opens it", "<think>\nhm</think>ok", false, {"hm", "ok"}},
      {"no reasoning at all", "\n\nok <think>x</think>", false, {"", "\n\nok <think>x</think>"}},
      {"empty reasoning", "<think>\n\n</think>\n\nok", false, {"", "ok"}},
      {"cut short", "I was thinking\n\n", true, {"I was thinking\n\n", ""}},
      {"a second end is content", "a</think>b</think>c", true, {"a", "b</think>c"}},
      {"nothing", "", true, {"", ""}},
  };
  for (const auto& c : cases) {
    const auto ids = tokenizer->Encode(c.text, {});
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(SplitIds(*tokenizer, *ids, c.in_thinking), c.reply) << c.name;
  }
}

TEST(ReasoningSplitter, OrdinaryTokensThatSpellTheMarkChangeNothing) {
  const auto tokenizer = TestTokenizer();
  const auto ids =
      tokenizer->Encode("the tag </think> ends", {.added_tokens = AddedTokenMode::kPlainText});
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(SplitIds(*tokenizer, *ids, true), (Reply{"the tag </think> ends", ""}));
}

TEST(ReasoningSplitter, ABrokenCharacterBeforeTheEndBelongsToTheReasoning) {
  const auto tokenizer = TestTokenizer();
  // The first byte of a character of three.
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
    if (tokenizer->TokenBytes(id) == "\xE4") ids.push_back(id);
  }
  ASSERT_EQ(ids.size(), 1);
  ids.push_back(*tokenizer->AddedTokenId("</think>"));
  EXPECT_EQ(SplitIds(*tokenizer, ids, true), (Reply{"\uFFFD", ""}));
}

TEST(ReasoningSplitter, WithoutTheTokensAllIsContent) {
  nlohmann::json json = TestTokenizerJson("deepseek");
  for (nlohmann::json& token : json["added_tokens"]) {
    if (token["content"] == "</think>") token["content"] = "</other>";
  }
  const auto tokenizer = Tokenizer::FromJson(json.dump(), "");
  ASSERT_TRUE(tokenizer.ok());
  const auto ids = (*tokenizer)->Encode("\na</think>b", {});
  EXPECT_EQ(SplitIds(**tokenizer, *ids, true), (Reply{"", "\na</think>b"}));
}

TEST(ReasoningSplitter, SaysWhereItIs) {
  const auto tokenizer = TestTokenizer();
  ReasoningSplitter splitter(*tokenizer, /*in_thinking=*/false);
  EXPECT_FALSE(splitter.in_thinking());
  splitter.Feed(*tokenizer->AddedTokenId("<think>"), "<think>");
  EXPECT_TRUE(splitter.in_thinking());
  splitter.Feed(*tokenizer->AddedTokenId("</think>"), "</think>");
  EXPECT_FALSE(splitter.in_thinking());
}

}  // namespace
}  // namespace sluice::model
