// Attention of prompts on the GPU, with DeepSeek-V3's dimensions: the op as the engine calls it,
// and its kernel alone, without the making of keys and values. FLOPs are those of causal attention;
// of the op, also those of the expansion.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/mla_prompt_plan.h"
#include "kernels/cuda/tensor_map.h"
#include "tests/bench/cuda_bench.h"

namespace sluice::bench {
namespace {

constexpr int kWidth = 576, kQuery = 192, kValue = 128, kRank = 512;
constexpr float kScale = 0.1352f;

struct Shape {
  int64_t sequences, tokens, first_position = 0;
  int heads = 128;
  double cudnn_tflops = 0;  // of cuDNN's attention of given keys and values, the same kind of card
};
constexpr Shape kShapes[] = {
    {16, 1024, 0, 128, 470},
    {8, 2048, 0, 128, 557},
    {4, 4096, 0, 128, 539},
    {2, 8192, 0, 128, 566},
    {1, 16384},
    {1, 1024, 4096},
    {64, 256},
    {64, 64},
    {1, 64},
    {4, 4096, 0, 32},
};

std::string Name(const Shape& s) {
  return absl::StrCat(s.sequences, "x", s.tokens,
                      s.first_position > 0 ? absl::StrCat(" after ", s.first_position) : "",
                      " h=", s.heads);
}

double AttentionFlops(const Shape& s) {
  const double pairs = static_cast<double>(s.sequences * s.tokens) *
                       (static_cast<double>(s.first_position) + (s.tokens + 1) / 2.0);
  return 2.0 * s.heads * (kQuery + kValue) * pairs;
}
double ExpansionFlops(const Shape& s) {
  return 2.0 * static_cast<double>(s.sequences * (s.first_position + s.tokens)) * kRank * s.heads *
         (kQuery - 64 + kValue);
}

void Op(CudaBench& bench, Backend& backend, const Shape& s, DType weights) {
  const std::string name = absl::StrCat("mla prompt, kv_b ", DTypeName(weights));
  if (!bench.Wants(name, Name(s))) return;
  const int64_t rows = s.sequences * s.tokens, positions = s.first_position + s.tokens;
  const int64_t pages = PagesFor(positions), kv_rows = int64_t{s.heads} * 256;
  std::vector<int32_t> order(static_cast<size_t>(s.sequences * pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  std::vector<PromptChunk> chunks;
  for (int64_t i = 0; i < s.sequences; ++i) {
    chunks.push_back({.token_begin = i * s.tokens,
                      .num_tokens = s.tokens,
                      .seq = i,
                      .first_position = s.first_position});
  }
  const bool fp8 = weights == DType::kF8E4M3;
  const DeviceMemory q = RandomF32(rows * s.heads * kQuery, 0.5f, 2),
                     cache = RandomBf16(s.sequences * pages * kPageTokens * kWidth, 1, 3),
                     kv_b = fp8 ? RandomF8(kv_rows * kRank, 100, 4)
                                : RandomBf16(kv_rows * kRank, 0.04f, 4),
                     scales = UniformF32(kv_rows / 128 * 4, 2e-4f, 6e-4f, 5), table = Upload(order),
                     out = Zeros(rows * s.heads * kValue * 4);
  WeightView kv_b_view;
  kv_b_view.data = kv_b.get();
  kv_b_view.dtype = weights;
  kv_b_view.rows = kv_rows;
  kv_b_view.cols = kv_b_view.row_stride = kRank;
  if (fp8) kv_b_view.scales = static_cast<const float*>(scales.get());
  kv_b_view.scale_row_stride = 4;
  const MlaDims dims = {s.heads, 128, 64, kValue, kRank};
  const auto prepared =
      backend.attention().Prepare({.dims = dims, .kv_b = kv_b_view, .cache = DType::kBF16}, {});
  Check(prepared.status());
  const MlaPromptParams params = {
      .dims = dims,
      .q = TensorView(q.get(), DType::kF32, {rows, s.heads * kQuery}),
      .kv_b = kv_b_view,
      .cache = TensorView(cache.get(), DType::kBF16, {s.sequences * pages, kPageTokens, kWidth}),
      .page_table = TensorView(table.get(), DType::kI32, {s.sequences, pages}),
      .chunks = chunks,
      .scale = kScale,
      .out = TensorView(out.get(), DType::kF32, {rows, s.heads * kValue})};
  bench.Run({.name = name,
             .shape = Name(s),
             .flops = AttentionFlops(s) + ExpansionFlops(s),
             .bytes = static_cast<double>(rows * s.heads * (kQuery + kValue) * 4 +
                                          s.sequences * positions * kWidth * 2 +
                                          kv_rows * kRank * (fp8 ? 1 : 2))},
            StreamOf(backend), [&](int) { Check(backend.attention().MlaPrompt(params, {})); });
}

void Kernel(CudaBench& bench, Backend& backend, const Shape& s) {
  const std::string name = "mla prompt kernel";
  if (!bench.Wants(name, Name(s))) return;
  const int64_t rows = s.sequences * s.tokens, positions = s.first_position + s.tokens;
  const int64_t columns = int64_t{s.heads} * 256;
  const DeviceMemory q = RandomF32(rows * s.heads * kQuery, 0.5f, 2),
                     expanded = RandomBf16(cuda::kPromptPassRows * columns, 1, 3),
                     latents = RandomBf16(int64_t{cuda::kPromptPassRows} * kWidth, 1, 4),
                     out = Zeros(rows * s.heads * kValue * 4), lse = Zeros(rows * s.heads * 4),
                     counter = Zeros(4);
  std::vector<PromptChunk> chunks;
  for (int64_t i = 0; i < s.sequences; ++i) {
    chunks.push_back({.token_begin = i * s.tokens,
                      .num_tokens = s.tokens,
                      .seq = i,
                      .first_position = s.first_position});
  }
  const std::vector<cuda::PromptPass> passes = PlanPrompt(chunks, PagesFor(positions), s.heads);
  const auto map = [](const DeviceMemory& of, int64_t width, int box) {
    const auto made = MakeByteMap(of.get(), cuda::kPromptPassRows, width * 2, width * 2, box);
    Check(made.status());
    return *made;
  };
  cuda::MlaPromptArgs args{};
  args.keys = map(expanded, columns, cuda::kPromptTile);
  args.values = map(expanded, columns, cuda::kPromptTile / 2);
  args.ropes = map(latents, kWidth, cuda::kPromptTile);
  args.q = static_cast<const float*>(q.get());
  args.q_stride = s.heads * kQuery;
  args.out = static_cast<float*>(out.get());
  args.out_stride = s.heads * kValue;
  args.lse = static_cast<float*>(lse.get());
  args.heads = s.heads;
  args.scale_log2 = kScale * static_cast<float>(M_LOG2E);
  args.counter = static_cast<int32_t*>(counter.get());
  int device = 0;
  Check(cudaGetDevice(&device));
  Check(cudaDeviceGetAttribute(&args.blocks, cudaDevAttrMultiProcessorCount, device));
  const cudaStream_t stream = StreamOf(backend);
  const double flops = AttentionFlops(s);
  bench.Run({.name = name,
             .shape = Name(s),
             .flops = flops,
             .bytes = static_cast<double>(rows * s.heads * (kQuery + kValue) * 4 +
                                          s.sequences * positions * (columns + 64) * 2),
             .peer = s.cudnn_tflops > 0 ? "cuDNN" : "",
             .peer_us = s.cudnn_tflops > 0 ? flops / s.cudnn_tflops / 1e6 : 0},
            stream, [&](int) {
              for (const cuda::PromptPass& pass : passes) {
                Check(cudaMemsetAsync(args.counter, 0, sizeof(int32_t), stream));
                args.pass = pass;
                Check(cuda::LaunchMlaPrompt(args, stream));
              }
            });
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) {
  using namespace sluice::bench;
  CudaBench bench(argc, argv);
  const std::unique_ptr<sluice::Backend> backend = MakeBackend();
  for (const Shape& shape : kShapes) Kernel(bench, *backend, shape);
  for (const Shape& shape : kShapes) {
    for (const sluice::DType weights : {sluice::DType::kF8E4M3, sluice::DType::kBF16}) {
      Op(bench, *backend, shape, weights);
    }
  }
}
