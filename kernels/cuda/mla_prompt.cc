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

bool MlaPrompt::Takes(const MlaDims& dims, DType cache) {
  return dims.nope_dim == kNope && dims.rope_dim == kRope && dims.v_dim == kValue &&
         dims.kv_lora_rank == kRank && cache == DType::kBF16;
}

bool MlaPrompt::Takes(const MlaPromptParams& params) {
  return Takes(params.dims, params.cache.dtype) && IsAligned(params.cache.data, 16) &&
         IsAligned(params.q.data, 16) && params.q.row_stride % 4 == 0 &&
         IsAligned(params.out.data, 8) && params.out.row_stride % 2 == 0;
}

absl::Status MlaPrompt::Reserve(int64_t heads, int64_t lse_count) {
  constexpr size_t kRows = cuda::kPromptPassRows;
  SLUICE_RETURN_IF_ERROR(counter_.Reserve(sizeof(int32_t)).status());
  SLUICE_RETURN_IF_ERROR(latents_.Reserve(kRows * kKvColumns * 2).status());
  const size_t columns = static_cast<size_t>(heads) * kHeadColumns;
  SLUICE_RETURN_IF_ERROR(expanded_.Reserve(kRows * columns * 2).status());
  return lse_.Reserve(static_cast<size_t>(lse_count) * sizeof(float)).status();
}

absl::Status MlaPrompt::Run(const MlaPromptParams& params) {
  const int heads = params.dims.num_heads;
  const std::vector<cuda::PromptPass> passes =
      PlanPrompt(params.chunks, params.page_table.row_stride, heads);
  if (passes.empty()) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(Reserve(heads, params.q.rows() * heads));
  SLUICE_ASSIGN_OR_RETURN(const __nv_bfloat16* const weights, copies_->Get(params.kv_b));

  cuda::MlaPromptArgs attend{};
  const int64_t columns = int64_t{heads} * kHeadColumns;
  auto* const counter = counter_.As<int32_t>();
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
  attend.lse = lse_.As<float>();
  attend.heads = heads;
  attend.scale_log2 = params.scale * static_cast<float>(M_LOG2E);
  attend.counter = counter;
  attend.blocks = context_.multiprocessors;

  for (const cuda::PromptPass& pass : passes) {
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cuda::LaunchPromptGather({.pass = pass,
                                             .cache = params.cache.As<__nv_bfloat16>(),
                                             .page_table = params.page_table.As<int32_t>(),
                                             .out = latents_.As<__nv_bfloat16>(),
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
