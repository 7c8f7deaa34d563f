// The CPU ops other than matrix products, at the tiny model's dimensions, V2-Lite's and V3's.
//   build/release/bin/ops_bench --benchmark_filter=Absorbed
// Threads: all cores this process may run on, unless SLUICE_BENCH_THREADS says otherwise.
#include <algorithm>
#include <cstdlib>
#include <memory>

#include "benchmark/benchmark.h"
#include "kernels/cpu/cpu_context.h"
#include "kernels/cpu/ops_test_util.h"

namespace sluice {
namespace {

struct ModelShape {
  const char* name;
  MlaDims mla;
  int64_t hidden;
  int64_t experts;
  int64_t top_k;
  int num_groups, topk_groups;
  int64_t vocab;
};

const ModelShape kShapes[] = {
    {"tiny", {8, 32, 32, 32, 128}, 256, 32, 4, 8, 4, 1024},
    {"v2lite", {16, 128, 64, 128, 512}, 2048, 64, 6, 1, 1, 102400},
    {"v3", {128, 128, 64, 128, 512}, 7168, 256, 8, 8, 4, 129280},
};

OpsUnderTest& Ops(Numerics numerics) {
  const auto make = [](Numerics n) {
    const char* threads = std::getenv("SLUICE_BENCH_THREADS");
    return new OpsUnderTest(
        {DetectCpuIsa(), threads == nullptr ? UsableCores() : std::atoi(threads), n});
  };
  static OpsUnderTest* exact = make(Numerics::kExact);
  static OpsUnderTest* fast = make(Numerics::kFast);
  return numerics == Numerics::kExact ? *exact : *fast;
}

void Check(benchmark::State& state, const absl::Status& status) {
  if (!status.ok()) state.SkipWithError(std::string(status.message()).c_str());
}

void RmsNorm(benchmark::State& state, const ModelShape& shape) {
  const int64_t rows = state.range(0);
  const OwnedTensor x = RandomF32({rows, shape.hidden}, 1);
  const OwnedTensor weight = RandomF32({shape.hidden}, 2);
  const OwnedTensor out(DType::kF32, {rows, shape.hidden});
  const auto ops = MakeCpuElementwiseOps(Ops(Numerics::kExact).context());
  for (auto _ : state) {
    Check(state, ops->RmsNorm({x.view(), weight.view(), 1e-6f, out.view()}, StreamId{}));
  }
  state.SetBytesProcessed(state.iterations() * rows * shape.hidden * 8);
}

void Gate(benchmark::State& state, const ModelShape& shape) {
  const int64_t tokens = state.range(0);
  const OwnedTensor logits = RandomF32({tokens, shape.experts}, 1);
  const OwnedTensor bias = RandomF32({shape.experts}, 2, 0.01f);
  const OwnedTensor ids(DType::kI32, {tokens, shape.top_k});
  const OwnedTensor weights(DType::kF32, {tokens, shape.top_k});
  const auto ops = MakeCpuMoeOps(Ops(Numerics::kExact).context());
  for (auto _ : state) {
    Check(state, ops->Gate({.logits = logits.view(),
                            .bias = bias.view(),
                            .num_groups = shape.num_groups,
                            .topk_groups = shape.topk_groups,
                            .expert_ids = ids.view(),
                            .expert_weights = weights.view()},
                           StreamId{}));
  }
  state.SetItemsProcessed(state.iterations() * tokens);
}

void PermuteAndCombine(benchmark::State& state, const ModelShape& shape) {
  const int64_t tokens = state.range(0);
  const OwnedTensor x = RandomF32({tokens, shape.hidden}, 1);
  const OwnedTensor weights = RandomF32({tokens, shape.top_k}, 2, 1e-3f);
  const OwnedTensor ids(DType::kI32, {tokens, shape.top_k});
  const OwnedTensor slots(DType::kI32, {shape.experts});
  const OwnedTensor offsets(DType::kI32, {shape.experts + 1});
  const OwnedTensor pair_rows(DType::kI32, {tokens, shape.top_k});
  const OwnedTensor rows(DType::kF32, {tokens * shape.top_k, shape.hidden});
  for (int64_t e = 0; e < shape.experts; ++e) {
    slots.data<int32_t>()[e] = static_cast<int32_t>(e);
  }
  for (int64_t i = 0; i < ids.size(); ++i) {
    ids.data<int32_t>()[i] = static_cast<int32_t>(i * 7 % shape.experts);
  }
  const auto ops = MakeCpuMoeOps(Ops(Numerics::kExact).context());
  for (auto _ : state) {
    Check(state,
          ops->Permute({ids.view(), slots.view(), offsets.view(), pair_rows.view()}, StreamId{}));
    Check(state, ops->Combine({.rows = rows.view(),
                               .pair_rows = pair_rows.view(),
                               .expert_weights = weights.view(),
                               .out = x.view()},
                              StreamId{}));
  }
  state.SetBytesProcessed(state.iterations() * tokens * shape.hidden * (shape.top_k + 2) * 4);
}

void Sample(benchmark::State& state, const ModelShape& shape, const SamplingRow& row,
            float stddev) {
  const OwnedTensor logits = RandomF32({1, shape.vocab}, 1, stddev);
  const OwnedTensor token(DType::kI32, {1});
  const OwnedTensor by_slot(DType::kI32, {1});
  const OwnedTensor logprobs(DType::kF32, {1});
  const OwnedTensor top_ids(DType::kI32, {1, 20});
  const OwnedTensor top_logprobs(DType::kF32, {1, 20});
  SamplingRow varying = row;
  const auto ops = MakeCpuSamplingOps(Ops(Numerics::kExact).context());
  for (auto _ : state) {
    ++varying.seed;
    Check(state, ops->Sample({.logits = logits.view(),
                              .rows = &varying,
                              .tokens = token.view(),
                              .tokens_by_slot = by_slot.view(),
                              .logprobs = logprobs.view(),
                              .top_ids = top_ids.view(),
                              .top_logprobs = top_logprobs.view()},
                             StreamId{}));
  }
  state.SetItemsProcessed(state.iterations() * shape.vocab);
}

// Sequences of equal length in one cache.
struct Cache {
  OwnedTensor rows, page_table;

