#include "services/model/detokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "services/model/test_tokenizer.h"
#include "services/model/utf8.h"

namespace sluice::model {
namespace {

int32_t ByteToken(const Tokenizer& tokenizer, uint8_t byte) {
  const char c = static_cast<char>(byte);
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.TokenBytes(id) == absl::string_view(&c, 1)) return id;
  }
  ADD_FAILURE() << "no token for byte " << int{byte};
  return -1;
}

TEST(Detokenizer, HoldsBackHalfCharacters) {
  const auto tokenizer = TestTokenizer();
  Detokenizer detokenizer(*tokenizer, /*skip_special=*/false);
  EXPECT_EQ(detokenizer.Feed(ByteToken(*tokenizer, 0xF0)), "");
  EXPECT_EQ(detokenizer.Feed(ByteToken(*tokenizer, 0x9F)), "");
  EXPECT_EQ(detokenizer.Feed(ByteToken(*tokenizer, 0x98)), "");
  EXPECT_EQ(detokenizer.Feed(ByteToken(*tokenizer, 0x80)), "\U0001F600");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(Detokenizer, ABrokenCharacterComesOutAsSoonAsItIsKnown) {
  const auto tokenizer = TestTokenizer();
  Detokenizer detokenizer(*tokenizer, /*skip_special=*/false);
  EXPECT_EQ(detokenizer.Feed(ByteToken(*tokenizer, 0xE4)), "");
  EXPECT_EQ(detokenizer.Feed(ByteToken(*tokenizer, 'a')), "\uFFFDa");
  EXPECT_EQ(detokenizer.Feed(ByteToken(*tokenizer, 0xE4)), "");
  EXPECT_EQ(detokenizer.Feed(ByteToken(*tokenizer, 0xB8)), "");
  EXPECT_EQ(detokenizer.Feed(*tokenizer->AddedTokenId("</think>")), "\uFFFD</think>");
  EXPECT_EQ(detokenizer.Feed(ByteToken(*tokenizer, 0xB8)), "\uFFFD");
  EXPECT_EQ(detokenizer.Feed(ByteToken(*tokenizer, 0xE4)), "");
  EXPECT_EQ(detokenizer.Flush(), "\uFFFD");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(Detokenizer, SkipsSpecialTokensAndNothingElse) {
  const auto tokenizer = TestTokenizer();
  const int32_t end = *tokenizer->AddedTokenId("<｜end▁of▁sentence｜>");
  const int32_t user = *tokenizer->AddedTokenId("<｜User｜>");  // not special in DeepSeek-V3
  ASSERT_TRUE(tokenizer->IsSpecial(end));
  ASSERT_FALSE(tokenizer->IsSpecial(user));
  Detokenizer skipping(*tokenizer, /*skip_special=*/true);
  Detokenizer keeping(*tokenizer, /*skip_special=*/false);
  EXPECT_EQ(skipping.Feed(end), "");
  EXPECT_EQ(keeping.Feed(end), "<｜end▁of▁sentence｜>");
  EXPECT_EQ(skipping.Feed(user), "<｜User｜>");
  // A skipped token does not break a character apart, as in decoding the whole.
  EXPECT_EQ(skipping.Feed(ByteToken(*tokenizer, 0xC3)), "");
  EXPECT_EQ(skipping.Feed(end), "");
  EXPECT_EQ(skipping.Feed(ByteToken(*tokenizer, 0xA9)), "é");
}

TEST(Detokenizer, UnknownIdsGiveNothing) {
  const auto tokenizer = TestTokenizer();
  Detokenizer detokenizer(*tokenizer, /*skip_special=*/true);
  for (const int32_t id : {-1, tokenizer->vocab_size(), 1 << 30}) {
    EXPECT_EQ(detokenizer.Feed(id), "") << id;
  }
}

TEST(Detokenizer, AnySequenceEqualsDecodingTheWhole) {
  const auto tokenizer = TestTokenizer();
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    // Mostly single bytes, so that characters break in every way.
    const int32_t id_max = round % 2 == 0 ? 300 : tokenizer->vocab_size() + 5;
    std::vector<int32_t> ids(100);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % id_max);
    for (const bool skip_special : {false, true}) {
      Detokenizer detokenizer(*tokenizer, skip_special);
      std::string text;
      for (const int32_t id : ids) {
        const std::string piece = detokenizer.Feed(id);
        EXPECT_TRUE(IsValidUtf8(piece));
        text += piece;
      }
      text += detokenizer.Flush();
      EXPECT_EQ(text, tokenizer->Decode(ids, skip_special)) << "round " << round;
    }
  }
}

}  // namespace
}  // namespace sluice::model
