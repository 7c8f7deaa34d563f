#include "tests/conformance/harness.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <utility>

#include "kernels/ops/attention.h"
#include "services/engine/step_tap.h"
#include "tests/conformance/device.h"

namespace sluice::conformance {
namespace {

void DieUnlessOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "conformance: %s\n", status.ToString().c_str());
  std::abort();
}

template <typename T>
T Must(absl::StatusOr<T> value) {
  DieUnlessOk(value.status());
  return *std::move(value);
}

TestModel LoadModel(const std::string& dir, const model::LoadOptions& options) {
  TestModel model;
  model.config = Must(model::LoadModelConfig(dir));
  model.weights = std::make_shared<const model::ModelWeights>(
      Must(model::LoadWeights(dir, model.config, options)));
  return model;
}

class Recorder : public engine::StepTap {
 public:
  Recorder(Backend* backend, const std::vector<Piece>& pieces, StepRecord* record)
      : backend_(backend), pieces_(static_cast<int64_t>(pieces.size())), record_(record) {
    for (const Piece& piece : pieces) tokens_ += piece.count;
  }

  void OnHidden(int64_t layer, const TensorView& hidden) override {
    if (layer >= 0) record_->hidden.push_back(Elements<float>(hidden.Prefix(tokens_)));
  }
  void OnExperts(int64_t, const TensorView& ids, const TensorView&) override {
    record_->experts.push_back(Elements<int32_t>(ids.Prefix(tokens_)));
  }
  void OnLogits(const TensorView& logits) override {
    record_->logits = Elements<float>(logits.Prefix(pieces_));
  }

 private:
  template <typename T>
  std::vector<T> Elements(const TensorView& view) {
    std::vector<T> out(view.rows() * view.row_elements());
    for (int64_t row = 0; row < view.rows(); ++row) {
      DieUnlessOk(backend_->CopyToHost(out.data() + row * view.row_elements(), view.Row<T>(row),
                                       view.row_elements() * sizeof(T), {}));
    }
    DieUnlessOk(backend_->Sync({}));
    return out;
  }

  Backend* const backend_;
  const int64_t pieces_;
  int64_t tokens_ = 0;
  StepRecord* const record_;
};

}  // namespace

TestModel MakeGoldenModel(const std::string& name, uint64_t seed) {
  model::LoadOptions options;
  options.format = model::LoadFormat::kDummy;
  options.dummy_seed = seed;
  return LoadModel("tests/golden/configs/" + name, options);
}

TestModel LoadTestModel(const std::string& dir) { return LoadModel(dir, model::LoadOptions()); }

Harness::Harness(const TestModel& model, const HarnessOptions& options)
    : backend_(Must(MakeTestBackend(options.backend_options))),
      engine_(Must(engine::Engine::Create(model.config, model.weights, backend_.get(),
                                          options.engine_options))) {}

StepRecord Harness::Step(const std::vector<Piece>& pieces) {
  StepRecord record;
  Recorder recorder(backend_.get(), pieces, &record);
  engine_->SetTap(&recorder);
  record.sampled = Run(pieces);
  engine_->SetTap(nullptr);
  return record;
}

std::vector<engine::SampledToken> Harness::StepUnobserved(const std::vector<Piece>& pieces) {
  return Run(pieces);
}

std::vector<engine::SampledToken> Harness::Run(const std::vector<Piece>& pieces) {
  engine::SamplingParams greedy;
  greedy.temperature = 0;
  greedy.max_tokens = 1;
  greedy.num_logprobs = engine::kLogprobsMax;
  std::vector<engine::StepChunk> chunks;
  for (const Piece& piece : pieces) {
    chunks.push_back({.slot = piece.slot,
                      .first_position = piece.begin,
                      .tokens = piece.ids.subspan(piece.begin, piece.count),
                      .pages = piece.pages,
                      .sampling = &greedy});
  }
  engine::StepPlan plan;
  plan.number = ++steps_;
  plan.chunks = chunks;
  const engine::StepHandle handle = Must(engine_->Submit(plan));
  engine::StepResult result;
  DieUnlessOk(engine_->Wait(handle, absl::Minutes(5), &result));
  std::vector<engine::SampledToken> sampled;
  for (engine::SlotResult& slot : result.slots) sampled.push_back(std::move(slot.tokens.at(0)));
  return sampled;
}

StepRecord Harness::RunPrompt(absl::Span<const int32_t> ids) {
  const int64_t count = static_cast<int64_t>(ids.size());
  const std::vector<int32_t> pages = FirstPages(count);
  return Step({{.ids = ids, .pages = pages, .count = count}});
}

std::vector<float> Harness::LogitsAtEveryPosition(absl::Span<const int32_t> ids) {
  const std::vector<int32_t> pages = FirstPages(static_cast<int64_t>(ids.size()));
  std::vector<float> logits;
  for (size_t i = 0; i < ids.size(); ++i) {
    const StepRecord record =
        Step({{.ids = ids, .pages = pages, .begin = static_cast<int64_t>(i), .count = 1}});
    logits.insert(logits.end(), record.logits.begin(), record.logits.end());
  }
  return logits;
}

std::vector<int32_t> FirstPages(int64_t positions) {
  std::vector<int32_t> pages((positions + kPageTokens - 1) / kPageTokens);
  std::iota(pages.begin(), pages.end(), 0);
  return pages;
}

double RelativeError(absl::Span<const float> got, absl::Span<const float> want) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, largest = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (!std::isfinite(got[i])) return std::numeric_limits<double>::infinity();
    difference = std::max(difference, std::fabs(double{got[i]} - double{want[i]}));
    largest = std::max(largest, std::fabs(double{want[i]}));
  }
  return difference / largest;
}

double CalcDiff(absl::Span<const float> x, absl::Span<const float> y) {
  if (x.size() != y.size()) return std::numeric_limits<double>::infinity();
  double xy = 0, xx_yy = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xy += double{x[i]} * y[i];
    xx_yy += double{x[i]} * x[i] + double{y[i]} * y[i];
  }
  return 1 - 2 * xy / xx_yy;
}

}  // namespace sluice::conformance
