// Steps of the engine at DeepSeek-V3's widths, as they are served (recorded, launches overlapping,
// nothing waiting in between) against the same steps op by op, with a wait behind each: bit for
// bit. What an op reads before it is there, or overwrites while it is still read, differs.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/cuda/cuda_backend.h"
#include "services/engine/engine.h"
#include "tests/bench/device_weights.h"

namespace sluice::conformance {
namespace {

constexpr int64_t kPositionsMax = 512;

struct StepCase {
  std::string name;
  int64_t slots;
  int64_t experts, routed_experts;  // so many of so many are here
  DType kv_dtype;
};

void PrintTo(const StepCase& c, std::ostream* os) { *os << c.name; }

// A backend that waits for the device after every op, but for what is recorded.
class WaitingBackend final : public Backend,
                             private LinearOps,
                             private ElementwiseOps,
                             private AttentionOps,
                             private MoeOps,
                             private SamplingOps {
 public:
  explicit WaitingBackend(Backend* backend) : backend_(*backend) {}

  LinearOps& linear() override { return *this; }
  ElementwiseOps& elementwise() override { return *this; }
  AttentionOps& attention() override { return *this; }
  MoeOps& moe() override { return *this; }
  SamplingOps& sampling() override { return *this; }

  absl::Status BindThread() override { return backend_.BindThread(); }
  bool reads_host_memory() const override { return false; }
  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes, const std::string& what) override {
    return backend_.Allocate(bytes, what);
  }
  absl::StatusOr<DeviceBuffer> AllocateHost(size_t bytes, const std::string& what) override {
    return backend_.AllocateHost(bytes, what);
  }
  absl::Status CopyToDevice(void* device, const void* host, size_t bytes, StreamId s) override {
    return Waited(backend_.CopyToDevice(device, host, bytes, s));
  }
  absl::Status CopyToHost(void* host, const void* device, size_t bytes, StreamId s) override {
    return Waited(backend_.CopyToHost(host, device, bytes, s));
  }
  absl::Status Sync(StreamId s) override { return backend_.Sync(s); }
  absl::StatusOr<std::unique_ptr<StreamEvent>> MakeEvent() override { return backend_.MakeEvent(); }
  absl::Status Mark(StreamEvent* event, StreamId s) override { return backend_.Mark(event, s); }
  absl::Status Wait(const StreamEvent& event) override { return backend_.Wait(event); }
  absl::StatusOr<StreamPoint> Point(StreamId s) override { return backend_.Point(s); }
  bool records() const override { return true; }  // for the padding of decode steps
  absl::StatusOr<std::unique_ptr<Recording>> Record(absl::FunctionRef<absl::Status()> queue,
                                                    StreamId s) override {
    recording_ = true;
    auto recording = backend_.Record(queue, s);
    recording_ = false;
    return recording;
  }
  std::string Describe() const override { return backend_.Describe(); }

 private:
  absl::Status Waited(const absl::Status& status) {
    SLUICE_RETURN_IF_ERROR(status);
    return recording_ ? absl::OkStatus() : backend_.Sync({});
  }

  absl::Status Linear(const LinearParams& p, StreamId s) override {
    return Waited(backend_.linear().Linear(p, s));
  }
  absl::Status MultiLinear(const MultiLinearParams& p, StreamId s) override {
    return Waited(backend_.linear().MultiLinear(p, s));
  }
  absl::Status GatedLinear(const GatedLinearParams& p, StreamId s) override {
    return Waited(backend_.linear().GatedLinear(p, s));
  }
  absl::Status GroupedLinear(const GroupedLinearParams& p, StreamId s) override {
    return Waited(backend_.linear().GroupedLinear(p, s));
  }
  absl::Status GroupedGatedLinear(const GroupedGatedLinearParams& p, StreamId s) override {
    return Waited(backend_.linear().GroupedGatedLinear(p, s));
  }
  absl::Status Embed(const EmbedParams& p, StreamId s) override {
    return Waited(backend_.elementwise().Embed(p, s));
  }
  absl::Status RmsNorm(const RmsNormParams& p, StreamId s) override {
    return Waited(backend_.elementwise().RmsNorm(p, s));
  }
  absl::Status GatherRows(const GatherRowsParams& p, StreamId s) override {
    return Waited(backend_.elementwise().GatherRows(p, s));
  }
  absl::Status FillRandom(const FillRandomParams& p, StreamId s) override {
    return Waited(backend_.elementwise().FillRandom(p, s));
  }
  absl::StatusOr<std::shared_ptr<const void>> Prepare(const MlaWeights& weights,
                                                      StreamId s) override {
    return backend_.attention().Prepare(weights, s);
  }
  absl::Status MlaCacheWrite(const MlaCacheWriteParams& p, StreamId s) override {
    return Waited(backend_.attention().MlaCacheWrite(p, s));
  }
  absl::Status MlaAbsorbed(const MlaAbsorbedParams& p, StreamId s) override {
    return Waited(backend_.attention().MlaAbsorbed(p, s));
  }
  absl::Status MlaPrompt(const MlaPromptParams& p, StreamId s) override {
    return Waited(backend_.attention().MlaPrompt(p, s));
  }
  absl::Status Gate(const GateParams& p, StreamId s) override {
    return Waited(backend_.moe().Gate(p, s));
  }
  absl::Status Permute(const MoePermuteParams& p, StreamId s) override {
    return Waited(backend_.moe().Permute(p, s));
  }
  absl::Status Combine(const MoeCombineParams& p, StreamId s) override {
    return Waited(backend_.moe().Combine(p, s));
  }
  absl::Status Sample(const SampleParams& p, StreamId s) override {
    return Waited(backend_.sampling().Sample(p, s));
  }

