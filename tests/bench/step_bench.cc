// Whole steps of the engine: prompt processing, single-stream decode, batched decode.
//
//   step_bench --model DIR [--numerics exact|fast] [--threads N] [--load-format dummy] [benchmark
//   flags]
//
// Rates count tokens that went through the model; each benchmark drives the engine as the scheduler
// does, one step ahead of its results.

#include <benchmark/benchmark.h>

#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "kernels/base/status.h"
#include "services/engine/engine.h"
#include "tools/sluice/model_options.h"

namespace sluice {
namespace {

constexpr int64_t kPromptTokens = 512;
constexpr int64_t kDecodeBatchMax = 16;
constexpr int64_t kContextMax = 1024;

// Sequences in fixed pages of an engine, moved on by steps of equal chunks.
class Steps {
 public:
  Steps(engine::Engine* engine, int64_t sequences, uint64_t* number)
      : engine_(engine),
        number_(number),
        vocab_size_(static_cast<int32_t>(engine->config().vocab_size)),
        pages_(sequences) {
    const int64_t pages_each = kContextMax / kPageTokens;
    for (int64_t seq = 0; seq < sequences; ++seq) {
      pages_[seq].resize(pages_each);
      std::iota(pages_[seq].begin(), pages_[seq].end(), static_cast<int32_t>(seq * pages_each));
    }
    sampling_.temperature = 0;
    sampling_.max_tokens = kContextMax;
  }

  // Every sequence goes on by `count` tokens of its own, so that experts see a mixed batch.
  absl::Status Submit(int64_t first_position, int64_t count) {
    tokens_.resize(pages_.size() * count);
    for (int32_t& token : tokens_) {
      token = std::uniform_int_distribution<int32_t>(0, vocab_size_ - 1)(random_);
    }
    std::vector<engine::StepChunk> chunks;
    for (size_t seq = 0; seq < pages_.size(); ++seq) {
      chunks.push_back({.slot = static_cast<int32_t>(seq),
                        .first_position = first_position,
                        .tokens = absl::MakeConstSpan(tokens_).subspan(seq * count, count),
                        .pages = pages_[seq],
                        .sampling = &sampling_});
    }
    return engine_->Submit({.number = ++*number_, .chunks = chunks}).status();
  }
  absl::Status Wait(uint64_t number) {
    return engine_->Wait({number}, absl::Minutes(10), &result_);
  }

 private:
  engine::Engine* const engine_;
  uint64_t* const number_;
  const int32_t vocab_size_;
  std::mt19937 random_{1};
  std::vector<int32_t> tokens_;
  std::vector<std::vector<int32_t>> pages_;
  engine::SamplingParams sampling_;
  engine::StepResult result_;
};

void Prompt(benchmark::State& state, engine::Engine* engine, uint64_t* number) {
  Steps steps(engine, 1, number);
  for (auto _ : state) {
    absl::Status status = steps.Submit(0, kPromptTokens);
    if (status.ok()) status = steps.Wait(*number);
    if (!status.ok()) return state.SkipWithError(std::string(status.message()).c_str());
  }
  state.SetItemsProcessed(state.iterations() * kPromptTokens);
}

void Decode(benchmark::State& state, engine::Engine* engine, int64_t batch, uint64_t* number) {
  Steps steps(engine, batch, number);
  absl::Status status = steps.Submit(0, 1);
  int64_t position = 1;
  for (auto _ : state) {
    if (status.ok()) status = steps.Submit(position, 1);
    if (status.ok()) status = steps.Wait(*number - 1);
    if (!status.ok()) return state.SkipWithError(std::string(status.message()).c_str());
    position = position + 1 < 256 ? position + 1 : 1;
  }
  if (status = steps.Wait(*number); !status.ok()) {
    return state.SkipWithError(std::string(status.message()).c_str());
  }
  state.SetItemsProcessed(state.iterations() * batch);
}

absl::Status Run(const cli::ModelOptions& options) {
  SLUICE_ASSIGN_OR_RETURN(instance::LoadedModel model, cli::LoadModel(options));
  engine::EngineOptions engine_options = model.engine_options;
  engine_options.slots_max = kDecodeBatchMax;
  engine_options.step_tokens_max = kPromptTokens;
  engine_options.positions_max = std::min(kContextMax, model.config.max_position_embeddings);
  engine_options.kv_pages = kDecodeBatchMax * kContextMax / kPageTokens;
  SLUICE_ASSIGN_OR_RETURN(
      const std::unique_ptr<engine::Engine> engine,
      engine::Engine::Create(model.config, model.weights, model.backend.get(), engine_options));
  std::fprintf(stderr, "%s; %s; weights %.2f GB\n", options.dir.c_str(),
               model.backend->Describe().c_str(), model.weights->bytes * 1e-9);
  uint64_t number = 0;
  benchmark::RegisterBenchmark("prompt/512", Prompt, engine.get(), &number)->UseRealTime();
  for (const int64_t batch : {1, 4, 16}) {
    benchmark::RegisterBenchmark(("decode/batch:" + std::to_string(batch)).c_str(), Decode,
                                 engine.get(), batch, &number)
        ->UseRealTime();
  }
  benchmark::RunSpecifiedBenchmarks();
  return absl::OkStatus();
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  CLI::App app("Measures whole steps of the engine.", "step_bench");
  sluice::cli::ModelOptions options;
  sluice::cli::AddModelOptions(&app, &options);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = sluice::Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "step_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
