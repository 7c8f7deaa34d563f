// Mixture of experts: choosing experts, sorting tokens by expert slot, putting the results
// together. The expert products themselves are the grouped ops of kernels/ops/linear.h. Threads,
// ownership and errors as there. Source: deepseek-ai/DeepSeek-V3 inference/model.py, class Gate;
// DeepSeek-V2's modeling_deepseek.py, class MoEGate, for softmax scoring.
#pragma once

#include "absl/status/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/ops/stream.h"

namespace sluice {

enum class GateScoring { kSigmoid, kSoftmax };

// How the score of a group of experts follows from its members.
enum class GroupScore {
  kNone,     // no groups: every expert may be chosen (topk_method "greedy")
  kMax,      // the best member (topk_method "group_limited_greedy")
  kTop2Sum,  // the two best biased members (topk_method "noaux_tc")
};

// Per token: scores s = scoring(logits); choice by s + bias, among the topk_groups best of
// num_groups groups (others count as minus infinity), top_k experts in order of falling s + bias,
// ties to the lowest index. weights = s of the chosen (never biased), divided by their sum + 1e-20
// if normalize, times scaling. NaN scores count as minus infinity in the choice.
// DeepSeek-V2's own code either normalizes or scales (pass scaling 1 when normalize is set); V3's
// does both.
// A token whose `live` is negative only fills up a batch of fixed size: it chooses no expert (ids
// -1, weights 0) and is not counted.
struct GateParams {
  TensorView logits;  // f32 [T, experts]
  TensorView bias;    // f32 [experts], or no data
  TensorView live;    // i32 [T], or no data: every token counts
  GateScoring scoring = GateScoring::kSigmoid;
  GroupScore group_score = GroupScore::kTop2Sum;
  int num_groups = 1;
  int topk_groups = 1;
  bool normalize = true;
  float scaling = 1.0f;
  TensorView expert_ids;      // i32 [T, top_k]
  TensorView expert_weights;  // f32 [T, top_k]
  TensorView expert_load;     // i64 [experts] counters to add to, or no data
};

// Sorts (token, choice) pairs by expert slot. slot_of_expert maps a logical expert to the slot of
// this rank that holds it, or -1 when it lives elsewhere. Pairs of such experts, and those without
// one (id -1), are left out: pair_rows gets -1.
//   offsets[s]      first row of slot s; rows of a slot in order of token
//   pair_rows[t,k]  row of pair (t, k)
struct MoePermuteParams {
  TensorView expert_ids;      // i32 [T, top_k]
  TensorView slot_of_expert;  // i32 [experts]
  TensorView offsets;         // i32 [slots + 1]
  TensorView pair_rows;       // i32 [T, top_k]
};

// out[t] += sum over k of expert_weights[t, k] * rows[pair_rows[t, k]] + shared[t], without the
// pairs whose row is -1.
// The sum over k is made first, in the order of k, whatever slot a row lies in.
struct MoeCombineParams {
  TensorView rows;            // f32 [R, hidden]
  TensorView pair_rows;       // i32 [T, top_k]
  TensorView expert_weights;  // f32 [T, top_k]
  TensorView shared;          // f32 [T, hidden], or no data
  TensorView out;             // f32 [T, hidden]
};

class MoeOps {
 public:
  virtual ~MoeOps() = default;
  virtual absl::Status Gate(const GateParams& params, StreamId stream) = 0;
  virtual absl::Status Permute(const MoePermuteParams& params, StreamId stream) = 0;
  virtual absl::Status Combine(const MoeCombineParams& params, StreamId stream) = 0;
};

}  // namespace sluice
