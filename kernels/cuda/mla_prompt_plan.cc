#include "kernels/cuda/mla_prompt_plan.h"

#include <algorithm>

namespace sluice {
namespace {

using cuda::kPromptPassRows;
using cuda::kPromptTile;
using cuda::PromptPass;
using cuda::PromptPiece;

// The keys and values of heads that are worked on side by side stay in L2, together with those of
// the heads that come next.
constexpr int64_t kGroupBytes = 16 << 20;
constexpr int64_t kHeadBytes = 512;  // of a key and a value, without what heads share

int64_t RoundUp(int64_t x) { return (x + kPromptTile - 1) / kPromptTile * kPromptTile; }

// Counts items, in the order in which they are done.
void Finish(int heads, PromptPass* pass) {
  const auto keys_most = [](const PromptPiece& p) { return std::min(p.keys, p.ahead + p.queries); };
  std::sort(
      pass->pieces, pass->pieces + pass->count, [&](const PromptPiece& a, const PromptPiece& b) {
        return keys_most(a) != keys_most(b) ? keys_most(a) > keys_most(b) : a.key_row < b.key_row;
      });
  for (int i = 0; i < pass->count; ++i) {
    PromptPiece& piece = pass->pieces[i];
    const int64_t key_tiles = RoundUp(piece.keys) / kPromptTile;
    std::fill_n(pass->piece_of_tile + piece.key_row / kPromptTile, key_tiles,
                static_cast<uint8_t>(i));
    const int64_t group = kGroupBytes / (key_tiles * kPromptTile * kHeadBytes);
    piece.group_heads = static_cast<int32_t>(std::clamp<int64_t>(group, 1, heads));
    piece.item_begin = pass->items;
    pass->items += static_cast<int32_t>(RoundUp(piece.queries) / kPromptTile) * heads;
  }
}

}  // namespace

std::vector<PromptPass> PlanPrompt(absl::Span<const PromptChunk> chunks, int64_t table_stride,
                                   int heads) {
  std::vector<PromptPass> passes;
  const auto begin_pass = [&] {
    if (!passes.empty()) Finish(heads, &passes.back());
    passes.push_back({});
  };
  for (const PromptChunk& chunk : chunks) {
    if (chunk.num_tokens == 0) continue;
    const int64_t keys = chunk.first_position + chunk.num_tokens;
    for (int64_t begin = 0; begin < keys;) {
      const int64_t room = passes.empty() ? 0 : kPromptPassRows - passes.back().rows;
      if (room == 0 || (keys <= kPromptPassRows && RoundUp(keys) > room)) {
        begin_pass();
        continue;
      }
      const int64_t count = std::min(keys - begin, room);
      const int64_t skipped = std::max<int64_t>(begin - chunk.first_position, 0);  // queries
      PromptPass& pass = passes.back();
      pass.pieces[pass.count++] = {
          .key_row = pass.rows,
          .keys = static_cast<int32_t>(count),
          .query_row = static_cast<int32_t>(chunk.token_begin + skipped),
          .queries = static_cast<int32_t>(chunk.num_tokens - skipped),
          .ahead = static_cast<int32_t>(chunk.first_position + skipped - begin),
          .table_offset = static_cast<int32_t>(chunk.seq * table_stride + begin / kPageTokens),
          .merge = begin > 0,
          .more = begin + count < keys,
      };
      pass.rows += static_cast<int32_t>(RoundUp(count));
      begin += count;
    }
  }
  if (!passes.empty()) Finish(heads, &passes.back());
  return passes;
}

}  // namespace sluice
