// Attention in bf16 on AMX tiles, f32 sums: the pieces that kernels/cpu/mla_prompt_amx.cc and
// mla_absorbed_amx.cc put together. Plain pointers and integers only: see
// kernels/cpu/simd/f32x16.h.
//
// A tile is 1 KiB: 16 rows by 32 columns, bf16. Matrices are kept as whole tiles one after the
// other, because strided tile loads are several times slower than streams: groups of 16 rows, each
// cut into steps of 32 columns. There are two kinds:
//   rows     [row % 16][column % 32]                  the first factor of a product
//   packed   [column / 2 % 16][row % 16][column % 2]  the second factor
// A tile of one kind is the transpose, in words of 32 bits, of a tile of the other.
// Queries stand in lanes: scores are [position][query], so that maxima and sums over positions are
// plain vector operations, and outputs are [value][query].
// Design: kernels/docs/cpu_attention.md.
#pragma once

#include <stdint.h>

namespace sluice {

inline constexpr int64_t kAmxEdge = 16;  // rows of a tile; queries of a group
inline constexpr int64_t kAmxStep = 32;  // columns of a step
inline constexpr int64_t kAmxTileBytes = 1024;
inline constexpr int64_t kAmxBlock = 256;  // positions that meet the queries at a time

// Where the tiles of a first factor, or the rows of a result, lie: row r of group g, step s begins
// at data + g * group_bytes + s * step_bytes + r * row_bytes. Rows of a plain matrix of bf16 can be
// described so, too.
struct AmxRows {
  char* data;
  int64_t row_bytes;
  int64_t step_bytes;
  int64_t group_bytes;
};
static inline AmxRows TiledRows(char* tiles, int64_t steps) {
  return {tiles, 64, kAmxTileBytes, steps * kAmxTileBytes};
}
static inline AmxRows PlainRows(const uint16_t* rows, int64_t stride) {
  return {(char*)rows, stride * 2, kAmxStep * 2, kAmxEdge * stride * 2};
}

// The softmax of lanes so far.
struct AmxSoftmax {
  float* largest;  // [lanes], of scale * score * log2(e)
  float* sums;     // [lanes]
};

// 32 queries at consecutive positions meet a block of positions: prompts. Outputs are
// [value][query].
struct AmxPromptBlock {
  const char* keys;     // rows [positions, key_dim]
  int64_t key_dim;      // a multiple of 32
  const char* values;   // rows [value_dim, kAmxBlock]
  int64_t value_dim;    // a multiple of 32
  int64_t positions;    // in this block; rows up to the next multiple of 32 can be read
  int64_t first_query;  // position of the first query, counted from the block's begin
  const char* queries;  // packed [32, key_dim]
  float scale;          // of scores
  float* scores;        // scratch [kAmxBlock, 32]
  char* weights;        // scratch, packed [32, kAmxBlock]
  float* outputs;       // [2 groups, value_dim, 16], updated
  AmxSoftmax softmax;   // of 32 lanes, updated
};

// 16 heads of one token meet the latents of up to kAmxBlock positions: absorbed attention. Outputs
// are [head][latent].
struct AmxLatentBlock {
  const uint16_t* pages[kAmxBlock / 64];  // [64, kv_dim] bf16
  const uint16_t* next_page;              // to be met next, fetched ahead; may be null
  int64_t kv_dim;                         // a multiple of 32
  int64_t kv_lora_rank;                   // a multiple of 32
  int64_t positions;                      // in this block
  const char* queries;                    // packed [16, kv_dim]
  float scale;                            // of scores
  float* scores;                          // scratch [kAmxBlock, 16]
  char* weights;                          // scratch, one tile for every 32 positions
  char* latents;                          // scratch, two tiles for every 32 positions
  float* outputs;                         // [kv_lora_rank / 16][head][16], updated
  AmxSoftmax softmax;                     // of 16 lanes, updated
};

struct AmxAttentionKernels {
  // Tiles are configured per thread, around everything else.
  void (*configure)();
  void (*release)();
  // `rows` rows of n columns (a multiple of 32) as tiles of either kind, zeros up to a whole group.
  void (*tile_rows)(const uint16_t* x, int64_t stride, int64_t rows, int64_t n, char* tiles);
  void (*tile_rows_f32)(const float* x, int64_t stride, int64_t rows, int64_t n, char* tiles);
  void (*pack_bf16)(const uint16_t* x, int64_t stride, int64_t rows, int64_t n, char* packed);
  void (*pack_f32)(const float* x, int64_t stride, int64_t rows, int64_t n, char* packed);
  // Packs the transpose: n columns of x become rows, `rows` rows (a multiple of 32) columns.
  void (*pack_transpose)(const uint16_t* x, int64_t stride, int64_t rows, int64_t n, char* packed);
  // One kind of tile from the other; `to` may be `from`.
  void (*transpose_tile)(const char* from, char* to);
  // out[i][j] = a[i] . b[j], over n columns, rounded to bf16. b: packed; rows_a a multiple of 16,
  // of which the first `rows` are stored; rows_b a multiple of 32.
  void (*product)(const AmxRows& a, int64_t rows_a, const char* b, int64_t rows_b, int64_t n,
                  const AmxRows& out, int64_t rows);
  // out[j][i] = a[i] . b[j] in f32 for the first `rows` of 16 rows of b; rows_a a multiple of 16.
  void (*product_transposed)(const AmxRows& a, int64_t rows_a, const char* b, int64_t n, float* out,
                             int64_t stride_out, int64_t rows);
  // Products with a single vector, without tiles. out[c] = sum over r of x[r] * w[r][c], n columns
  // (a multiple of 32), rounded to bf16, steps of 32 step_bytes apart.
  void (*project_query)(const uint16_t* w, int64_t stride, int64_t rows, int64_t n, const float* x,
                        char* out, int64_t step_bytes);
  // out[r] = w[r] . x, x in bf16 steps of 32 step_bytes apart.
  void (*project_output)(const uint16_t* w, int64_t stride, int64_t rows, int64_t n, const char* x,
                         int64_t step_bytes, float* out);
  void (*attend_prompt)(const AmxPromptBlock& block);
  // out[query][value] = outputs / sums for `queries` of one group.
  void (*finish_prompt)(const float* outputs, const float* sums, int64_t value_dim, int64_t queries,
                        float* out, int64_t stride_out);
  void (*attend_latents)(const AmxLatentBlock& block);
  // outputs / sums of each head as a row of bf16: head h at out.data + h * head_bytes, steps
  // step_bytes apart.
  void (*finish_latents)(const float* outputs, const float* sums, int64_t kv_lora_rank,
                         int64_t heads, char* out, int64_t head_bytes, int64_t step_bytes);
};

const AmxAttentionKernels& GetAmxAttentionKernels();

}  // namespace sluice
