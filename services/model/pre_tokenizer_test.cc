#include "services/model/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "services/model/deepseek_splitter.h"

namespace sluice::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Pieces = std::vector<std::string>;

std::vector<PreTokenizer::Step> DeepSeekSteps() {
  std::vector<PreTokenizer::Step> steps;
  for (const absl::string_view pattern : kDeepSeekPatterns) {
    steps.push_back(PreTokenizer::Regex{std::string(pattern)});
  }
  return steps;
}

PreTokenizer Make(const std::vector<PreTokenizer::Step>& steps, bool use_fast_path = true) {
  auto pre_tokenizer = PreTokenizer::Create(steps, use_fast_path);
  EXPECT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  return *std::move(pre_tokenizer);
}

Pieces Split(const PreTokenizer& pre_tokenizer, const std::string& text) {
  Pieces pieces;
  const absl::Status status =
      pre_tokenizer.Split(text, [&](absl::string_view piece) { pieces.emplace_back(piece); });
  EXPECT_TRUE(status.ok()) << status;
  return pieces;
}

Pieces SplitRegex(const std::string& pattern, const std::string& text) {
  return Split(Make({PreTokenizer::Regex{pattern}}), text);
}

TEST(PreTokenizer, RecognisesDeepSeek) {
  std::vector<PreTokenizer::Step> steps = DeepSeekSteps();
  EXPECT_TRUE(Make(steps).is_fast_path());
  EXPECT_FALSE(Make(steps, /*use_fast_path=*/false).is_fast_path());
  // Saved with escapes instead of line ends.
  auto& main = std::get<PreTokenizer::Regex>(steps[2]).pattern;
  for (size_t at; (at = main.find('\n')) != std::string::npos;) main.replace(at, 1, "\\n");
  EXPECT_TRUE(Make(steps).is_fast_path());
  main += "|x";
  EXPECT_FALSE(Make(steps).is_fast_path());
}

TEST(PreTokenizer, DeepSeekPieces) {
  const PreTokenizer fast = Make(DeepSeekSteps());
  EXPECT_THAT(Split(fast, "Hello, world! 12345"),
              ElementsAre("Hello", ",", " world", "!", " ", "123", "45"));
  EXPECT_THAT(Split(fast, "a  b\r\n\r\n  c"), ElementsAre("a", " ", " b", "\r\n\r\n", " ", " c"));
  EXPECT_THAT(Split(fast, "x = f(y);\n"), ElementsAre("x", " =", " f", "(y", ");\n"));
  EXPECT_THAT(Split(fast, "漢字とカナabc"), ElementsAre("漢字とカナ", "abc"));
  EXPECT_THAT(Split(fast, "\x01\x02\x03z"), ElementsAre("\x01\x02", "\x03z"));
  EXPECT_THAT(Split(fast, "   "), ElementsAre("   "));
  EXPECT_THAT(Split(fast, "  1"), ElementsAre("  ", "1"));  // a piece ends before digits
  EXPECT_THAT(Split(fast, ""), ElementsAre());
}

// The hand-written splitter against the patterns themselves, run by PCRE2. Characters that were
// assigned after Unicode 14 (PCRE2 10.42) are left out; over all characters the splitter is
// compared with Hugging Face by tokenizer_golden_test.
TEST(PreTokenizer, TheFastPathEqualsThePatterns) {
  const PreTokenizer fast = Make(DeepSeekSteps());
  const PreTokenizer patterns = Make(DeepSeekSteps(), /*use_fast_path=*/false);
  const std::vector<std::string> units = {
      "a",      "Z",          "é",          "ß",      "1",      "23",     "٣",
      "½",      " ",          "  ",         "\t",     "\n",     "\r",     "\r\n",
      "\v",     "\xC2\x85",   "\xC2\xA0",   "\u2003", "\u2028", "\u3000", "\u180E",
      "\u200B", "\u200D",     "\x01",       "!",      "'",      "_",      "+",
      "€",      "。",         "，",         "漢",     "あ",     "ア",     "゛",
      "・",     "\u3040",     "\u3097",     "\u3099", "\u0301", "\u0903", "한",
      "ก",      "\U0001F600", "\U0001F3FD", "\uE000", "\u0378", "\uFFFF", "\U00020000",
      "\u20DD", "\U000E0041", "\u4DFF",     "\u9FA6", "\u30FF", "\u3100", "\uFEFF"};
  std::mt19937 random(5);
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (size_t i = 1 + random() % 12; i > 0; --i) text += units[random() % units.size()];
    ASSERT_EQ(Split(fast, text), Split(patterns, text)) << "round " << round << ": " << text;
  }
}

