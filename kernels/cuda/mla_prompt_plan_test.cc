// Every query meets every key that it sees once, whatever the lengths.
#include "kernels/cuda/mla_prompt_plan.h"

#include <map>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace sluice {
namespace {

using cuda::kPromptPassRows;
using cuda::kPromptTile;
using cuda::PromptPass;
using cuda::PromptPiece;

constexpr int64_t kTableStride = 2000;

// What PlanPrompt promises, piece by piece.
void ExpectPlan(const std::vector<PromptChunk>& chunks, int heads) {
  const std::vector<PromptPass> passes = PlanPrompt(chunks, kTableStride, heads);
  // Positions that each query (a row of q) has met so far.
  std::map<int64_t, int64_t> met;
  for (const PromptPass& pass : passes) {
    ASSERT_GT(pass.count, 0);
    ASSERT_LE(pass.rows, kPromptPassRows);
    int64_t items = 0, rows = 0, keys_before = INT64_MAX;
    for (int i = 0; i < pass.count; ++i) {
      const PromptPiece& piece = pass.pieces[i];
      ASSERT_GT(piece.keys, 0);
      ASSERT_GT(piece.queries, 0);
      ASSERT_GE(piece.ahead, 0);
      ASSERT_EQ(piece.key_row % kPromptTile, 0);
      const int64_t tiles = (piece.keys + kPromptTile - 1) / kPromptTile;
      rows += tiles * kPromptTile;
      ASSERT_LE(piece.key_row + tiles * kPromptTile, pass.rows);
      for (int64_t t = 0; t < tiles; ++t) {
        ASSERT_EQ(pass.piece_of_tile[piece.key_row / kPromptTile + t], i);
      }
      ASSERT_GE(piece.group_heads, 1);
      ASSERT_LE(piece.group_heads, heads);
      ASSERT_EQ(piece.item_begin, items);
      items += (piece.queries + kPromptTile - 1) / kPromptTile * heads;
      const int64_t keys = std::min(piece.keys, piece.ahead + piece.queries);
      ASSERT_LE(keys, keys_before);  // longest first
      keys_before = keys;

      const PromptChunk* chunk = nullptr;
      for (const PromptChunk& c : chunks) {
        if (piece.query_row >= c.token_begin && piece.query_row < c.token_begin + c.num_tokens) {
          chunk = &c;
        }
      }
      ASSERT_NE(chunk, nullptr);
      const int64_t first = chunk->first_position + piece.query_row - chunk->token_begin;
      const int64_t key_begin = first - piece.ahead;
      ASSERT_EQ(key_begin % kPageTokens, 0);
      ASSERT_EQ(piece.table_offset, chunk->seq * kTableStride + key_begin / kPageTokens);
      ASSERT_EQ(piece.query_row + piece.queries, chunk->token_begin + chunk->num_tokens);
      ASSERT_EQ(piece.merge, key_begin > 0);
      ASSERT_EQ(piece.more, key_begin + piece.keys < chunk->first_position + chunk->num_tokens);
      if (piece.more) {
        ASSERT_EQ(piece.keys % kPromptTile, 0);
      }
      for (int64_t q = 0; q < piece.queries; ++q) {
        int64_t& positions = met[piece.query_row + q];
        ASSERT_EQ(positions, key_begin) << "query " << piece.query_row + q;
        positions += std::min<int64_t>(piece.keys, piece.ahead + q + 1);
      }
    }
    ASSERT_EQ(rows, pass.rows);
    ASSERT_EQ(items, pass.items);
  }
  for (const PromptChunk& c : chunks) {
    for (int64_t q = 0; q < c.num_tokens; ++q) {
      ASSERT_EQ(met[c.token_begin + q], c.first_position + q + 1) << "row " << c.token_begin + q;
    }
  }
}

// Of (tokens, first position) each.
std::vector<PromptChunk> Chunks(const std::vector<std::pair<int64_t, int64_t>>& lengths) {
  std::vector<PromptChunk> chunks;
  int64_t row = 3;
  for (const auto& [tokens, first] : lengths) {
    chunks.push_back({.token_begin = row,
                      .num_tokens = tokens,
                      .seq = static_cast<int64_t>(chunks.size()),
                      .first_position = first});
    row += tokens + 1;
  }
  return chunks;
}

TEST(PlanPrompt, MeetsEveryPairOnce) {
  EXPECT_TRUE(PlanPrompt({}, kTableStride, 1).empty());
  EXPECT_TRUE(PlanPrompt(Chunks({{0, 5}}), kTableStride, 1).empty());
  for (const int heads : {1, 3, 128}) {
    for (const int64_t tokens : {1, 127, 128, 129, 8191, 8192, 8193, 20000}) {
      for (const int64_t first : {0, 1, 127, 8191, 8192, 30000}) {
        SCOPED_TRACE(testing::Message() << heads << " heads, " << tokens << " after " << first);
        ExpectPlan(Chunks({{tokens, first}}), heads);
      }
    }
  }
}

TEST(PlanPrompt, TakesSequencesTogether) {
  const std::vector<std::pair<int64_t, int64_t>> short_ones(200, {64, 0});
  EXPECT_EQ(PlanPrompt(Chunks(short_ones), kTableStride, 128).size(), 4u);  // 64 to a pass
  ExpectPlan(Chunks(short_ones), 128);
  ExpectPlan(Chunks({{100, 0}, {9000, 0}, {0, 7}, {1, 20000}, {128, 8064}, {5000, 100}}), 16);
  std::mt19937 random(1);
  for (int round = 0; round < 100; ++round) {
    std::vector<std::pair<int64_t, int64_t>> lengths;
    for (int i = 0; i < 30; ++i) {
      const int64_t longest = random() % 4 == 0 ? 9000 : 300;
      lengths.push_back({random() % longest, random() % 2 == 0 ? 0 : random() % longest});
    }
    SCOPED_TRACE(testing::Message() << "round " << round);
    ExpectPlan(Chunks(lengths), 128);
  }
}

TEST(PlanPrompt, DoesNotCutWhatFits) {
  const std::vector<PromptPass> passes =
      PlanPrompt(Chunks({{100, 0}, {8192, 0}, {8000, 100}}), kTableStride, 8);
  ASSERT_EQ(passes.size(), 3u);
  for (const PromptPass& pass : passes) {
    ASSERT_EQ(pass.count, 1);
    EXPECT_FALSE(pass.pieces[0].merge);
    EXPECT_FALSE(pass.pieces[0].more);
  }
}

}  // namespace
}  // namespace sluice
