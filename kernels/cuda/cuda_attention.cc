#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cuda/bf16_copies.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/mla_decode.h"
#include "kernels/cuda/mla_prompt.h"
#include "kernels/cuda/weight_tables.h"
#include "kernels/ops/checks.h"

namespace sluice {
namespace {

constexpr int64_t kSharedBytesMax = 227 * 1024;  // of one block, on Hopper

cuda::MlaShape ToShape(const MlaDims& dims) {
  return {dims.num_heads, dims.nope_dim, dims.rope_dim, dims.v_dim, dims.kv_lora_rank};
}

absl::Status CheckFits(const cuda::MlaShape& shape) {
  const int64_t bytes = cuda::AbsorbedSharedBytes(shape);
  if (bytes <= kSharedBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("kv_lora_rank ", shape.rank, " needs ", bytes,
                                                 " bytes of shared memory, a block has ",
                                                 kSharedBytesMax));
}

class CudaAttentionOps final : public AttentionOps {
 public:
  explicit CudaAttentionOps(const CudaContext& context)
      : context_(context), kv_b_(context), decode_(context, &kv_b_), prompt_(context, &kv_b_) {}

  absl::StatusOr<std::shared_ptr<const void>> Prepare(const MlaWeights& weights,
                                                      StreamId) override {
    const bool fast = context_.numerics == Numerics::kFast &&
                      sluice::MlaPrompt::Takes(weights.dims, weights.cache);
    if (!fast) return nullptr;
    return kv_b_.Keep(weights.kv_b);
  }

  absl::Status MlaCacheWrite(const MlaCacheWriteParams& params, StreamId) override {
    context_.calls->Count("mla_cache_write", "cuda");
    SLUICE_RETURN_IF_ERROR(CheckMlaCacheWrite(params));
    return CudaStatus(cuda::LaunchCacheWrite({.shape = ToShape(params.dims),
                                              .q = params.q.As<float>(),
                                              .q_stride = params.q.row_stride,
                                              .kv_a = params.kv_a.As<float>(),
                                              .kv_a_stride = params.kv_a.row_stride,
                                              .kv_norm = params.kv_norm.As<float>(),
                                              .eps = params.eps,
                                              .cos_sin = params.cos_sin.As<float>(),
                                              .positions = params.positions.As<int32_t>(),
                                              .kv_rows = params.kv_rows.As<int32_t>(),
                                              .tokens = static_cast<int32_t>(params.q.rows()),
                                              .cache = params.cache.data,
                                              .cache_element = ToElement(params.cache.dtype)},
                                             context_.stream),
                      "writing the KV cache");
  }

  absl::Status MlaAbsorbed(const MlaAbsorbedParams& params, StreamId) override {
    SLUICE_RETURN_IF_ERROR(CheckMlaAbsorbed(params));
    cuda::AbsorbedArgs args = Args(params.dims, params.q, params.kv_b, params.cache, params.out);
    args.page_table = params.page_table.As<int32_t>();
    args.page_table_stride = params.page_table.row_stride;
    args.seq_of_token = params.seq_of_token.As<int32_t>();
    args.positions = params.positions.As<int32_t>();
    args.scale = params.scale;
    return Attend("mla_absorbed", args, params.kv_b, params.cache);
  }

  // In absorbed form where there is no kernel for prompts: the same numbers.
  absl::Status MlaPrompt(const MlaPromptParams& params, StreamId) override {
    SLUICE_RETURN_IF_ERROR(CheckMlaPrompt(params));
    if (context_.numerics == Numerics::kFast && sluice::MlaPrompt::Takes(params)) {
      context_.calls->Count("mla_prompt", "bf16_wgmma");
      return prompt_.Run(params);
    }
    for (const PromptChunk& chunk : params.chunks) {
      cuda::AbsorbedArgs args =
          Args(params.dims, params.q.Slice(chunk.token_begin, chunk.num_tokens), params.kv_b,
               params.cache, params.out.Slice(chunk.token_begin, chunk.num_tokens));
      args.page_table = params.page_table.Row<int32_t>(chunk.seq);
      args.first_position = chunk.first_position;
      args.scale = params.scale;
      SLUICE_RETURN_IF_ERROR(Attend("mla_prompt", args, params.kv_b, params.cache));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Attend(const char* op, const cuda::AbsorbedArgs& args, const WeightView& kv_b,
                      const TensorView& cache) {
    const MlaDecodeRequest request = {.args = args, .kv_b = kv_b, .cache_pages = cache.dims[0]};
    if (context_.numerics == Numerics::kFast && MlaDecode::Takes(request)) {
      context_.calls->Count(op, "absorbed_bf16_wgmma");
      return decode_.Run(request);
    }
    SLUICE_RETURN_IF_ERROR(CheckFits(args.shape));
    context_.calls->Count(op, "absorbed_general");
    return CudaStatus(cuda::LaunchAbsorbed(args, context_.stream), "absorbed attention");
  }

  static cuda::AbsorbedArgs Args(const MlaDims& dims, const TensorView& q, const WeightView& kv_b,
                                 const TensorView& cache, const TensorView& out) {
    cuda::AbsorbedArgs args{};
    args.shape = ToShape(dims);
    args.q = q.As<float>();
    args.q_stride = q.row_stride;
    args.kv_b = ToWeight(kv_b);
    args.element = ToElement(kv_b.dtype);
    args.cache = cache.data;
    args.cache_element = ToElement(cache.dtype);
    args.tokens = static_cast<int32_t>(q.rows());
    args.out = out.As<float>();
    args.out_stride = out.row_stride;
    return args;
  }

  const CudaContext& context_;
  Bf16Copies kv_b_;
  MlaDecode decode_;
  sluice::MlaPrompt prompt_;
};

}  // namespace

std::unique_ptr<AttentionOps> MakeCudaAttentionOps(const CudaContext& context) {
  return std::make_unique<CudaAttentionOps>(context);
}

}  // namespace sluice
