// Whole steps of the engine on the GPU: decoding and prompts, of a model or of one rank's share of
// it.
//
//   cuda_step_bench --config FILE [--ep-slice R/N] [--kernels] CASE...
//
// CASE is decode:SEQUENCESxCONTEXT (every sequence goes on by one token, with CONTEXT tokens in the
// cache, the new one among them) or prompt:SEQUENCESxTOKENS (whole prompts, nothing cached).
// Weights are random, on the device, and so is the KV; pages are shuffled; tokens are random;
// sampling is at temperature 1 over the whole vocabulary.
//
// --ep-slice R/N measures what rank R of N expert-parallel ranks computes: all of attention and the
// dense layers, the whole gate, 1/N of the experts and one redundant one, and the shared expert.
// Choice k of token t goes to slot (t * top_k + k) % slots, so that each slot gets its even share.
// Dispatch and combine between ranks are not part of it: compute only.
//
// Steps are submitted as the scheduler does, one ahead of its results; a step's time is that
// between two completions: the median, after 2 s of warm-up, of 200 steps or more (prompts: 10).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status.h"
#include "services/engine/engine.h"
#include "tests/bench/cuda_bench.h"
#include "tests/bench/device_weights.h"
#include "tests/bench/kernel_trace.h"

namespace sluice::bench {
namespace {

constexpr double kWarmUpSeconds = 2;
constexpr int kDecodeSteps = 200, kPromptSteps = 10;
constexpr int kTracedSteps = 3;

struct StepCase {
  bool is_decode = false;
  int64_t sequences = 0;
  int64_t tokens = 0;  // of context, or of each prompt
};

absl::StatusOr<StepCase> ParseCase(const std::string& text) {
  char kind[8] = {};
  long long sequences = 0, tokens = 0;
  const int read = std::sscanf(text.c_str(), "%6[a-z]:%lldx%lld", kind, &sequences, &tokens);
  const std::string name = kind;
  if (read != 3 || (name != "decode" && name != "prompt") || sequences < 1 || tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(text,
                     ": wanted decode:SEQUENCESxCONTEXT or prompt:SEQUENCESxTOKENS, for example "
                     "decode:128x4096"));
  }
  return StepCase{name == "decode", sequences, tokens};
}

// Sequences in shuffled pages, and the plans that move them on.
class Steps {
 public:
  Steps(engine::Engine* engine, const StepCase& c)
      : engine_(engine), case_(c), pages_(c.sequences) {
    const int64_t each = PagesFor(c.tokens);
    std::vector<int32_t> pages(c.sequences * each);
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), random_);
    for (int64_t seq = 0; seq < c.sequences; ++seq) {
      pages_[seq].assign(pages.begin() + seq * each, pages.begin() + (seq + 1) * each);
    }
    sampling_.temperature = 1;
    sampling_.max_tokens = 1;
  }

  absl::Status Submit() {
    const int64_t count = case_.is_decode ? 1 : case_.tokens;
    tokens_.resize(pages_.size() * count);
    std::uniform_int_distribution<int32_t> ids(
        0, static_cast<int32_t>(engine_->config().vocab_size) - 1);
    for (int32_t& token : tokens_) token = ids(random_);
    chunks_.clear();
    for (size_t seq = 0; seq < pages_.size(); ++seq) {
      chunks_.push_back({.slot = static_cast<int32_t>(seq),
                         .first_position = case_.tokens - count,
                         .tokens = absl::MakeConstSpan(tokens_).subspan(seq * count, count),
                         .pages = pages_[seq],
                         .sampling = &sampling_,
                         .output_position = static_cast<int64_t>(submitted_)});
    }
    sampling_.seed = submitted_;
    return engine_->Submit({.number = ++submitted_, .chunks = chunks_}).status();
  }
  absl::Status Wait() {
    SLUICE_RETURN_IF_ERROR(engine_->Wait({++waited_}, absl::Minutes(2), &result_));
    for (const engine::SlotResult& slot : result_.slots) {
      for (const engine::SampledToken& token : slot.tokens) {
        // Such numbers are quicker to multiply.
        if (token.not_finite) return absl::DataLossError("logits are not finite");
      }
    }
    return absl::OkStatus();
  }
  // One step after another, two in flight.
  absl::Status Next() {
    SLUICE_RETURN_IF_ERROR(Submit());
    return Wait();
  }

 private:
  engine::Engine* const engine_;
  const StepCase case_;
  std::mt19937 random_{1};
  uint64_t submitted_ = 0, waited_ = 0;
  std::vector<int32_t> tokens_;
  std::vector<std::vector<int32_t>> pages_;
  std::vector<engine::StepChunk> chunks_;
  engine::SamplingParams sampling_;
  engine::StepResult result_;
};

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Medians of seconds between completions.
absl::StatusOr<std::vector<double>> StepSeconds(Steps* steps, int count) {
  SLUICE_RETURN_IF_ERROR(steps->Submit());
  const double begin = Seconds();
  double last = begin;
  std::vector<double> seconds;
  while (static_cast<int>(seconds.size()) < count) {
    SLUICE_RETURN_IF_ERROR(steps->Next());
    const double now = Seconds();
    if (last - begin > kWarmUpSeconds) seconds.push_back(now - last);
    last = now;
  }
  SLUICE_RETURN_IF_ERROR(steps->Wait());
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

class StepBench {
 public:
  StepBench(const model::ModelConfig& config, int64_t experts, bool even_experts,
            bool tells_kernels)
      : backend_(MakeBackend()),
        config_(config),
        even_experts_(even_experts),
        tells_kernels_(tells_kernels) {
    if (tells_kernels) PrepareKernelTrace();
    const double begin = Seconds();
    weights_ = RandomDeviceWeights(config, experts, /*seed=*/1);
    std::printf("# %lld layers, %lld experts a layer here, %.1f GB of weights, made in %.1f s\n",
                static_cast<long long>(config.num_hidden_layers), static_cast<long long>(experts),
                1e-9 * static_cast<double>(weights_->bytes), Seconds() - begin);
  }

  absl::Status Run(const StepCase& c) {
    const int64_t tokens = c.is_decode ? c.sequences : c.sequences * c.tokens;
    const double begin = Seconds();
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Engine> engine,
                            engine::Engine::Create(config_, weights_, backend_.get(),
                                                   {.slots_max = c.sequences,
                                                    .step_tokens_max = tokens,
                                                    .positions_max = c.tokens,
                                                    .kv_pages = c.sequences * PagesFor(c.tokens),
                                                    .kv_dtype = DType::kBF16,
                                                    .absorb_prompts = false,
                                                    .even_experts = even_experts_}));
    FillKv(engine->kv_cache());
    const double created = Seconds();
    Steps steps(engine.get(), c);
    SLUICE_ASSIGN_OR_RETURN(const std::vector<double> seconds,
                            StepSeconds(&steps, c.is_decode ? kDecodeSteps : kPromptSteps));
    const double median = seconds[seconds.size() / 2];
    const double mhz = ClockMhz(StreamOf(*backend_));
    const std::string shape = absl::StrFormat("%dx%d", c.sequences, c.tokens);
    const char* const kind = c.is_decode ? "decode" : "prompt";
    std::printf(
        "%-8s %-12s %10.3f ms a step (%.3f to %.3f)  %10.0f tok/s  %4.0f MHz, start %.1f s\n", kind,
        shape.c_str(), median * 1e3, seconds.front() * 1e3, seconds.back() * 1e3,
        static_cast<double>(tokens) / median, mhz, created - begin);
    std::printf("row\tstep %s\t%s\t%.1f\t%.1f\t%.1f\t%.0f\t%.0f\n", kind, shape.c_str(),
                median * 1e6, seconds.front() * 1e6, seconds.back() * 1e6,
                static_cast<double>(tokens) / median, mhz);
    std::fflush(stdout);
    SLUICE_RETURN_IF_ERROR(CheckKernels(*engine));
    return tells_kernels_ ? TellKernels(&steps, absl::StrCat(kind, " ", shape)) : absl::OkStatus();
  }

 private:
  // A slice is measured for what DeepSeek-V3's kernels do.
  absl::Status CheckKernels(const engine::Engine& engine) const {
    if (!even_experts_) return absl::OkStatus();
    for (const KernelCalls::Entry& entry : engine.kernel_calls()->Snapshot()) {
      if (absl::StrContains(entry.kernel, "general")) {
        return absl::FailedPreconditionError(
            absl::StrCat(entry.op, " ran on the kernel for any geometry, ", entry.kernel));
      }
    }
    return absl::OkStatus();
  }

  // Lines for programs: "kernel", the case, name, calls and microseconds of one step.
  static absl::Status TellKernels(Steps* steps, const std::string& name) {
    StartKernelTrace();
    for (int i = 0; i < kTracedSteps; ++i) {
      SLUICE_RETURN_IF_ERROR(steps->Submit());
      SLUICE_RETURN_IF_ERROR(steps->Wait());
    }
    for (const KernelTime& time : StopKernelTrace()) {
      const double us = time.us / kTracedSteps;
      const double calls = static_cast<double>(time.calls) / kTracedSteps;
      std::printf("%10.1f us %7.1f calls %8.2f us each  %s\n", us, calls, us / calls,
                  time.name.c_str());
      std::printf("kernel\t%s\t%s\t%.1f\t%.2f\n", name.c_str(), time.name.c_str(), calls, us);
    }
    std::fflush(stdout);
    return absl::OkStatus();
  }

  void FillKv(const engine::KvCacheView& kv) {
    const int64_t elements = kv.pages * kv.page_bytes() / 2;
    for (size_t layer = 0; layer < kv.layers.size(); ++layer) {
      FillBf16(kv.layers[layer], elements, 1.0f, 1000 + layer);
    }
  }

  const std::unique_ptr<Backend> backend_;
  const model::ModelConfig config_;
  const bool even_experts_;
  const bool tells_kernels_;
  std::shared_ptr<const model::ModelWeights> weights_;
};

