// Encoding speed on 1 MiB texts of different kinds, in bytes a second on one core.
//
//   build/release/bin/tokenizer_bench          with the small tokenizer of testdata/tokenizer
//   SLUICE_BENCH_TOKENIZER=DIR build/release/bin/tokenizer_bench          with a checkpoint's own
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "services/model/detokenizer.h"
#include "services/model/tokenizer.h"

namespace sluice::model {
namespace {

constexpr size_t kTextBytes = size_t{1} << 20;

const Tokenizer& BenchTokenizer() {
  static const auto* const tokenizer = [] {
    const char* dir = std::getenv("SLUICE_BENCH_TOKENIZER");
    auto loaded = Tokenizer::Load(dir != nullptr ? dir : "services/model/testdata/tokenizer");
    if (!loaded.ok()) {
      fprintf(stderr, "%s (run this from the root of the sources)\n",
              std::string(loaded.status().message()).c_str());
      exit(1);
    }
    return new std::unique_ptr<const Tokenizer>(*std::move(loaded));
  }();
  return **tokenizer;
}

// Repeats `unit` up to 1 MiB, cut at a whole one.
std::string Fill(const std::string& unit) {
  std::string text;
  while (text.size() + unit.size() <= kTextBytes) text += unit;
  return text;
}

void Encode(benchmark::State& state, const std::string& unit) {
  const Tokenizer& tokenizer = BenchTokenizer();
  const std::string text = Fill(unit);
  size_t tokens = 0;
  for (auto _ : state) {
    const auto ids = tokenizer.Encode(text, {});
    if (!ids.ok()) return state.SkipWithError(std::string(ids.status().message()).c_str());
    tokens = ids->size();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
  state.counters["bytes/token"] = static_cast<double>(text.size()) / static_cast<double>(tokens);
}

// Words are mostly not in a small vocabulary, so much of this is merging.
const char kEnglish[] =
    "The committee published its findings on Thursday, after nearly eighteen months of hearings; "
    "nobody who had followed the proceedings was surprised. \"We didn't expect consensus,\" said "
    "one member, \"and we didn't get it.\" Meanwhile, neighbouring municipalities postponed their "
    "own decisions until the spring.\n\n";
const char kCjk[] =
    "委员会在星期四公布了调查结果，此前的听证会持续了将近十八个月。"
    "関係者によると、周辺の自治体は春まで決定を見送ったという。カタカナ・テスト。\n";
const char kRussian[] =
    "Комиссия опубликовала свои выводы в четверг, после почти восемнадцати месяцев слушаний; "
    "никто из следивших за процессом не удивился.\n";
const char kCode[] =
    "static absl::Status CheckShape(const TensorView& view, std::initializer_list<int64_t> dims) "
    "{\n"
    "  for (size_t i = 0; i < dims.size(); ++i) {\n"
    "    if (view.dims[i] != dims.begin()[i]) return Wrong(i, view.dims[i]);  // named by index\n"
    "  }\n  return absl::OkStatus();\n}\n\n";

BENCHMARK_CAPTURE(Encode, english, kEnglish)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Encode, russian, kRussian)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Encode, cjk, kCjk)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Encode, code, kCode)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Encode, digits, "7")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Encode, spaces, " ")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Encode, newlines, "\n")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Encode, one_letter, "a")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Encode, control_tokens, "<｜User｜>")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(Encode, half_control_tokens, "<｜place▁holder▁no▁")
    ->Unit(benchmark::kMillisecond);

void Detokenize(benchmark::State& state) {
  const Tokenizer& tokenizer = BenchTokenizer();
  const auto ids = tokenizer.Encode(Fill(kEnglish), {});
  size_t bytes = 0;
  for (auto _ : state) {
    Detokenizer detokenizer(tokenizer, /*skip_special=*/true);
    bytes = 0;
    for (const int32_t id : *ids) bytes += detokenizer.Feed(id).size();
    benchmark::DoNotOptimize(bytes);
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * ids->size()));
}
BENCHMARK(Detokenize)->Unit(benchmark::kMillisecond);

void Load(benchmark::State& state) {
  const char* dir = std::getenv("SLUICE_BENCH_TOKENIZER");
  for (auto _ : state) {
    auto loaded = Tokenizer::Load(dir != nullptr ? dir : "services/model/testdata/tokenizer");
    benchmark::DoNotOptimize(loaded);
  }
}
BENCHMARK(Load)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace sluice::model
