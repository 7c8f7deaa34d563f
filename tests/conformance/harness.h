// One model on one backend, driven step by step, with everything a step computes recorded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cpu/cpu_backend.h"
#include "services/engine/engine.h"
#include "services/model/model_config.h"
#include "services/model/weights.h"
#include "tests/golden/golden.h"

namespace sluice::conformance {

struct TestModel {
  model::ModelConfig config;
  std::shared_ptr<const model::ModelWeights> weights;
};

// tests/golden/configs/NAME with the generator's weights. Aborts, saying why, on failure.
TestModel MakeGoldenModel(const std::string& name, uint64_t seed);

// A checkpoint directory. Aborts, saying why, on failure.
TestModel LoadTestModel(const std::string& dir);

struct HarnessOptions {
  CpuBackendOptions backend_options{.threads = 2};
  engine::EngineOptions engine_options{
      .slots_max = 8, .step_tokens_max = 256, .positions_max = 256, .kv_pages = 32};
};

// As the programs set them for `numerics: fast`: bf16 cache, prompts unabsorbed.
inline HarnessOptions FastOptions() {
  HarnessOptions options;
  options.backend_options.numerics = Numerics::kFast;
  options.engine_options.kv_dtype = DType::kBF16;
  options.engine_options.absorb_prompts = false;
  return options;
}

// Part of a sequence: `count` of its tokens from position `begin`, whose last one samples a token
// greedily.
struct Piece {
  absl::Span<const int32_t> ids;  // of the whole sequence
  absl::Span<const int32_t> pages;
  int32_t slot = 0;
  int64_t begin = 0;
  int64_t count = 0;
};

// What a step computed; rows are the tokens of its pieces, one piece after the other.
struct StepRecord {
  std::vector<std::vector<float>> hidden;     // per layer, after it: [tokens, hidden]
  std::vector<std::vector<int32_t>> experts;  // per MoE layer: [tokens, top_k]
  std::vector<float> logits;                  // [pieces, vocab]
  std::vector<engine::SampledToken> sampled;  // [pieces]
};

// All layers in one, as goldens hold them.
template <typename T>
std::vector<T> Joined(const std::vector<std::vector<T>>& layers) {
  std::vector<T> all;
  for (const std::vector<T>& layer : layers) all.insert(all.end(), layer.begin(), layer.end());
  return all;
}

class Harness {
 public:
  // Aborts, saying why, when the backend or the engine cannot be made. `model` may go afterwards.
  Harness(const TestModel& model, const HarnessOptions& options);

  // Runs one step and records it.
  StepRecord Step(const std::vector<Piece>& pieces);
  // Runs one step as serving does, without looking in: gives the sampled tokens with logprobs.
  std::vector<engine::SampledToken> StepUnobserved(const std::vector<Piece>& pieces);

  // A prompt alone, in one step, in pages 0, 1, ….
  StepRecord RunPrompt(absl::Span<const int32_t> ids);
  // Raw logits at every position: [ids, vocab], by steps of one token.
  std::vector<float> LogitsAtEveryPosition(absl::Span<const int32_t> ids);

  engine::Engine* raw_engine() { return engine_.get(); }
  Backend* backend() { return backend_.get(); }
  int64_t vocab_size() const { return engine_->config().vocab_size; }

 private:
  std::vector<engine::SampledToken> Run(const std::vector<Piece>& pieces);

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<engine::Engine> engine_;
  uint64_t steps_ = 0;
};

// 0, 1, … for `positions` positions.
std::vector<int32_t> FirstPages(int64_t positions);

// The largest difference, relative to the largest of `want`.
double RelativeError(absl::Span<const float> got, absl::Span<const float> want);

// 1 - 2 <x, y> / (<x, x> + <y, y>).
double CalcDiff(absl::Span<const float> x, absl::Span<const float> y);

}  // namespace sluice::conformance
