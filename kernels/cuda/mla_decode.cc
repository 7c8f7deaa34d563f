#include "kernels/cuda/mla_decode.h"

#include <cmath>
#include <cstdint>

#include "kernels/base/status.h"
#include "kernels/cuda/mla_decode_launch.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/weight_tables.h"

namespace sluice {
namespace {

constexpr int kNope = 128, kRope = 64, kValue = 128, kRank = 512;
constexpr int kQuery = kRank + kRope;
constexpr int kHeadsStep = 16;

}  // namespace

bool MlaDecode::Takes(const MlaDecodeRequest& request) {
  const cuda::MlaShape& shape = request.args.shape;
  return shape.heads % kHeadsStep == 0 && shape.heads <= 2 * cuda::kMlaHeads &&
         shape.nope == kNope && shape.rope == kRope && shape.v == kValue && shape.rank == kRank &&
         request.args.cache_element == cuda::Element::kBF16 && request.args.q_stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(request.args.q) % 16 == 0;
}

absl::StatusOr<const void*> MlaDecode::Bf16Weights(const MlaDecodeRequest& request) {
  const WeightView& kv_b = request.kv_b;
  if (kv_b.dtype == DType::kBF16 && kv_b.row_stride == kRank) return kv_b.data;
  Copy& copy = weights_[kv_b.data];
  if (copy.memory != nullptr && SameView(copy.of, kv_b)) return copy.memory.get();
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaStreamSynchronize(context_.stream), "waiting for the stream"));
  const int64_t elements = kv_b.rows * kv_b.cols;
  SLUICE_ASSIGN_OR_RETURN(copy.memory, AllocateCuda(static_cast<size_t>(elements) * 2));
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cuda::LaunchToBf16({.w = request.args.kv_b,
                                     .element = request.args.element,
                                     .rows = static_cast<int32_t>(kv_b.rows),
                                     .cols = static_cast<int32_t>(kv_b.cols),
                                     .out = static_cast<__nv_bfloat16*>(copy.memory.get())},
                                    context_.stream),
                 "making weights bf16"));
  copy.of = kv_b;
  return copy.memory.get();
}

absl::Status MlaDecode::Reserve(int64_t tokens, int64_t rows) {
  if (tokens <= tokens_ && rows <= rows_) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaStreamSynchronize(context_.stream), "waiting for the stream"));
  if (part_out_ == nullptr) {
    // However long the sequences: of two tokens that a part shares with others.
    const size_t count = static_cast<size_t>(context_.multiprocessors) * 2 * cuda::kMlaHeads;
    SLUICE_ASSIGN_OR_RETURN(part_out_, AllocateCuda(count * kRank * sizeof(float)));
    SLUICE_ASSIGN_OR_RETURN(part_lse_, AllocateCuda(count * sizeof(float)));
  }
  if (tokens > tokens_) {
    SLUICE_ASSIGN_OR_RETURN(pieces_, AllocateCuda(static_cast<size_t>(tokens) * sizeof(int2)));
    tokens_ = tokens;
  }
  if (rows > rows_) {
    const size_t count = static_cast<size_t>(rows);
    SLUICE_ASSIGN_OR_RETURN(nope_, AllocateCuda(count * kNope * 2));
    SLUICE_ASSIGN_OR_RETURN(queries_, AllocateCuda(count * kQuery * 2));
    SLUICE_ASSIGN_OR_RETURN(attended_, AllocateCuda(count * kRank * 2));
    rows_ = rows;
  }
  return absl::OkStatus();
}

absl::Status MlaDecode::Run(const MlaDecodeRequest& request) {
  const cuda::AbsorbedArgs& args = request.args;
  const int tokens = args.tokens, heads = args.shape.heads;
  if (tokens == 0) return absl::OkStatus();
  const int64_t rows = int64_t{tokens} * heads;
  SLUICE_ASSIGN_OR_RETURN(const void* weights, Bf16Weights(request));
  SLUICE_RETURN_IF_ERROR(Reserve(tokens, rows));
  const auto* w_uk = static_cast<const __nv_bfloat16*>(weights);
  const __nv_bfloat16* w_uv = w_uk + kNope * kRank;
  constexpr int64_t kHeadStride = (kNope + kValue) * kRank;

  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cuda::LaunchSplitQueries({.q = args.q,
                                           .q_stride = args.q_stride,
                                           .tokens = tokens,
                                           .heads = heads,
                                           .nope = static_cast<__nv_bfloat16*>(nope_.get()),
                                           .queries = static_cast<__nv_bfloat16*>(queries_.get())},
                                          context_.stream),
                 "splitting queries"));
  // Per head: queries[:512] = nope W_UK.
  SLUICE_RETURN_IF_ERROR(cublas_.Multiply(
      "absorbing queries", tokens, kRank, kNope,
      {.data = nope_.get(), .row_stride = heads * kNope, .stride = kNope},
      {.data = w_uk, .row_stride = kRank, .stride = kHeadStride}, /*b_transposed=*/false,
      {.data = queries_.get(), .row_stride = heads * kQuery, .stride = kQuery}, heads));

  const int groups = (heads + cuda::kMlaHeads - 1) / cuda::kMlaHeads;
  cuda::MlaDecodeArgs decode{};
  SLUICE_ASSIGN_OR_RETURN(
      decode.q, MakeByteMap(queries_.get(), rows, kQuery * 2, kQuery * 2, cuda::kMlaHeads));
  SLUICE_ASSIGN_OR_RETURN(decode.cache, MakeByteMap(args.cache, request.cache_pages * kPageTokens,
                                                    kQuery * 2, kQuery * 2, kPageTokens));
  decode.queries = static_cast<const __nv_bfloat16*>(queries_.get());
  decode.page_table = args.page_table;
  decode.page_table_stride = args.page_table_stride;
  decode.seq_of_token = args.seq_of_token;
  decode.positions = args.positions;
  decode.first_position = static_cast<int32_t>(args.first_position);
  decode.tokens = tokens;
  decode.heads = heads;
  decode.scale_log2 = args.scale * static_cast<float>(M_LOG2E);
  decode.parts = context_.multiprocessors / groups;
  decode.out = static_cast<__nv_bfloat16*>(attended_.get());
  decode.part_out = static_cast<float*>(part_out_.get());
  decode.part_lse = static_cast<float*>(part_lse_.get());
  decode.pieces = static_cast<int2*>(pieces_.get());
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cuda::LaunchMlaDecode(decode, context_.stream), "absorbed attention"));

  // Per head: out = attended W_UV^T.
  return cublas_.Multiply(
      "bringing attention back", tokens, kValue, kRank,
      {.data = attended_.get(), .row_stride = heads * kRank, .stride = kRank},
      {.data = w_uv, .row_stride = kRank, .stride = kHeadStride}, /*b_transposed=*/true,
      {.data = args.out, .type = CUDA_R_32F, .row_stride = args.out_stride, .stride = kValue},
      heads);
}

}  // namespace sluice
