#include "services/model/utf8.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/escaping.h"
#include "services/model/test_tokenizer.h"

namespace sluice::model {
namespace {

// By the definition in RFC 3629.
std::string EncodeUtf8(char32_t code) {
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  const int rest = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  const int lead = ~(0xFF >> (rest + 1)) & 0xFF;
  std::string text(1, static_cast<char>(lead | code >> 6 * rest));
  for (int i = rest - 1; i >= 0; --i) {
    text.push_back(static_cast<char>(0x80 | (code >> 6 * i & 0x3F)));
  }
  return text;
}

TEST(Utf8, InvalidBytesAreReplacedAsPythonDoes) {
  const nlohmann::json cases = ReadTokenizerTestData("utf8.json");
  ASSERT_GT(cases.size(), 300);
  for (const nlohmann::json& c : cases) {
    const std::string hex = c[0];
    const std::string bytes = absl::HexStringToBytes(hex);
    const std::string expected = c[1];
    EXPECT_EQ(ReplaceInvalidUtf8(bytes), expected) << hex;
    EXPECT_EQ(IsValidUtf8(bytes), bytes == expected) << hex;
  }
}

TEST(Utf8, OnlyAPossibleBeginningIsLeftAlone) {
  const struct {
    std::string bytes;
    std::string out;
    size_t consumed;
  } cases[] = {
      {"", "", 0},
      {"a", "a", 1},
      {"a\xE2\x82", "a", 1},
      {"\xF0\x9F\x98", "", 0},
      {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80", 4},
      {"\xE2", "", 0},
      {"\xE2\x28", "\uFFFD(", 2},
      {"\xED\xA0", "\uFFFD\uFFFD", 2},  // no surrogate can begin so
      {"\xF4\x90", "\uFFFD\uFFFD", 2},  // beyond U+10FFFF
      {"\xC0", "\uFFFD", 1},
      {"\xE2\x82\xE2\x82", "\uFFFD", 2},
  };
  for (const auto& c : cases) {
    std::string out;
    EXPECT_EQ(AppendLossyUtf8(c.bytes, &out), c.consumed) << absl::BytesToHexString(c.bytes);
    EXPECT_EQ(out, c.out) << absl::BytesToHexString(c.bytes);
  }
}

TEST(Utf8, DecodesFromBothSides) {
  for (const char32_t code :
       {0x0u, 0x7Fu, 0x80u, 0x7FFu, 0x800u, 0xD7FFu, 0xE000u, 0xFFFFu, 0x10000u, 0x10FFFFu}) {
    const std::string text = EncodeUtf8(code);
    EXPECT_TRUE(IsValidUtf8(text));
    EXPECT_EQ(DecodeUtf8(text.data()).code, code);
    EXPECT_EQ(DecodeUtf8(text.data()).bytes, text.size());
    EXPECT_EQ(DecodeUtf8Before(text.data() + text.size()).code, code);
  }
}

}  // namespace
}  // namespace sluice::model