  Backend& backend_;
  bool recording_ = false;
};

// Keeps decode steps from being replayed.
class Silent final : public engine::LayerListener {
 public:
  void OnKvWritten(uint64_t, int64_t, StreamPoint) override {}
};

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    ADD_FAILURE() << value.status();
    std::abort();
  }
  return *std::move(value);
}

// DeepSeek-V3, but for the numbers of layers, of experts that are here, and of tokens.
model::ModelConfig Config(int64_t routed_experts) {
  std::ifstream in("tests/bench/deepseek_v3.json");
  std::ostringstream text;
  text << in.rdbuf();
  model::ModelConfig config = Must(model::ParseModelConfig(text.str(), "deepseek_v3.json"));
  config.num_hidden_layers = 3;
  config.first_k_dense_replace = 1;
  config.vocab_size = 4096;
  config.n_routed_experts = routed_experts;
  return config;
}

struct Chunk {
  int32_t slot;
  int64_t begin, count;
  bool from_sampled = false;  // one token, which the slot's last step sampled
};

struct Sampled {
  engine::SampledToken token;
  uint64_t step;
  size_t sequences;  // of that step
  int32_t slot;
};

std::ostream& operator<<(std::ostream& os, const Sampled& sampled) {
  return os << "step " << sampled.step << " of " << sampled.sequences << " sequences, slot "
            << sampled.slot;
}

// Runs plans, two in flight as the scheduler does, and keeps what they sample.
class Driver {
 public:
  Driver(engine::Engine* engine, int64_t slots, uint32_t seed) : engine_(engine), random_(seed) {
    sampling_.temperature = 1;
    sampling_.seed = seed;
    sampling_.max_tokens = 1;
    sampling_.num_logprobs = engine::kLogprobsMax;
    const int64_t each = PagesFor(kPositionsMax);
    std::vector<int32_t> pages(slots * each);
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), random_);
    for (int64_t slot = 0; slot < slots; ++slot) {
      pages_.emplace_back(pages.begin() + slot * each, pages.begin() + (slot + 1) * each);
    }
  }

  void Run(const std::vector<Chunk>& chunks) {
    std::vector<std::vector<int32_t>> tokens;
    std::vector<engine::StepChunk> plan;
    std::uniform_int_distribution<int32_t> ids(0, 4095);
    for (const Chunk& chunk : chunks) {
      tokens.emplace_back(chunk.count, engine::kSampledToken);
      for (int32_t& token : tokens.back()) token = chunk.from_sampled ? token : ids(random_);
      plan.push_back({.slot = chunk.slot,
                      .first_position = chunk.begin,
                      .tokens = tokens.back(),
                      .pages = pages_[chunk.slot],
                      .sampling = &sampling_,
                      .output_position = static_cast<int64_t>(submitted_)});
    }
    Must(engine_->Submit({.number = ++submitted_, .chunks = plan}));
    if (submitted_ - waited_ == engine::Engine::kStepsInFlightMax) WaitForOne();
  }
  std::vector<Sampled> Finish() {
    while (waited_ < submitted_) WaitForOne();
    return sampled_;
  }

 private:
  void WaitForOne() {
    engine::StepResult result;
    const absl::Status status = engine_->Wait({++waited_}, absl::Minutes(1), &result);
    ASSERT_TRUE(status.ok()) << status;
    for (const engine::SlotResult& slot : result.slots) {
      sampled_.push_back({slot.tokens.at(0), result.number, result.slots.size(), slot.slot});
    }
  }

  engine::Engine* const engine_;
  std::mt19937 random_;
  engine::SamplingParams sampling_;
  std::vector<std::vector<int32_t>> pages_;
  uint64_t submitted_ = 0, waited_ = 0;
  std::vector<Sampled> sampled_;
};