TEST(PreTokenizer, MatchesAndWhatLiesBetweenArePieces) {
  EXPECT_THAT(SplitRegex("b+", "abbcb"), ElementsAre("a", "bb", "c", "b"));
  EXPECT_THAT(SplitRegex("x*", "axé"), ElementsAre("a", "x", "é"));  // empty matches only cut
  EXPECT_THAT(SplitRegex("$", "a\nb"), ElementsAre("a", "\nb"));     // at every line's end
  EXPECT_THAT(SplitRegex(R"(\s+(?!\S)|\s+)", "a   b "), ElementsAre("a", "  ", " ", "b", " "));
  EXPECT_THAT(SplitRegex(R"(\s)", "a\u180E\u2003"), ElementsAre("a\u180E", "\u2003"));
  EXPECT_THAT(SplitRegex(R"([^\s]+)", "a\u180E b"), ElementsAre("a\u180E", " ", "b"));
  EXPECT_THAT(SplitRegex(R"(\S+)", " a\u180E b"), ElementsAre(" ", "a\u180E", " ", "b"));
  EXPECT_THAT(Split(Make({PreTokenizer::Literal{"a.b|"}}), "xa.b|axb|"),
              ElementsAre("x", "a.b|", "axb|"));
  EXPECT_THAT(Split(Make({PreTokenizer::Digits{true}}), "a12²b"),
              ElementsAre("a", "1", "2", "²", "b"));
  EXPECT_THAT(Split(Make({PreTokenizer::Digits{false}}), "a12²b"), ElementsAre("a", "12²", "b"));
}

TEST(PreTokenizer, RefusesWhatPcre2WouldReadDifferently) {
  for (const char* pattern :
       {R"(\w)",      R"(\b)",     R"(\h)",         R"(\R)",      R"(\X)",
        R"(\1)",      R"([\S])",   R"([a[bc]])",    R"([a&&b])",  R"(a{,3})",
        R"(a{1,3}+)", R"((?m:.))", R"((?<name>a))", R"((*UTF)a)", R"([]a])",
        R"([^]a])",   R"([a)",     R"(a\)",         R"(\p{L)",    R"(\u0041)"}) {
    const auto result = PreTokenizer::Create({PreTokenizer::Regex{pattern}});
    ASSERT_TRUE(absl::IsInvalidArgument(result.status())) << pattern;
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(pattern));
  }
  for (const char* pattern : {R"(\p{Lu}+)", R"([^\p{L}]++)", R"(\x{41}{2})", R"((?i:'s))",
                              R"((?<=a)b)", R"(\.\-\])", R"([\]\[])"}) {
    EXPECT_TRUE(PreTokenizer::Create({PreTokenizer::Regex{pattern}}).ok()) << pattern;
  }
}

TEST(PreTokenizer, OnePieceMayBeAsLongAsAWholeBody) {
  const auto splitter = PreTokenizer::Create(
      {PreTokenizer::Regex{std::string(kDeepSeekPatterns[2])}}, /*use_fast_path=*/false);
  ASSERT_TRUE(splitter.ok()) << splitter.status();
  for (const char* unit : {" ", "\u00a0", "\n", "a", "\u00e9", "!"}) {
    std::string text;
    while (text.size() < (*unit == ' ' ? 12'000'000u : 1'000'000u)) text += unit;
    size_t bytes = 0;
    const absl::Status status =
        splitter->Split(text, [&](absl::string_view piece) { bytes += piece.size(); });
    EXPECT_TRUE(status.ok()) << status << " '" << unit << "'";
    EXPECT_EQ(bytes, text.size());
  }
}

TEST(PreTokenizer, APatternThatGivesUpIsAnError) {
  const PreTokenizer pre_tokenizer = Make({PreTokenizer::Regex{"(?:a+)+$"}});
  const absl::Status status =
      pre_tokenizer.Split(std::string(40, 'a') + "b", [](absl::string_view) {});
  EXPECT_TRUE(absl::IsInternal(status)) << status;
}

}  // namespace
}  // namespace sluice::model