  Cache(const MlaDims& dims, DType dtype, int64_t seqs, int64_t length) {
    const int64_t pages = (length + kPageTokens - 1) / kPageTokens;
    rows = OwnedTensor(dtype, {seqs * pages, kPageTokens, dims.kv_dim()});
    page_table = OwnedTensor(DType::kI32, {seqs, pages});
    const OwnedTensor page = RandomF32({kPageTokens * dims.kv_dim()}, 3);
    for (int64_t i = 0; i < rows.size(); ++i) {
      const float value = page.data<float>()[i % page.size()];
      if (dtype == DType::kF32) {
        rows.data<float>()[i] = value;
      } else {
        rows.data<uint16_t>()[i] = F32ToBf16(value);
      }
    }
    for (int64_t i = 0; i < page_table.size(); ++i) {
      page_table.data<int32_t>()[i] = static_cast<int32_t>(page_table.size() - 1 - i);
    }
  }
};

// Arguments: tokens, each the last of its own sequence, and context length.
void Absorbed(benchmark::State& state, const ModelShape& shape, Numerics numerics) {
  const MlaDims& dims = shape.mla;
  const int64_t tokens = state.range(0), length = state.range(1);
  const Cache cache(dims, numerics == Numerics::kExact ? DType::kF32 : DType::kBF16, tokens,
                    length);
  const OwnedWeight kv_b = RandomWeight(DType::kBF16, dims.num_heads * (dims.nope_dim + dims.v_dim),
                                        dims.kv_lora_rank, 4, 0.05f);
  const OwnedTensor q = RandomF32({tokens, dims.num_heads * dims.q_dim()}, 5);
  const OwnedTensor out(DType::kF32, {tokens, dims.num_heads * dims.v_dim});
  const OwnedTensor seqs(DType::kI32, {tokens});
  const OwnedTensor positions(DType::kI32, {tokens});
  for (int32_t t = 0; t < tokens; ++t) {
    seqs.data<int32_t>()[t] = t;
    positions.data<int32_t>()[t] = static_cast<int32_t>(length) - 1;
  }
  const auto ops = MakeCpuAttentionOps(Ops(numerics).context());
  for (auto _ : state) {
    Check(state,
          ops->MlaAbsorbed({dims, q.view(), kv_b.view, cache.rows.view(), cache.page_table.view(),
                            seqs.view(), positions.view(), 0.1f, out.view()},
                           StreamId{}));
  }
  const double flops = 2.0 * tokens * dims.num_heads *
                       ((dims.nope_dim + dims.v_dim) * dims.kv_lora_rank +
                        length * (dims.kv_dim() + dims.kv_lora_rank));
  state.counters["GFLOPS"] =
      benchmark::Counter(flops * state.iterations() / 1e9, benchmark::Counter::kIsRate);
}

// Arguments: queries, and positions before them.
void Prompt(benchmark::State& state, const ModelShape& shape, Numerics numerics) {
  const MlaDims& dims = shape.mla;
  const int64_t queries = state.range(0), first = state.range(1);
  const Cache cache(dims, DType::kBF16, 1, first + queries);
  const OwnedWeight kv_b = RandomWeight(DType::kBF16, dims.num_heads * (dims.nope_dim + dims.v_dim),
                                        dims.kv_lora_rank, 4, 0.05f);
  const OwnedTensor q = RandomF32({queries, dims.num_heads * dims.q_dim()}, 5);
  const OwnedTensor out(DType::kF32, {queries, dims.num_heads * dims.v_dim});
  const PromptChunk chunk = {.num_tokens = queries, .first_position = first};
  const auto ops = MakeCpuAttentionOps(Ops(numerics).context());
  for (auto _ : state) {
    Check(state, ops->MlaPrompt({dims,
                                 q.view(),
                                 kv_b.view,
                                 cache.rows.view(),
                                 cache.page_table.view(),
                                 {&chunk, 1},
                                 0.1f,
                                 out.view()},
                                StreamId{}));
  }
  const double pairs = queries * (first + (queries + 1) / 2.0);
  const double flops =
      2.0 * dims.num_heads *
      (pairs * (dims.q_dim() + dims.v_dim) +
       static_cast<double>(first + queries) * dims.kv_lora_rank * (dims.nope_dim + dims.v_dim));
  state.counters["GFLOPS"] =
      benchmark::Counter(flops * state.iterations() / 1e9, benchmark::Counter::kIsRate);
}

void CacheWrite(benchmark::State& state, const ModelShape& shape) {
  const MlaDims& dims = shape.mla;
  const int64_t tokens = state.range(0);
  const OwnedTensor q = RandomF32({tokens, dims.num_heads * dims.q_dim()}, 5);
  const OwnedTensor kv_a = RandomF32({tokens, dims.kv_dim()}, 6);
  const OwnedTensor norm = RandomF32({dims.kv_lora_rank}, 7);
  // A true rotation: queries are turned in place, again and again, and must keep their size.
  const OwnedTensor cos_sin(DType::kF32, {tokens, dims.rope_dim});
  for (int64_t i = 0; i < cos_sin.size(); ++i) {
    cos_sin.data<float>()[i] = i % dims.rope_dim < dims.rope_dim / 2 ? 0.6f : 0.8f;
  }
  const OwnedTensor cache(DType::kF32, {(tokens + 63) / 64, kPageTokens, dims.kv_dim()});
  const OwnedTensor index(DType::kI32, {tokens});
  for (int32_t t = 0; t < tokens; ++t) index.data<int32_t>()[t] = t;
  const auto ops = MakeCpuAttentionOps(Ops(Numerics::kExact).context());
  for (auto _ : state) {
    Check(state, ops->MlaCacheWrite({dims, q.view(), kv_a.view(), norm.view(), 1e-6f,
                                     cos_sin.view(), index.view(), index.view(), cache.view()},
                                    StreamId{}));
  }
  state.SetItemsProcessed(state.iterations() * tokens);
}

void RegisterAll() {
  for (const ModelShape& shape : kShapes) {
    const auto add = [&](const std::string& op, auto function) {
      return benchmark::RegisterBenchmark((op + "/" + shape.name).c_str(), function)
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    };
    const auto tokens = [](benchmark::internal::Benchmark* b) { b->Arg(1)->Arg(16)->Arg(512); };
    tokens(add("RmsNorm", [&](benchmark::State& s) { RmsNorm(s, shape); }));
    tokens(add("Gate", [&](benchmark::State& s) { Gate(s, shape); }));
    tokens(add("PermuteAndCombine", [&](benchmark::State& s) { PermuteAndCombine(s, shape); }));
    tokens(add("CacheWrite", [&](benchmark::State& s) { CacheWrite(s, shape); }));
    const auto sample = [&](const char* name, SamplingRow row, float stddev) {
      add(std::string("Sample_") + name,
          [&shape, row, stddev](benchmark::State& s) { Sample(s, shape, row, stddev); });
    };
    sample("greedy", {.temperature = 0}, 3.0f);
    sample("temperature", {.temperature = 1}, 3.0f);
    sample("flat", {.temperature = 1}, 0.5f);
    sample("top_p", {.temperature = 1, .top_p = 0.95f}, 3.0f);
    sample("flat_top_p", {.temperature = 1, .top_p = 0.95f}, 0.5f);
    sample("top_k_top_p", {.temperature = 0.8f, .top_p = 0.9f, .top_k = 50}, 3.0f);
    sample("logprobs20", {.temperature = 0, .num_logprobs = 20}, 3.0f);
    const auto contexts = [](benchmark::internal::Benchmark* b) {
      for (const int64_t length : {64, 512, 4096}) b->Args({1, length})->Args({16, length});
    };
    contexts(
        add("AbsorbedExact", [&](benchmark::State& s) { Absorbed(s, shape, Numerics::kExact); }));
    contexts(
        add("AbsorbedFast", [&](benchmark::State& s) { Absorbed(s, shape, Numerics::kFast); }));
    const auto prompts = [](benchmark::internal::Benchmark* b) {
      b->Args({512, 0})->Args({512, 3584})->Args({4096, 0});
    };
    prompts(add("PromptInF32", [&](benchmark::State& s) { Prompt(s, shape, Numerics::kExact); }));
    prompts(add("PromptFast", [&](benchmark::State& s) { Prompt(s, shape, Numerics::kFast); }));
  }
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) {
  sluice::RegisterAll();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
