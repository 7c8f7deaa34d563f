// What stands between the big products on the GPU, through the ops at DeepSeek-V3's shapes:
// embedding, norms, the write to the KV cache, gate, permutation, combination and sampling.
//
// Activations are one buffer each: at decode sizes they lie in L2, as they do where the engine has
// just written them; weights and embeddings are rotated beyond it. Bounds count every byte as if it
// came from memory, so shares above 100 % are those of L2.
#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/bench/cuda_bench.h"

namespace sluice::bench {
namespace {

constexpr int64_t kHidden = 7168, kVocab = 129280, kExperts = 256, kTopK = 8, kSlots = 9;
constexpr int64_t kHeads = 128, kQueryDim = 192, kRopeDim = 64, kRank = 512, kKvDim = 576;
constexpr int64_t kPositionsMax = 16384;
constexpr int64_t kTokens[] = {1, 8, 32, 64, 128, 256, 16384};

std::vector<int32_t> Random(int64_t count, int32_t limit, uint32_t seed) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  std::mt19937 random(seed);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(limit));
  return ids;
}

TensorView F32(const DeviceMemory& memory, int64_t rows, int64_t columns) {
  return TensorView(memory.get(), DType::kF32, {rows, columns});
}
TensorView I32(const DeviceMemory& memory, int64_t rows) {
  return TensorView(memory.get(), DType::kI32, {rows});
}
TensorView I32(const DeviceMemory& memory, int64_t rows, int64_t columns) {
  return TensorView(memory.get(), DType::kI32, {rows, columns});
}

WeightView Matrix(const DeviceMemory& memory, DType dtype, int64_t rows, int64_t columns,
                  int64_t copy) {
  WeightView view;
  view.data = static_cast<const char*>(memory.get()) +
              copy * rows * columns * static_cast<int64_t>(DTypeBytes(dtype));
  view.dtype = dtype;
  view.rows = rows;
  view.cols = view.row_stride = columns;
  return view;
}

double Bytes(int64_t count) { return static_cast<double>(count); }

void Elementwise(CudaBench& bench, Backend& backend, int64_t tokens) {
  const std::string shape = absl::StrCat("t=", tokens);
  const DeviceMemory x = RandomF32(tokens * kHidden, 1, 1), out = Zeros(tokens * kHidden * 4);
  const TensorView x_view = F32(x, tokens, kHidden), out_view = F32(out, tokens, kHidden);
  if (bench.Wants("embed", shape)) {
    const DeviceMemory table = RandomBf16(kVocab * kHidden, 1, 2);
    const int copies = 10;
    const DeviceMemory ids = Upload(Random(copies * tokens, kVocab, 3)),
                       resolved = Zeros(4 * tokens);
    bench.Run(
        {.name = "embed", .shape = shape, .bytes = Bytes(tokens * kHidden * 6), .copies = copies},
        StreamOf(backend), [&](int i) {
          Check(backend.elementwise().Embed(
              {.ids = I32(ids, copies * tokens).Slice(i % copies * tokens, tokens),
               .tokens_by_slot = I32(resolved, tokens),
               .table = Matrix(table, DType::kBF16, kVocab, kHidden, 0),
               .out = out_view,
               .resolved_ids = I32(resolved, tokens)},
              {}));
        });
  }
  const DeviceMemory weight = RandomF32(kHidden, 1, 4);
  for (const int64_t width : {kHidden, int64_t{1536}}) {
    const TensorView weight_view(weight.get(), DType::kF32, {width});
    bench.Run(
        {.name = "rms norm",
         .shape = absl::StrCat(shape, " n=", width),
         .bytes = Bytes((2 * tokens + 1) * width * 4)},
        StreamOf(backend), [&](int) {
          Check(backend.elementwise().RmsNorm(
              {.x = F32(x, tokens, width), .weight = weight_view, .out = F32(out, tokens, width)},
              {}));
        });
  }
  const DeviceMemory rows = Upload(Random(tokens, static_cast<int32_t>(tokens), 5));
  bench.Run({.name = "gather rows", .shape = shape, .bytes = Bytes(2 * tokens * kHidden * 4)},
            StreamOf(backend), [&](int) {
              Check(backend.elementwise().GatherRows(
                  {.x = x_view, .rows = I32(rows, tokens), .out = out_view}, {}));
            });
}