// Prompts long and short in one step, decode steps of every padding, and both together.
std::vector<Sampled> RunAll(engine::Engine* engine, int64_t slots, uint32_t seed) {
  Driver driver(engine, slots, seed);
  // A multiple of 4 in all, so that dense products are cuBLASLt's.
  std::vector<int64_t> lengths = {1, 5, 40, 64, 65, 130, 201, 31, 63};
  const int64_t long_ones = static_cast<int64_t>(lengths.size());
  for (int64_t slot = long_ones; slot < slots; ++slot) lengths.push_back(1 + slot % 7);
  std::vector<Chunk> chunks;
  for (int32_t slot = 0; slot < long_ones; ++slot) chunks.push_back({slot, 0, lengths[slot]});
  driver.Run(chunks);
  if (slots > long_ones) {
    chunks.clear();
    for (auto slot = static_cast<int32_t>(long_ones); slot < slots; ++slot) {
      chunks.push_back({slot, 0, lengths[slot]});
    }
    driver.Run(chunks);
  }
  for (int64_t sequences = slots; sequences >= 1;
       sequences -= std::max<int64_t>(1, sequences / 16)) {
    for (int step = 0; step < 3; ++step) {
      chunks.clear();
      for (int32_t slot = 0; slot < sequences; ++slot) {
        chunks.push_back({slot, lengths[slot]++, 1, /*from_sampled=*/true});
      }
      driver.Run(chunks);
    }
  }
  chunks.clear();
  for (int32_t slot = 0; slot < slots; ++slot) {
    const int64_t count = slot < long_ones && slot % 3 == 0 ? 50 : 1;
    chunks.push_back({slot, lengths[slot], count});
  }
  driver.Run(chunks);
  return driver.Finish();
}

// How many products cuBLASLt has done so far.
int64_t CublasLtCalls(const Backend& backend) {
  int64_t calls = 0;
  for (const KernelCalls::Entry& entry : backend.kernel_calls()->Snapshot()) {
    if (std::string_view(entry.kernel) == "fp8_cublaslt") calls += entry.calls;
  }
  return calls;
}

class CudaStepTest : public testing::TestWithParam<StepCase> {};

TEST_P(CudaStepTest, ServedStepsAreThoseOfOpsOneByOne) {
  const uint32_t seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  const StepCase& c = GetParam();
  const model::ModelConfig config = Config(c.routed_experts);
  const std::unique_ptr<Backend> backend = Must(MakeCudaBackend({.numerics = Numerics::kFast}));
  WaitingBackend waiting(backend.get());
  const auto weights = bench::RandomDeviceWeights(config, c.experts, seed);
  const engine::EngineOptions options{.slots_max = c.slots,
                                      .step_tokens_max = 640,
                                      .positions_max = kPositionsMax,
                                      .kv_pages = c.slots * PagesFor(kPositionsMax),
                                      .kv_dtype = c.kv_dtype,
                                      .absorb_prompts = false};
  Silent silent;
  std::vector<Sampled> wanted;
  {
    const auto engine = Must(engine::Engine::Create(config, weights, &waiting, options));
    engine->SetLayerListener(&silent);
    wanted = RunAll(engine.get(), c.slots, seed);
  }
  for (int round = 0; round < 2; ++round) {
    SCOPED_TRACE(testing::Message() << "round " << round);
    const auto engine = Must(engine::Engine::Create(config, weights, backend.get(), options));
    const int64_t calls = CublasLtCalls(*backend);
    const std::vector<Sampled> got = RunAll(engine.get(), c.slots, seed);
    EXPECT_GT(CublasLtCalls(*backend), calls);
    ASSERT_EQ(got.size(), wanted.size());
    for (size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE(got[i]);
      const engine::SampledToken &a = wanted[i].token, &b = got[i].token;
      ASSERT_FALSE(a.not_finite);
      ASSERT_EQ(b.token_id, a.token_id);
      ASSERT_EQ(b.logprob, a.logprob);
      ASSERT_EQ(b.top_logprobs.size(), a.top_logprobs.size());
      for (size_t j = 0; j < b.top_logprobs.size(); ++j) {
        ASSERT_EQ(b.top_logprobs[j].logprob, a.top_logprobs[j].logprob) << "rank " << j;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(KvTypes, CudaStepTest,
                         testing::Values(StepCase{"BF16", 9, 32, 256, DType::kBF16},
                                         StepCase{"F8_E4M3", 9, 32, 256, DType::kF8E4M3}),
                         [](const auto& info) { return info.param.name; });

// Nine experts, as at EP32 with a copy of one, which have about 70 rows each here. Up to 144 slots
// the plan is for 128 rows of each at most: pairs of blocks, tiles of 128 rows, gate and up dealt
// out by columns. With 160 it is for more: whole tiles.
INSTANTIATE_TEST_SUITE_P(ManySlots, CudaStepTest,
                         testing::Values(StepCase{"BF16_144", 144, 9, 16, DType::kBF16},
                                         StepCase{"F8_E4M3_160", 160, 9, 16, DType::kF8E4M3}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace sluice::conformance
