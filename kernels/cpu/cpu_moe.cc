// Gate, permutation and combination of a mixture of experts on the CPU.

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cpu/cpu_context.h"
#include "kernels/cpu/fork.h"
#include "kernels/cpu/gate_row.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/ops/checks.h"

namespace sluice {
namespace {

// What the tensors hold lies in range.
absl::Status CheckPermuteValues(const MoePermuteParams& params) {
  const int64_t tokens = params.expert_ids.rows();
  const int64_t top_k = params.expert_ids.dims[1];
  const int64_t experts = params.slot_of_expert.rows();
  const int64_t slots = params.offsets.rows() - 1;
  for (int64_t e = 0; e < experts; ++e) {
    const int32_t slot = params.slot_of_expert.As<int32_t>()[e];
    if (slot < -1 || slot >= slots) {
      return absl::InvalidArgumentError(
          absl::StrCat("slot_of_expert[", e, "] is ", slot, ", there are ", slots, " slots"));
    }
  }
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t k = 0; k < top_k; ++k) {
      const int32_t expert = params.expert_ids.Row<int32_t>(token)[k];
      if (expert < -1 || expert >= experts) {
        return absl::InvalidArgumentError(
            absl::StrCat("expert_ids[", token, ", ", k, "] is ", expert, ", there are ", experts));
      }
    }
  }
  return absl::OkStatus();
}

// Of a (token, choice) pair; -1 when this rank has none for it.
int32_t SlotOf(const int32_t* slot_of_expert, int32_t expert) {
  return expert < 0 ? -1 : slot_of_expert[expert];
}

bool AnyNaN(const float* x, int64_t n) {
  bool any = false;
  for (int64_t i = 0; i < n; ++i) any |= x[i] != x[i];
  return any;
}

class CpuMoeOps final : public MoeOps {
 public:
  explicit CpuMoeOps(const CpuContext& context)
      : pool_(context.pool),
        calls_(context.calls),
        kernels_(SLUICE_CHOOSE_KERNELS(context.isa, GetRowKernels)),
        scratch_(context.pool.threads()) {}

  absl::Status Gate(const GateParams& params, StreamId) override {
    calls_->Count("gate", "cpu");
    SLUICE_RETURN_IF_ERROR(CheckGate(params));
    const int64_t tokens = params.logits.rows();
    const int64_t experts = params.logits.dims[1];
    const int64_t top_k = params.expert_ids.dims[1];
    const GateRule rule = {params.group_score,      params.num_groups, params.topk_groups,
                           static_cast<int>(top_k), params.normalize,  params.scaling};
    for (std::vector<float>& scratch : scratch_) {
      if (static_cast<int64_t>(scratch.size()) < 2 * experts) {
        scratch.resize(static_cast<size_t>(2 * experts));
      }
    }
    const int32_t* live = params.live.As<int32_t>();
    ForkIfWorth(pool_, tokens, experts * 8, [&](int64_t token, int worker) {
      if (live != nullptr && live[token] < 0) {
        std::fill_n(params.expert_ids.Row<int32_t>(token), top_k, -1);
        std::fill_n(params.expert_weights.Row<float>(token), top_k, 0.0f);
        return;
      }
      float* scores = scratch_[worker].data();
      const float* logits = params.logits.Row<float>(token);
      if (params.scoring == GateScoring::kSigmoid) {
        kernels_.sigmoid(logits, experts, scores);
      } else {
        kernels_.softmax(logits, experts, scores);
      }
      float* weights = params.expert_weights.Row<float>(token);
      GateRow(rule, scores, params.bias.As<float>(), experts, scores + experts,
              params.expert_ids.Row<int32_t>(token), weights);
      // A logit that is no number must not vanish by its expert never being chosen: it spoils the
      // token, and sampling reports that.
      if (AnyNaN(logits, experts)) {
        std::fill_n(weights, rule.top_k, std::numeric_limits<float>::quiet_NaN());
      }
    });
    if (params.expert_load.data == nullptr) return absl::OkStatus();
    int64_t* load = params.expert_load.As<int64_t>();
    for (int64_t token = 0; token < tokens; ++token) {
      if (live != nullptr && live[token] < 0) continue;
      for (int64_t k = 0; k < top_k; ++k) ++load[params.expert_ids.Row<int32_t>(token)[k]];
    }
    return absl::OkStatus();
  }

  // A counting sort: rows of a slot come out in order of token.
  absl::Status Permute(const MoePermuteParams& params, StreamId) override {
    calls_->Count("moe_permute", "cpu");
    SLUICE_RETURN_IF_ERROR(CheckMoePermute(params));
    SLUICE_RETURN_IF_ERROR(CheckPermuteValues(params));
    const int64_t tokens = params.expert_ids.rows();
    const int64_t top_k = params.expert_ids.dims[1];
    const int64_t slots = params.offsets.rows() - 1;
    const int32_t* slot_of_expert = params.slot_of_expert.As<int32_t>();
    int32_t* offsets = params.offsets.As<int32_t>();
    next_row_.assign(static_cast<size_t>(slots), 0);
    for (int64_t token = 0; token < tokens; ++token) {
      for (int64_t k = 0; k < top_k; ++k) {
        const int32_t slot = SlotOf(slot_of_expert, params.expert_ids.Row<int32_t>(token)[k]);
        if (slot >= 0) ++next_row_[slot];
      }
    }
    offsets[0] = 0;
    for (int64_t slot = 0; slot < slots; ++slot) {
      offsets[slot + 1] = offsets[slot] + next_row_[slot];
      next_row_[slot] = offsets[slot];
    }
    for (int64_t token = 0; token < tokens; ++token) {
      for (int64_t k = 0; k < top_k; ++k) {
        const int32_t slot = SlotOf(slot_of_expert, params.expert_ids.Row<int32_t>(token)[k]);
        params.pair_rows.Row<int32_t>(token)[k] = slot >= 0 ? next_row_[slot]++ : -1;
      }
    }
    return absl::OkStatus();
  }

  absl::Status Combine(const MoeCombineParams& params, StreamId) override {
    calls_->Count("moe_combine", "cpu");
    SLUICE_RETURN_IF_ERROR(CheckMoeCombine(params));
    const int64_t hidden = params.out.dims[1];
    const int64_t top_k = params.pair_rows.dims[1];
    ForkIfWorth(pool_, params.out.rows(), hidden / 8 * (top_k + 2), [&](int64_t token) {
      const float* shared =
          params.shared.data == nullptr ? nullptr : params.shared.Row<float>(token);
      kernels_.combine(params.rows.As<float>(), params.rows.row_stride,
                       params.pair_rows.Row<int32_t>(token),
                       params.expert_weights.Row<float>(token), top_k, shared, hidden,
                       params.out.Row<float>(token));
    });
    return absl::OkStatus();
  }

 private:
  ThreadPool& pool_;
  const std::shared_ptr<KernelCalls> calls_;
  const RowKernels& kernels_;
  std::vector<std::vector<float>> scratch_;  // per worker: scores, then biased scores
  std::vector<int32_t> next_row_;            // per slot
};

}  // namespace

std::unique_ptr<MoeOps> MakeCpuMoeOps(const CpuContext& context) {
  return std::make_unique<CpuMoeOps>(context);
}

}  // namespace sluice