absl::StatusOr<model::ModelConfig> ReadConfig(const std::string& file) {
  std::ifstream in(file);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) return absl::NotFoundError(absl::StrCat(file, ": cannot be read"));
  return model::ParseModelConfig(text.str(), file);
}

absl::Status Main(const std::string& file, const std::string& slice, bool tells_kernels,
                  const std::vector<std::string>& names) {
  SLUICE_ASSIGN_OR_RETURN(const model::ModelConfig config, ReadConfig(file));
  std::vector<StepCase> cases;
  for (const std::string& name : names) {
    SLUICE_ASSIGN_OR_RETURN(cases.emplace_back(), ParseCase(name));
  }
  int64_t experts = config.n_routed_experts;
  if (!slice.empty()) {
    int rank = -1, ranks = 0;
    if (std::sscanf(slice.c_str(), "%d/%d", &rank, &ranks) != 2 || ranks < 1 || rank < 0 ||
        rank >= ranks || config.n_routed_experts % ranks != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--ep-slice is ", slice, ", wanted R/N with R below N, and N a divisor of ",
                       config.n_routed_experts, " experts"));
    }
    experts = config.n_routed_experts / ranks + 1;
  }
  StepBench bench(config, experts, /*even_experts=*/!slice.empty(), tells_kernels);
  for (const StepCase& c : cases) SLUICE_RETURN_IF_ERROR(bench.Run(c));
  return absl::OkStatus();
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) {
  CLI::App app("Measures whole steps of the engine on the GPU.", "cuda_step_bench");
  std::string config, slice;
  bool tells_kernels = false;
  std::vector<std::string> cases;
  app.add_option("--config", config, "config.json of the model")->required();
  app.add_option("--ep-slice", slice, "R/N: what rank R of N expert-parallel ranks computes");
  app.add_flag("--kernels", tells_kernels, "tell what kernels a step is made of");
  app.add_option("cases", cases, "decode:SEQUENCESxCONTEXT or prompt:SEQUENCESxTOKENS")->required();
  CLI11_PARSE(app, argc, argv);
  sluice::bench::PrintHeading(argc, argv);
  const absl::Status status = sluice::bench::Main(config, slice, tells_kernels, cases);
  if (status.ok()) return 0;
  std::fprintf(stderr, "cuda_step_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
