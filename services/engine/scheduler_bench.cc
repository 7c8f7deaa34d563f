// What the host spends on a step besides the step: planning, booking results, naming pages.

#include <benchmark/benchmark.h>

#include <vector>

#include "services/engine/scheduler.h"

namespace sluice::engine {
namespace {

constexpr int64_t kVocab = 50000;

std::vector<int32_t> Tokens(int64_t count, int64_t salt) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>((i * 31 + salt) % kVocab));
  }
  return tokens;
}

StepResult Answer(const StepPlan& plan) {
  StepResult result{.number = plan.number};
  for (const StepChunk& chunk : plan.chunks) {
    if (chunk.sampling != nullptr) result.slots.push_back({chunk.slot, {{.token_id = 5}}});
  }
  return result;
}

// One step of a full batch of decodes with the prefix cache on; a page fills every 64 steps.
void DecodeStep(benchmark::State& state) {
  const int64_t batch = state.range(0);
  Scheduler scheduler({.slots_max = batch,
                       .step_tokens_max = 4096,
                       .positions_max = 1 << 24,
                       .kv_pages = batch << 12,
                       .vocab_size = kVocab});
  for (int64_t i = 0; i < batch; ++i) {
    Request request{.id = static_cast<uint64_t>(i)};
    request.prompt = Tokens(1000, i);
    request.sampling.max_tokens = 1 << 18;
    request.page_hash_seed = model::PageHash{};
    if (!scheduler.Add(std::move(request)).ok()) return state.SkipWithError("request refused");
  }
  std::vector<TokenEvent> events;
  std::vector<model::PageHash> stored, removed;
  const auto step = [&] {
    const StepPlan* plan = scheduler.NextPlan();
    scheduler.OnResult(Answer(*plan), &events);
    events.clear();
  };
  while (scheduler.Load().waiting_tokens > 0) step();
  for (auto _ : state) {
    step();
    scheduler.TakeKvEvents(&stored, &removed);
  }
}
BENCHMARK(DecodeStep)->Arg(32)->Arg(256)->Unit(benchmark::kMicrosecond);

// Admission of a long prompt whose pages are all cached, names given, to its first plan, and back.
void AdmitCached(benchmark::State& state) {
  const int64_t length = state.range(0);
  Scheduler scheduler({.slots_max = 4,
                       .step_tokens_max = length,
                       .positions_max = length + 10,
                       .kv_pages = length / 32,
                       .vocab_size = kVocab});
  Request request;
  request.prompt = Tokens(length, 0);
  request.sampling.max_tokens = 1;
  request.page_hash_seed = model::PageHash{};
  model::PageHasher().Extend(model::PageHash{}, request.prompt, &request.page_hashes);
  std::vector<TokenEvent> events;
  for (auto _ : state) {
    if (!scheduler.Add(request).ok()) return state.SkipWithError("request refused");
    const StepPlan* plan = scheduler.NextPlan();
    scheduler.OnResult(Answer(*plan), &events);
    events.clear();
  }
}
BENCHMARK(AdmitCached)->Arg(1900)->Arg(100000)->Unit(benchmark::kMicrosecond);

void HashPrompt(benchmark::State& state) {
  const std::vector<int32_t> tokens = Tokens(state.range(0), 0);
  model::PageHasher hasher;
  for (auto _ : state) {
    std::vector<model::PageHash> hashes;
    hasher.Extend(model::PageHash{}, tokens, &hashes);
    benchmark::DoNotOptimize(hashes);
  }
  state.SetBytesProcessed(state.iterations() * state.range(0) * int64_t{sizeof(int32_t)});
}
BENCHMARK(HashPrompt)->Arg(1900)->Arg(100000)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace sluice::engine