void CacheWrite(CudaBench& bench, Backend& backend, int64_t tokens) {
  const std::string shape = absl::StrCat("t=", tokens, " heads=128");
  if (!bench.Wants("cache write", shape)) return;
  const DeviceMemory q = RandomF32(tokens * kHeads * kQueryDim, 1, 1),
                     kv_a = RandomF32(tokens * kKvDim, 1, 2), norm = RandomF32(kRank, 1, 3),
                     cos_sin = UniformF32(kPositionsMax * kRopeDim, -0.7f, 0.7f, 4),
                     positions = Upload(Random(tokens, kPositionsMax, 5));
  std::vector<int32_t> kv_rows(static_cast<size_t>(tokens));
  for (size_t i = 0; i < kv_rows.size(); ++i) kv_rows[i] = static_cast<int32_t>(i * 64 + i % 64);
  const DeviceMemory rows = Upload(kv_rows), cache = Zeros(tokens * 64 * kKvDim * 2);
  bench.Run({.name = "cache write",
             .shape = shape,
             .bytes = Bytes(tokens * (2 * kHeads * kRopeDim * 4 + kKvDim * 6))},
            StreamOf(backend), [&](int) {
              Check(backend.attention().MlaCacheWrite(
                  {.dims = {kHeads, kQueryDim - kRopeDim, kRopeDim, 128, kRank},
                   .q = F32(q, tokens, kHeads * kQueryDim),
                   .kv_a = F32(kv_a, tokens, kKvDim),
                   .kv_norm = TensorView(norm.get(), DType::kF32, {kRank}),
                   .cos_sin = F32(cos_sin, kPositionsMax, kRopeDim),
                   .positions = I32(positions, tokens),
                   .kv_rows = I32(rows, tokens),
                   .cache = TensorView(cache.get(), DType::kBF16, {tokens, 64, kKvDim})},
                  {}));
            });
}

void GateProduct(CudaBench& bench, Backend& backend, int64_t tokens, DType dtype) {
  const std::string shape =
      absl::StrCat("m=", tokens, " n=256 k=7168 ", dtype == DType::kBF16 ? "bf16" : "f32");
  if (!bench.Wants("gate product", shape)) return;
  const int64_t weights = kExperts * kHidden;
  const int copies = CopiesBeyondL2(Bytes(weights) * 2);
  const DeviceMemory x = RandomF32(tokens * kHidden, 1, 1), out = Zeros(tokens * kExperts * 4),
                     w = dtype == DType::kBF16 ? RandomBf16(copies * weights, 0.02f, 2)
                                               : RandomF32(copies * weights, 0.02f, 2);
  bench.Run({.name = "gate product",
             .shape = shape,
             .flops = 2.0 * static_cast<double>(tokens * weights),
             .flops_max = kBf16Flops / (dtype == DType::kBF16 ? 3 : 6),
             .bytes = Bytes(weights * static_cast<int64_t>(DTypeBytes(dtype)) +
                            tokens * (kHidden + kExperts) * 4),
             .copies = copies},
            StreamOf(backend), [&](int i) {
              Check(backend.linear().Linear({.x = F32(x, tokens, kHidden),
                                             .w = Matrix(w, dtype, kExperts, kHidden, i % copies),
                                             .out = F32(out, tokens, kExperts),
                                             .precision = Precision::kF32},
                                            {}));
            });
}

void Experts(CudaBench& bench, Backend& backend, int64_t tokens) {
  const std::string shape = absl::StrCat("t=", tokens, " top 8");
  const int64_t pairs = tokens * kTopK;
  const DeviceMemory logits = RandomF32(tokens * kExperts, 1, 1),
                     bias = RandomF32(kExperts, 0.1f, 2), ids = Upload(Random(pairs, kSlots, 3)),
                     weights = RandomF32(pairs, 1, 4), load = Zeros(kExperts * 8),
                     offsets = Zeros((kSlots + 1) * 4), pair_rows = Zeros(pairs * 4);
  const DeviceMemory chosen = Zeros(pairs * 4), chosen_weights = Zeros(pairs * 4);
  bench.Run(
      {.name = "gate", .shape = shape, .bytes = Bytes(tokens * (kExperts + 2 * kTopK) * 4)},
      StreamOf(backend), [&](int) {
        Check(backend.moe().Gate({.logits = F32(logits, tokens, kExperts),
                                  .bias = TensorView(bias.get(), DType::kF32, {kExperts}),
                                  .num_groups = 8,
                                  .topk_groups = 4,
                                  .scaling = 2.5f,
                                  .expert_ids = I32(chosen, tokens, kTopK),
                                  .expert_weights = F32(chosen_weights, tokens, kTopK),
                                  .expert_load = TensorView(load.get(), DType::kI64, {kExperts})},
                                 {}));
      });
  if (!bench.Wants("permute", shape) && !bench.Wants("combine", shape)) return;
  std::vector<int32_t> slots(kExperts, -1);
  for (int32_t slot = 0; slot < kSlots; ++slot) slots[static_cast<size_t>(slot)] = slot;
  const DeviceMemory slot_of_expert = Upload(slots);
  const DeviceMemory rows = RandomF32(pairs * kHidden, 1, 6),
                     shared = RandomF32(tokens * kHidden, 1, 7), out = Zeros(tokens * kHidden * 4);
  const auto permute = [&](int) {
    Check(backend.moe().Permute({.expert_ids = I32(ids, tokens, kTopK),
                                 .slot_of_expert = I32(slot_of_expert, kExperts),
                                 .offsets = I32(offsets, kSlots + 1),
                                 .pair_rows = I32(pair_rows, tokens, kTopK)},
                                {}));
  };
  permute(0);
  bench.Run({.name = "permute", .shape = shape, .bytes = Bytes(2 * pairs * 4)}, StreamOf(backend),
            permute);
  bench.Run({.name = "combine", .shape = shape, .bytes = Bytes((3 * tokens + pairs) * kHidden * 4)},
            StreamOf(backend), [&](int) {
              Check(backend.moe().Combine({.rows = F32(rows, pairs, kHidden),
                                           .pair_rows = I32(pair_rows, tokens, kTopK),
                                           .expert_weights = F32(weights, tokens, kTopK),
                                           .shared = F32(shared, tokens, kHidden),
                                           .out = F32(out, tokens, kHidden)},
                                          {}));
            });
}

