// The border between host and device code of prompt attention (mla_prompt.cu), in the manner of
// launch.h.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace sluice::cuda {

constexpr int kPromptTile = 128;  // queries, and keys
// A pass makes the keys and values of at most so many positions.
constexpr int kPromptPassRows = 8192;
constexpr int kPromptPiecesMax = kPromptPassRows / kPromptTile;

// Some keys of one sequence, and the queries that see any of them. Query i sees the piece's keys
// 0 .. ahead + i.
struct PromptPiece {
  int32_t key_row;    // of the first key, in the pass; a multiple of kPromptTile
  int32_t keys;       // then zeros up to the next multiple of kPromptTile
  int32_t query_row;  // of the first query, in q and out
  int32_t queries;
  int32_t ahead;         // positions from the first key to the first query
  int32_t table_offset;  // of the page with the first key
  int32_t group_heads;   // heads that are worked on side by side
  int32_t item_begin;    // items of the pieces before this; an item is a tile of queries of a head
  bool merge;            // `out` and `lse` hold what the keys before this piece gave
  bool more;             // a piece with later keys follows: `lse` is wanted
};

struct PromptPass {
  PromptPiece pieces[kPromptPiecesMax];
  uint8_t piece_of_tile[kPromptPiecesMax];  // by key_row / kPromptTile
  int32_t count;
  int32_t rows;   // multiple of kPromptTile
  int32_t items;  // of all pieces
};

// Rows of the cache, one after the other as the pass has them. Sets *counter to zero.
struct PromptGatherArgs {
  PromptPass pass;
  const __nv_bfloat16* cache;  // [pages * 64, 576]
  const int32_t* page_table;
  __nv_bfloat16* out;  // [pass.rows, 576]
  int32_t* counter;
};
cudaError_t LaunchPromptGather(const PromptGatherArgs& args, cudaStream_t stream);

// Causal attention of DeepSeek-V3's heads (keys of 128 + 64 columns, values of 128).
struct MlaPromptArgs {
  PromptPass pass;
  // bf16 [pass.rows, heads * 256] as bytes: per head 128 columns of its key, then its value.
  CUtensorMap keys;    // in boxes of 128 rows
  CUtensorMap values;  // the same memory, in boxes of 64 rows
  CUtensorMap ropes;   // bf16 [pass.rows, 576] of LaunchPromptGather, in boxes of 128 rows
  const float* q;      // rows at multiples of 16 bytes
  int64_t q_stride;
  float* out;  // rows at multiples of 8 bytes
  int64_t out_stride;
  float* lse;  // [rows of q, heads]: of scores, to base 2
  int32_t heads;
  float scale_log2;  // scale * log2(e)
  int32_t* counter;  // of items begun; zero
  int32_t blocks;    // one for each SM
};
cudaError_t LaunchMlaPrompt(const MlaPromptArgs& args, cudaStream_t stream);

}  // namespace sluice::cuda
