#include "services/model/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace sluice::model {
namespace {

using Ids = std::vector<int32_t>;

// All bytes, with their values as ids, and the given merges on top.
Bpe::Params Params(const std::vector<std::pair<std::string, std::string>>& merges) {
  Bpe::Params params;
  for (int byte = 0; byte < 256; ++byte)
    params.token_bytes.emplace_back(1, static_cast<char>(byte));
  const auto id_of = [&](const std::string& token) {
    const auto found = std::find(params.token_bytes.begin(), params.token_bytes.end(), token);
    if (found == params.token_bytes.end()) params.token_bytes.push_back(token);
    return static_cast<int32_t>(
        std::find(params.token_bytes.begin(), params.token_bytes.end(), token) -
        params.token_bytes.begin());
  };
  for (const auto& [left, right] : merges) {
    const int32_t left_id = id_of(left);
    const int32_t right_id = id_of(right);
    params.merges.push_back({left_id, right_id, id_of(left + right)});
  }
  return params;
}

Bpe Make(Bpe::Params params) {
  auto bpe = Bpe::Create(std::move(params));
  EXPECT_TRUE(bpe.ok()) << bpe.status();
  return *std::move(bpe);
}

std::vector<std::string> Tokens(const Bpe& bpe, const std::vector<std::string>& token_bytes,
                                const std::string& word) {
  Ids ids;
  bpe.Encode(word, &ids);
  std::vector<std::string> tokens;
  for (const int32_t id : ids) tokens.push_back(token_bytes[id]);
  return tokens;
}

TEST(Bpe, LowestRankThenLeftmost) {
  const Bpe::Params params =
      Params({{"b", "c"}, {"a", "b"}, {"a", "a"}, {"aa", "a"}, {"ab", "bc"}});
  const Bpe bpe = Make(params);
  const struct {
    std::string word;
    std::vector<std::string> tokens;
  } cases[] = {
      {"a", {"a"}},
      {"abc", {"a", "bc"}},  // bc has the lower rank
      {"abbc", {"abbc"}},
      {"aaa", {"aaa"}},
      {"aaaa", {"aa", "aa"}},  // both pairs before aa+a
      {"aaaaa", {"aa", "aaa"}},
      {"xyz", {"x", "y", "z"}},
      {"ab", {"ab"}},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Tokens(bpe, params.token_bytes, c.word), c.tokens) << c.word;
    // The second time, what was learnt about whole tokens is used.
    EXPECT_EQ(Tokens(bpe, params.token_bytes, c.word), c.tokens) << c.word;
  }
}

TEST(Bpe, AWordThatIsATokenIsMergedUnlessMergesAreIgnored) {
  Bpe::Params params =
      Params({{"b", "c"}, {"a", "b"}, {"ab", "c"}});  // abc is a token, out of reach
  EXPECT_EQ(Tokens(Make(params), params.token_bytes, "abc"), (std::vector<std::string>{"a", "bc"}));
  params.ignore_merges = true;
  EXPECT_EQ(Tokens(Make(params), params.token_bytes, "abc"), std::vector<std::string>{"abc"});
  EXPECT_EQ(Tokens(Make(params), params.token_bytes, "abcb"),
            (std::vector<std::string>{"a", "bc", "b"}));
}

TEST(Bpe, OfEqualMergesTheLastCounts) {
  const Bpe::Params params = Params({{"a", "b"}, {"b", "c"}, {"a", "b"}});
  EXPECT_EQ(Tokens(Make(params), params.token_bytes, "abc"), (std::vector<std::string>{"a", "bc"}));
}

// Restates merging as it is defined: again and again the pair of the lowest rank, leftmost first.
Ids MergeByDefinition(const Bpe::Params& params, const std::string& word) {
  std::map<std::pair<int32_t, int32_t>, size_t> rank;
  for (size_t i = 0; i < params.merges.size(); ++i) {
    rank[{params.merges[i].left, params.merges[i].right}] = i;
  }
  Ids ids;
  for (const char c : word) ids.push_back(static_cast<uint8_t>(c));
  for (;;) {
    size_t best = params.merges.size();
    size_t at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = rank.find({ids[i], ids[i + 1]});
      if (found != rank.end() && found->second < best) {
        best = found->second;
        at = i;
      }
    }
    if (best == params.merges.size()) return ids;
    ids[at] = params.merges[best].merged;
    ids.erase(ids.begin() + at + 1);
  }
}

// Merges in any order, also such that a token's parts merge later than what it is part of.
TEST(Bpe, RandomMergesAgreeWithTheDefinition) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> tokens = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    for (int i = 0; i < 25; ++i) {
      merges.emplace_back(tokens[random() % tokens.size()], tokens[random() % tokens.size()]);
      const std::string merged = merges.back().first + merges.back().second;
      if (std::find(tokens.begin(), tokens.end(), merged) == tokens.end()) tokens.push_back(merged);
    }
    if (round % 2 == 0) std::shuffle(merges.begin(), merges.end(), random);
    const Bpe::Params params = Params(merges);
    const Bpe bpe = Make(params);
    for (const size_t bytes :
         {2, 3, 5, 8, 50, 127, 128, 129, 130, 300}) {  // 128: the end of short words
      std::string word(bytes, 'a');
      for (char& c : word) c = static_cast<char>('a' + random() % 3);
      Ids ids;
      bpe.Encode(word, &ids);
      EXPECT_EQ(ids, MergeByDefinition(params, word)) << "round " << round << " " << word;
    }
  }
}

TEST(Bpe, RefusesVocabulariesThatAreNotByteLevel) {
  Bpe::Params params = Params({});
  params.token_bytes['x'] = "";
  EXPECT_EQ(Bpe::Create(params).status().message(), "model.vocab: no token for the byte 0x78");
  params = Params({});
  params.token_bytes[0xFF] = "";  // in no valid UTF-8
  EXPECT_TRUE(Bpe::Create(params).ok());
  params.token_bytes.push_back("x");
  EXPECT_EQ(Bpe::Create(params).status().message(),
            "model.vocab: ids 120 and 256 are the same token");
}

}  // namespace
}  // namespace sluice::model
