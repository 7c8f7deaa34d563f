// The kernels as the host calls them: plain structs of device pointers, so that files with device
// code see neither Abseil nor TensorView. Every function queues its kernels on the stream and
// returns the launch's error. Shapes and meanings are those of kernels/ops; sizes of 0 are allowed.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/base/page_sum.h"

namespace sluice::cuda {

enum class Element : int32_t { kF32, kBF16, kF16, kF8E4M3 };

// A weight matrix, or one of a group of them; see WeightView.
struct Weight {
  const void* data;
  const float* scales;  // null: none
  int64_t row_stride;
  int64_t scale_row_stride;
  int32_t scale_block;
  int32_t row_begin;
  int32_t col_begin;
};

// out[m, n] (+)= x[m, :] . w[n, :], or silu(x gate) * (x up) when `up` is given. Grouped when
// offsets is given: rows [offsets[g], offsets[g + 1]) meet w[g].
struct LinearArgs {
  const float* x;
  int64_t x_stride;
  float* out;
  int64_t out_stride;
  int32_t m, n, k;
  Element element;   // of all weights
  int32_t groups;    // 1 unless grouped
  const Weight* w;   // [groups], on the device, or null: `single`
  const Weight* up;  // likewise; null together with has_up false
  Weight single, single_up;
  bool has_up;
  bool accumulate;
  const int32_t* offsets;  // [groups + 1], or null
};
cudaError_t LaunchLinear(const LinearArgs& args, cudaStream_t stream);

// x in bf16, without gaps.
struct RoundArgs {
  const float* x;
  int64_t x_stride;
  int32_t rows, cols;
  __nv_bfloat16* out;
};
cudaError_t LaunchRound(const RoundArgs& args, cudaStream_t stream);

struct EmbedArgs {
  const int32_t* ids;
  const int32_t* tokens_by_slot;
  Weight table;
  Element element;
  int32_t tokens, hidden;
  float* out;
  int64_t out_stride;
  int32_t* resolved_ids;
};
cudaError_t LaunchEmbed(const EmbedArgs& args, cudaStream_t stream);

struct RmsNormArgs {
  const float* x;
  int64_t x_stride;
  const float* weight;
  float eps;
  int32_t rows, n;
  float* out;
  int64_t out_stride;
};
cudaError_t LaunchRmsNorm(const RmsNormArgs& args, cudaStream_t stream);

// See FillRandomParams. rows and cols are out's, whole_rows and whole_cols those of the whole
// matrix.
struct FillRandomArgs {
  uint64_t key;
  float scale;
  float mean;
  int64_t whole_rows, whole_cols;
  int64_t row_begin, col_begin;  // of out in it
  Element element;               // not kF16
  void* out;
  int64_t out_stride;
  int64_t rows, cols;
  float* scales;  // FP8 alone, as the next four
  int64_t scale_row_stride;
  int64_t scale_row_begin, scale_col_begin;
  int64_t scale_block;
};
cudaError_t LaunchFillRandom(const FillRandomArgs& args, cudaStream_t stream);

struct GatherRowsArgs {
  const float* x;
  int64_t x_stride;
  const int32_t* rows;
  int32_t count, n;
  float* out;
  int64_t out_stride;
};
cudaError_t LaunchGatherRows(const GatherRowsArgs& args, cudaStream_t stream);

struct MlaShape {
  int32_t heads, nope, rope, v, rank;  // rank: kv_lora_rank
};

struct CacheWriteArgs {
  MlaShape shape;
  float* q;
  int64_t q_stride;
  const float* kv_a;
  int64_t kv_a_stride;
  const float* kv_norm;
  float eps;
  const float* cos_sin;
  const int32_t* positions;
  const int32_t* kv_rows;
  int32_t tokens;
  void* cache;
  Element cache_element;  // kF32, kBF16 or kF8E4M3, as kernels/ops/attention.h has them
};
cudaError_t LaunchCacheWrite(const CacheWriteArgs& args, cudaStream_t stream);

// Absorbed attention of any geometry. Without seq_of_token every token belongs to row 0 of
// page_table and stands at first_position + its index.
struct AbsorbedArgs {
  MlaShape shape;
  const float* q;
  int64_t q_stride;
  Weight kv_b;
  Element element;
  const void* cache;
  Element cache_element;  // as above
  const int32_t* page_table;
  int64_t page_table_stride;
  const int32_t* seq_of_token;  // or null
  const int32_t* positions;     // null together with seq_of_token
  int64_t first_position;
  float scale;
  int32_t tokens;
  float* out;
  int64_t out_stride;
};
cudaError_t LaunchAbsorbed(const AbsorbedArgs& args, cudaStream_t stream);
// Dynamic shared memory that LaunchAbsorbed needs per block.
int64_t AbsorbedSharedBytes(const MlaShape& shape);

// A weight in bf16, without gaps.
struct ToBf16Args {
  Weight w;
  Element element;
  int32_t rows, cols;
  __nv_bfloat16* out;
};
cudaError_t LaunchToBf16(const ToBf16Args& args, cudaStream_t stream);

enum class GateScores : int32_t { kSigmoid, kSoftmax };
enum class GroupRule : int32_t { kNone, kMax, kTop2Sum };

struct GateArgs {
  const float* logits;
  int64_t logits_stride;
  const float* bias;    // or null
  const int32_t* live;  // or null
  GateScores scores;
  GroupRule group_rule;
  int32_t num_groups, topk_groups, top_k, experts, tokens;
  bool normalize;
  float scaling;
  int32_t* expert_ids;
  int64_t ids_stride;
  float* expert_weights;
  int64_t weights_stride;
  unsigned long long* load;  // or null
};
cudaError_t LaunchGate(const GateArgs& args, cudaStream_t stream);

struct PermuteArgs {
  const int32_t* expert_ids;
  int64_t ids_stride;
  const int32_t* slot_of_expert;
  int32_t tokens, top_k, slots;
  int32_t* offsets;
  int32_t* pair_rows;
  int64_t pair_stride;
  int32_t* chunk_counts;  // [PermuteChunkCounts] scratch
};
constexpr int64_t kPermuteSlotsMax = 1024;  // a block counts each of them per warp
int64_t PermuteChunkCounts(int64_t tokens, int64_t top_k, int64_t slots);
cudaError_t LaunchPermute(const PermuteArgs& args, cudaStream_t stream);

// out[pair_rows[t, k]] = x[t], but for rows that are -1.
struct GatherPairsArgs {
  const float* x;
  int64_t x_stride;
  const int32_t* pair_rows;
  int64_t pair_stride;
  int32_t tokens, top_k, hidden;
  float* out;
  int64_t out_stride;
};
cudaError_t LaunchGatherPairs(const GatherPairsArgs& args, cudaStream_t stream);

struct CombineArgs {
  const float* rows;
  int64_t rows_stride;
  const int32_t* pair_rows;
  int64_t pair_stride;
  const float* weights;
  int64_t weights_stride;
  const float* shared;  // or null
  int64_t shared_stride;
  int32_t tokens, top_k, hidden;
  float* out;
  int64_t out_stride;
};
cudaError_t LaunchCombine(const CombineArgs& args, cudaStream_t stream);

struct SampleArgs {
  const float* logits;
  int64_t logits_stride;
  const void* rows;      // SamplingRow[count]
  int32_t count, vocab;  // vocab at most kSampleVocabMax
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* banned_ids;
  const uint8_t* prompt_mask;  // [slots, vocab], or null
  int64_t mask_stride;
  int32_t* output_counts;
  int64_t counts_stride;
  int32_t* tokens;
  int32_t* tokens_by_slot;
  float* logprobs;
  int32_t* top_ids;
  int64_t top_ids_stride;
  float* top_logprobs;
  int64_t top_logprobs_stride;
  uint8_t* not_finite;  // or null
};
constexpr int32_t kSampleVocabMax = 8 * 52 * 1024;  // that a cluster's shared memory holds
cudaError_t LaunchSample(const SampleArgs& args, cudaStream_t stream);

// Pages to be copied and summed; addresses may be the host's where it is pinned.
struct PageCopyJob {
  const void* from;
  void* to;  // null: only summed
  uint64_t bytes;
  PageKey key;
  bool sum;
};
constexpr int kPageSlices = 4;
struct PageCopyArgs {
  const PageCopyJob* jobs;  // [count]
  PageSums* sums;           // [count, kPageSlices]: to be added up
  int32_t count;            // at most 65535
};
cudaError_t LaunchPageCopies(const PageCopyArgs& args, cudaStream_t stream);

}  // namespace sluice::cuda
