#include "kernels/cpu/gate_row.h"

#include <limits>

namespace sluice {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int kGroupsMax = 256;  // as GateParams are checked

// The best so far, in order of falling score; of equal scores the one offered first is ahead.
class BestList {
 public:
  BestList(int32_t* ids, int capacity) : ids_(ids), capacity_(capacity) {}

  // `scores` is what all ids index into.
  void Offer(const float* scores, int32_t id) {
    if (size_ == capacity_ && !(scores[id] > scores[ids_[size_ - 1]])) return;
    int place = size_ < capacity_ ? size_++ : size_ - 1;
    for (; place > 0 && scores[id] > scores[ids_[place - 1]]; --place) {
      ids_[place] = ids_[place - 1];
    }
    ids_[place] = id;
  }

 private:
  int32_t* ids_;
  int capacity_;
  int size_ = 0;
};

float ScoreOfGroup(GroupScore rule, const float* choice, int64_t size) {
  float best = kMinusInfinity;
  float second = kMinusInfinity;
  for (int64_t i = 0; i < size; ++i) {
    if (choice[i] > best) {
      second = best;
      best = choice[i];
    } else if (choice[i] > second) {
      second = choice[i];
    }
  }
  return rule == GroupScore::kTop2Sum && size > 1 ? best + second : best;
}

}  // namespace

void GateRow(const GateRule& rule, const float* scores, const float* bias, int64_t experts,
             float* choice, int32_t* expert_ids, float* expert_weights) {
  for (int64_t e = 0; e < experts; ++e) {
    const float biased = bias == nullptr ? scores[e] : scores[e] + bias[e];
    choice[e] = biased == biased ? biased : kMinusInfinity;
  }

  BestList chosen(expert_ids, rule.top_k);
  if (rule.group_score == GroupScore::kNone || rule.topk_groups == rule.num_groups) {
    for (int64_t e = 0; e < experts; ++e) chosen.Offer(choice, static_cast<int32_t>(e));
  } else {
    const int64_t group_size = experts / rule.num_groups;
    float group_scores[kGroupsMax];
    int32_t groups[kGroupsMax];
    bool kept[kGroupsMax] = {};
    BestList best_groups(groups, rule.topk_groups);
    for (int group = 0; group < rule.num_groups; ++group) {
      group_scores[group] = ScoreOfGroup(rule.group_score, choice + group * group_size, group_size);
      best_groups.Offer(group_scores, group);
    }
    for (int i = 0; i < rule.topk_groups; ++i) kept[groups[i]] = true;
    // Experts of other groups count as minus infinity: they are never offered.
    for (int group = 0; group < rule.num_groups; ++group) {
      if (!kept[group]) continue;
      for (int64_t i = 0; i < group_size; ++i) {
        chosen.Offer(choice, static_cast<int32_t>(group * group_size + i));
      }
    }
  }

  float sum = 0.0f;
  for (int k = 0; k < rule.top_k; ++k) {
    expert_weights[k] = scores[expert_ids[k]];
    sum += expert_weights[k];
  }
  for (int k = 0; k < rule.top_k; ++k) {
    if (rule.normalize) expert_weights[k] /= sum + 1e-20f;
    expert_weights[k] *= rule.scaling;
  }
}

}  // namespace sluice
