#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/launch.h"
#include "kernels/ops/checks.h"

namespace sluice {
namespace {

cuda::GroupRule ToRule(GroupScore score) {
  switch (score) {
    case GroupScore::kNone:
      return cuda::GroupRule::kNone;
    case GroupScore::kMax:
      return cuda::GroupRule::kMax;
    case GroupScore::kTop2Sum:
      return cuda::GroupRule::kTop2Sum;
  }
  return cuda::GroupRule::kNone;
}

class CudaMoeOps final : public MoeOps {
 public:
  explicit CudaMoeOps(const CudaContext& context) : context_(context) {}

  absl::Status Gate(const GateParams& params, StreamId) override {
    context_.calls->Count("gate", "cuda");
    SLUICE_RETURN_IF_ERROR(CheckGate(params));
    return CudaStatus(cuda::LaunchGate({.logits = params.logits.As<float>(),
                                        .logits_stride = params.logits.row_stride,
                                        .bias = params.bias.As<float>(),
                                        .live = params.live.As<int32_t>(),
                                        .scores = params.scoring == GateScoring::kSigmoid
                                                      ? cuda::GateScores::kSigmoid
                                                      : cuda::GateScores::kSoftmax,
                                        .group_rule = ToRule(params.group_score),
                                        .num_groups = params.num_groups,
                                        .topk_groups = params.topk_groups,
                                        .top_k = static_cast<int32_t>(params.expert_ids.dims[1]),
                                        .experts = static_cast<int32_t>(params.logits.dims[1]),
                                        .tokens = static_cast<int32_t>(params.logits.rows()),
                                        .normalize = params.normalize,
                                        .scaling = params.scaling,
                                        .expert_ids = params.expert_ids.As<int32_t>(),
                                        .ids_stride = params.expert_ids.row_stride,
                                        .expert_weights = params.expert_weights.As<float>(),
                                        .weights_stride = params.expert_weights.row_stride,
                                        .load = params.expert_load.As<unsigned long long>()},
                                       context_.stream),
                      "gate");
  }

  absl::Status Permute(const MoePermuteParams& params, StreamId) override {
    context_.calls->Count("moe_permute", "cuda");
    SLUICE_RETURN_IF_ERROR(CheckMoePermute(params));
    const int64_t slots = params.offsets.rows() - 1;
    if (slots > cuda::kPermuteSlotsMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("offsets: ", slots, " slots, at most ", cuda::kPermuteSlotsMax));
    }
    const int64_t counts =
        cuda::PermuteChunkCounts(params.expert_ids.rows(), params.expert_ids.dims[1], slots);
    SLUICE_ASSIGN_OR_RETURN(void* const chunk_counts,
                            chunk_counts_.Reserve(static_cast<size_t>(counts) * sizeof(int32_t)));
    return CudaStatus(cuda::LaunchPermute({.expert_ids = params.expert_ids.As<int32_t>(),
                                           .ids_stride = params.expert_ids.row_stride,
                                           .slot_of_expert = params.slot_of_expert.As<int32_t>(),
                                           .tokens = static_cast<int32_t>(params.expert_ids.rows()),
                                           .top_k = static_cast<int32_t>(params.expert_ids.dims[1]),
                                           .slots = static_cast<int32_t>(slots),
                                           .offsets = params.offsets.As<int32_t>(),
                                           .pair_rows = params.pair_rows.As<int32_t>(),
                                           .pair_stride = params.pair_rows.row_stride,
                                           .chunk_counts = static_cast<int32_t*>(chunk_counts)},
                                          context_.stream),
                      "sorting tokens by expert");
  }

  absl::Status Combine(const MoeCombineParams& params, StreamId) override {
    context_.calls->Count("moe_combine", "cuda");
    SLUICE_RETURN_IF_ERROR(CheckMoeCombine(params));
    return CudaStatus(cuda::LaunchCombine({.rows = params.rows.As<float>(),
                                           .rows_stride = params.rows.row_stride,
                                           .pair_rows = params.pair_rows.As<int32_t>(),
                                           .pair_stride = params.pair_rows.row_stride,
                                           .weights = params.expert_weights.As<float>(),
                                           .weights_stride = params.expert_weights.row_stride,
                                           .shared = params.shared.As<float>(),
                                           .shared_stride = params.shared.row_stride,
                                           .tokens = static_cast<int32_t>(params.out.rows()),
                                           .top_k = static_cast<int32_t>(params.pair_rows.dims[1]),
                                           .hidden = static_cast<int32_t>(params.out.dims[1]),
                                           .out = params.out.As<float>(),
                                           .out_stride = params.out.row_stride},
                                          context_.stream),
                      "combining experts");
  }

 private:
  const CudaContext& context_;
  CudaScratch chunk_counts_;
};

}  // namespace

std::unique_ptr<MoeOps> MakeCudaMoeOps(const CudaContext& context) {
  return std::make_unique<CudaMoeOps>(context);
}

}  // namespace sluice
