#include "kernels/cuda/mla_prompt.h"

#include <cmath>
#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/mla_prompt_launch.h"
#include "kernels/cuda/mla_prompt_plan.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/weight_tables.h"

namespace sluice {
namespace {

constexpr int kNope = 128, kRope = 64, kValue = 128, kRank = 512;
constexpr int kHeadColumns = kNope + kValue;  // of kv_b's product
constexpr int kKvColumns = kRank + kRope;

bool IsAligned(const void* data, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

}  // namespace

bool MlaPrompt::Takes(const MlaPromptParams& params) {
  const MlaDims& dims = params.dims;
  return dims.nope_dim == kNope && dims.rope_dim == kRope && dims.v_dim == kValue &&
         dims.kv_lora_rank == kRank && params.cache.dtype == DType::kBF16 &&
         IsAligned(params.cache.data, 16) && IsAligned(params.q.data, 16) &&
         params.q.row_stride % 4 == 0 && IsAligned(params.out.data, 8) &&
         params.out.row_stride % 2 == 0;
}

absl::Status MlaPrompt::Reserve(int64_t heads, int64_t lse_count) {
  if (heads <= heads_ && lse_count <= lse_count_) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaStreamSynchronize(context_.stream), "waiting for the stream"));
  if (heads > heads_) {
    constexpr size_t kRows = cuda::kPromptPassRows;
    const size_t columns = static_cast<size_t>(heads) * kHeadColumns;
    SLUICE_ASSIGN_OR_RETURN(counter_, AllocateCuda(sizeof(int32_t)));
    SLUICE_ASSIGN_OR_RETURN(latents_, AllocateCuda(kRows * kKvColumns * 2));
    SLUICE_ASSIGN_OR_RETURN(expanded_, AllocateCuda(kRows * columns * 2));
    SLUICE_ASSIGN_OR_RETURN(weights_, AllocateCuda(columns * kRank * 2));
    heads_ = heads;
  }
  if (lse_count > lse_count_) {
    SLUICE_ASSIGN_OR_RETURN(lse_, AllocateCuda(static_cast<size_t>(lse_count) * sizeof(float)));
    lse_count_ = lse_count;
  }
  return absl::OkStatus();
}

absl::StatusOr<const void*> MlaPrompt::Bf16Weights(const WeightView& kv_b) {
  if (kv_b.dtype == DType::kBF16 && kv_b.row_stride == kRank && IsAligned(kv_b.data, 16)) {
    return kv_b.data;
  }
  auto* const out = static_cast<__nv_bfloat16*>(weights_.get());
  const bool blocks = kv_b.dtype == DType::kF8E4M3 && kv_b.scales != nullptr &&
                      kv_b.scale_block == 128 && kv_b.row_begin % 128 == 0 &&
                      kv_b.col_begin % 128 == 0 && kv_b.row_stride % 16 == 0 &&
                      IsAligned(kv_b.data, 16);
  const cudaError_t error =
      blocks ? cuda::LaunchPromptWeights(
                   {.w = static_cast<const uint8_t*>(kv_b.data),
                    .w_stride = kv_b.row_stride,
                    .scales = kv_b.scales + kv_b.row_begin / 128 * kv_b.scale_row_stride +
                              kv_b.col_begin / 128,
                    .scale_stride = kv_b.scale_row_stride,
                    .rows = static_cast<int32_t>(kv_b.rows),
                    .out = out},
                   context_.stream)
             : cuda::LaunchToBf16({.w = ToWeight(kv_b),
                                   .element = ToElement(kv_b.dtype),
                                   .rows = static_cast<int32_t>(kv_b.rows),
                                   .cols = static_cast<int32_t>(kv_b.cols),
                                   .out = out},
                                  context_.stream);
  SLUICE_RETURN_IF_ERROR(CudaStatus(error, "making weights bf16"));
  return weights_.get();
}

absl::Status MlaPrompt::Run(const MlaPromptParams& params) {
  const int heads = params.dims.num_heads;
  const std::vector<cuda::PromptPass> passes =
      PlanPrompt(params.chunks, params.page_table.row_stride, heads);
  if (passes.empty()) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(Reserve(heads, passes.size() > 1 ? params.q.rows() * heads : 0));
  SLUICE_ASSIGN_OR_RETURN(const void* weights, Bf16Weights(params.kv_b));

  cuda::MlaPromptArgs attend{};
  const int64_t columns = int64_t{heads} * kHeadColumns;
  auto* const counter = static_cast<int32_t*>(counter_.get());
  SLUICE_ASSIGN_OR_RETURN(attend.keys, MakeByteMap(expanded_.get(), cuda::kPromptPassRows,
                                                   columns * 2, columns * 2, cuda::kPromptTile));
  SLUICE_ASSIGN_OR_RETURN(
      attend.values, MakeByteMap(expanded_.get(), cuda::kPromptPassRows, columns * 2, columns * 2,
                                 cuda::kPromptTile / 2));
  SLUICE_ASSIGN_OR_RETURN(attend.ropes,
                          MakeByteMap(latents_.get(), cuda::kPromptPassRows, kKvColumns * 2,
                                      kKvColumns * 2, cuda::kPromptTile));
  attend.q = params.q.As<float>();
  attend.q_stride = params.q.row_stride;
  attend.out = params.out.As<float>();
  attend.out_stride = params.out.row_stride;
  attend.lse = static_cast<float*>(lse_.get());
  attend.heads = heads;
  attend.scale_log2 = params.scale * static_cast<float>(M_LOG2E);
  attend.counter = counter;
  attend.blocks = context_.multiprocessors;

  for (const cuda::PromptPass& pass : passes) {
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cuda::LaunchPromptGather({.pass = pass,
                                             .cache = params.cache.As<__nv_bfloat16>(),
                                             .page_table = params.page_table.As<int32_t>(),
                                             .out = static_cast<__nv_bfloat16*>(latents_.get()),
                                             .counter = counter},
                                            context_.stream),
                   "gathering latents"));
    SLUICE_RETURN_IF_ERROR(cublas_.Multiply(
        "making keys and values", pass.rows, columns, kRank,
        {.data = latents_.get(), .row_stride = kKvColumns}, {.data = weights, .row_stride = kRank},
        /*b_transposed=*/true, {.data = expanded_.get(), .row_stride = columns}));
    attend.pass = pass;
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cuda::LaunchMlaPrompt(attend, context_.stream), "prompt attention"));
  }
  return absl::OkStatus();
}

}  // namespace sluice