void Sample(CudaBench& bench, Backend& backend, int64_t rows) {
  const struct {
    const char* name;
    SamplingRow row;
    int64_t more_bytes;  // of a row, besides the logits
  } cases[] = {{"greedy", {.temperature = 0}, 0},
               {"temperature", {.temperature = 1}, 0},
               {"top_p", {.temperature = 1, .top_p = 0.95f}, 0},
               {"top_k", {.temperature = 1, .top_k = 50}, 0},
               {"top_k top_p", {.temperature = 0.6f, .top_p = 0.95f, .top_k = 50}, 0},
               {"logprobs", {.temperature = 1, .num_logprobs = 20}, 0},
               {"penalties", {.temperature = 1, .presence_penalty = 0.5f}, kVocab * 5}};
  const int copies = std::min(8, CopiesBeyondL2(Bytes(rows * kVocab * 4)));
  const DeviceMemory logits = RandomF32(copies * rows * kVocab, 2, 1), mask = Zeros(rows * kVocab),
                     counts = Zeros(rows * kVocab * 4), tokens = Zeros(rows * 4),
                     by_slot = Zeros(rows * 4), logprobs = Zeros(rows * 4),
                     top_ids = Zeros(rows * 80), top_logprobs = Zeros(rows * 80),
                     not_finite = Zeros(rows), none = Zeros(4);
  for (const auto& c : cases) {
    std::vector<SamplingRow> sampling(static_cast<size_t>(rows), c.row);
    for (size_t i = 0; i < sampling.size(); ++i) {
      sampling[i].seed = 1234567 * i + 1;
      sampling[i].slot = static_cast<int32_t>(i);
    }
    const DeviceMemory device_rows = Upload(sampling);
    bench.Run({.name = absl::StrCat("sample ", c.name),
               .shape = absl::StrCat("rows=", rows, " vocab=", kVocab),
               .bytes = Bytes(rows * (kVocab * 4 + c.more_bytes)),
               .copies = copies},
              StreamOf(backend), [&](int i) {
                Check(backend.sampling().Sample(
                    {.logits = F32(logits, copies * rows, kVocab).Slice(i % copies * rows, rows),
                     .rows = static_cast<const SamplingRow*>(device_rows.get()),
                     .bias_ids = I32(none, 1),
                     .bias_values = TensorView(none.get(), DType::kF32, {1}),
                     .banned_ids = I32(none, 1),
                     .prompt_mask = TensorView(mask.get(), DType::kU8, {rows, kVocab}),
                     .output_counts = I32(counts, rows, kVocab),
                     .tokens = I32(tokens, rows),
                     .tokens_by_slot = I32(by_slot, rows),
                     .logprobs = TensorView(logprobs.get(), DType::kF32, {rows}),
                     .top_ids = I32(top_ids, rows, 20),
                     .top_logprobs = F32(top_logprobs, rows, 20),
                     .not_finite = TensorView(not_finite.get(), DType::kU8, {rows})},
                    {}));
              });
  }
}

void RunAll(CudaBench& bench) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  for (const int64_t tokens : kTokens) {
    Elementwise(bench, *backend, tokens);
    CacheWrite(bench, *backend, tokens);
    GateProduct(bench, *backend, tokens, DType::kBF16);
    GateProduct(bench, *backend, tokens, DType::kF32);
    Experts(bench, *backend, tokens);
    if (tokens <= 256) Sample(bench, *backend, tokens);
  }
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) {
  sluice::bench::CudaBench bench(argc, argv);
  sluice::bench::RunAll(bench);
  return 0;
}
