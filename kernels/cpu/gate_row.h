// The choice of experts for one token.
#pragma once

#include <cstdint>

#include "kernels/ops/moe.h"

namespace sluice {

// What of GateParams is the same for all tokens, checked.
struct GateRule {
  GroupScore group_score;
  int num_groups;
  int topk_groups;
  int top_k;
  bool normalize;
  float scaling;
};

// `scores` [experts] are sigmoid or softmax of the logits; `choice` [experts] is scratch. NaN
// scores count as minus infinity in the choice.
void GateRow(const GateRule& rule, const float* scores, const float* bias, int64_t experts,
             float* choice, int32_t* expert_ids, float* expert_weights);

}  // namespace sluice
