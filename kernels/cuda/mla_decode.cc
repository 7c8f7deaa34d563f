#include "kernels/cuda/mla_decode.h"

#include <algorithm>
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

// Scratch memory is for so many tokens: 311 KB each with 128 heads.
constexpr int kTokensAtOnce = 512;

}  // namespace

bool MlaDecode::Takes(const MlaDecodeRequest& request) {
  const cuda::MlaShape& shape = request.args.shape;
  return shape.heads % kHeadsStep == 0 && shape.heads <= 2 * cuda::kMlaHeads &&
         shape.nope == kNope && shape.rope == kRope && shape.v == kValue && shape.rank == kRank &&
         request.args.cache_element == cuda::Element::kBF16 && request.args.q_stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(request.args.q) % 16 == 0;
}

absl::Status MlaDecode::Reserve(int64_t tokens, int64_t rows) {
  // However long the sequences: of two tokens that a part shares with others.
  const size_t parts = static_cast<size_t>(context_.multiprocessors) * 2 * cuda::kMlaHeads;
  SLUICE_RETURN_IF_ERROR(part_out_.Reserve(parts * kRank * sizeof(float)).status());
  SLUICE_RETURN_IF_ERROR(part_lse_.Reserve(parts * sizeof(float)).status());
  SLUICE_RETURN_IF_ERROR(pieces_.Reserve(static_cast<size_t>(tokens) * sizeof(int2)).status());
  const size_t count = static_cast<size_t>(rows);
  SLUICE_RETURN_IF_ERROR(nope_.Reserve(count * kNope * 2).status());
  SLUICE_RETURN_IF_ERROR(queries_.Reserve(count * kQuery * 2).status());
  return attended_.Reserve(count * kRank * 2).status();
}

absl::Status MlaDecode::Run(const MlaDecodeRequest& request) {
  for (int begin = 0; begin < request.args.tokens; begin += kTokensAtOnce) {
    MlaDecodeRequest piece = request;
    cuda::AbsorbedArgs& args = piece.args;
    args.tokens = std::min(request.args.tokens - begin, kTokensAtOnce);
    args.q += begin * args.q_stride;
    args.out += begin * args.out_stride;
    if (args.seq_of_token != nullptr) args.seq_of_token += begin;
    if (args.positions != nullptr) args.positions += begin;
    args.first_position += begin;
    SLUICE_RETURN_IF_ERROR(RunPiece(piece));
  }
  return absl::OkStatus();
}

absl::Status MlaDecode::RunPiece(const MlaDecodeRequest& request) {
  const cuda::AbsorbedArgs& args = request.args;
  const int tokens = args.tokens, heads = args.shape.heads;
  const int64_t rows = int64_t{tokens} * heads;
  SLUICE_ASSIGN_OR_RETURN(const __nv_bfloat16* const w_uk, copies_->Get(request.kv_b));
  SLUICE_RETURN_IF_ERROR(Reserve(tokens, rows));
  const __nv_bfloat16* w_uv = w_uk + kNope * kRank;
  constexpr int64_t kHeadStride = (kNope + kValue) * kRank;

  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cuda::LaunchSplitQueries({.q = args.q,
                                           .q_stride = args.q_stride,
                                           .tokens = tokens,
                                           .heads = heads,
                                           .nope = nope_.As<__nv_bfloat16>(),
                                           .queries = queries_.As<__nv_bfloat16>()},
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
  decode.queries = queries_.As<__nv_bfloat16>();
  decode.page_table = args.page_table;
  decode.page_table_stride = args.page_table_stride;
  decode.seq_of_token = args.seq_of_token;
  decode.positions = args.positions;
  decode.first_position = static_cast<int32_t>(args.first_position);
  decode.tokens = tokens;
  decode.heads = heads;
  decode.scale_log2 = args.scale * static_cast<float>(M_LOG2E);
  decode.parts = context_.multiprocessors / groups;
  decode.out = attended_.As<__nv_bfloat16>();
  decode.part_out = part_out_.As<float>();
  decode.part_lse = part_lse_.As<float>();
  decode.pieces = pieces_.As<int2>();
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
