// Matrix products at the shapes of the tiny model, DeepSeek-V2-Lite and DeepSeek-V3.
//   linear_bench --benchmark_filter='fast/bf16/v3/.*/M:1$'
// Names: numerics/weights/model/N x K/M. Counters: GB/s of weights, GFLOP/s.
// Matrices of the large models take turns, so that they come from memory, as in a real step.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/linear.h"

namespace sluice {
namespace {

constexpr int64_t kColdBytes = int64_t{384} << 20;  // well beyond the caches

struct Shape {
  const char* model;
  int64_t n, k;
  bool hot;
};
constexpr Shape kShapes[] = {
    {"tiny", 256, 256, true},      {"tiny", 768, 256, true},       {"tiny", 1024, 256, true},
    {"v2lite", 3072, 2048, false}, {"v2lite", 576, 2048, false},   {"v2lite", 4096, 512, false},
    {"v2lite", 2048, 2048, false}, {"v2lite", 10944, 2048, false}, {"v2lite", 2048, 10944, false},
    {"v2lite", 1408, 2048, false}, {"v2lite", 2048, 1408, false},  {"v2lite", 102400, 2048, false},
    {"v3", 2112, 7168, false},     {"v3", 24576, 1536, false},     {"v3", 32768, 512, false},
    {"v3", 7168, 16384, false},    {"v3", 4096, 7168, false},      {"v3", 7168, 2048, false},
};

class Matrices {
 public:
  Matrices(DType dtype, const Shape& shape)
      : bytes_(shape.n * shape.k * static_cast<int64_t>(DTypeBytes(dtype))),
        copies_(shape.hot ? 1 : 1 + kColdBytes / bytes_),
        buffer_(bytes_ * copies_),
        scale_cols_((shape.k + 127) / 128),
        scales_((shape.n + 127) / 128 * scale_cols_, 0.01f) {
    // Signs and mantissas of numbers around 1 (in FP8, of two of them); the same ones again and
    // again, which no kernel notices.
    std::mt19937 rng(1);
    std::vector<uint16_t> pattern(1 << 16);
    for (uint16_t& word : pattern) {
      word = dtype == DType::kBF16 ? 0x3f00 | (rng() & 0x80ff) : 0x3838 | (rng() & 0x8787);
    }
    const size_t pattern_bytes = pattern.size() * sizeof(pattern[0]);
    for (size_t at = 0; at < buffer_.size(); at += pattern_bytes) {
      std::memcpy(buffer_.As<char>() + at, pattern.data(),
                  std::min(pattern_bytes, buffer_.size() - at));
    }
    view_ = {nullptr, dtype, shape.n, shape.k, shape.k};
    if (dtype == DType::kF8E4M3) {
      view_.scales = scales_.data();
      view_.scale_row_stride = scale_cols_;
    }
  }
  int64_t bytes() const { return bytes_; }
  WeightView Next() {
    view_.data = buffer_.As<char>() + next_ * bytes_;
    next_ = (next_ + 1) % copies_;
    return view_;
  }

 private:
  int64_t bytes_, copies_, next_ = 0;
  AlignedBuffer buffer_;
  int64_t scale_cols_;
  std::vector<float> scales_;
  WeightView view_;
};

void RunLinear(benchmark::State& state, Numerics numerics, DType dtype, Shape shape) {
  ThreadPool pool(UsableCores());
  CpuLinearOps ops(CpuContext{pool, DetectCpuIsa(), numerics});
  Matrices matrices(dtype, shape);
  const int64_t m = state.range(0);
  AlignedBuffer x(m * shape.k * 4), out(m * shape.n * 4);
  for (int64_t i = 0; i < m * shape.k; ++i) x.As<float>()[i] = static_cast<float>(i % 17) - 8.0f;
  LinearParams params{TensorView(x.data(), DType::kF32, {m, shape.k}),
                      {},
                      TensorView(out.data(), DType::kF32, {m, shape.n})};
  for (auto _ : state) {
    params.w = matrices.Next();
    if (!ops.Linear(params, {}).ok()) state.SkipWithError("Linear failed");
  }
  const double runs = static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(runs * static_cast<double>(matrices.bytes()) * 1e-9,
                                              benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(
      runs * 2e-9 * static_cast<double>(m * shape.n * shape.k), benchmark::Counter::kIsRate);
}

// What the machine can do at most: all threads reading memory, in eight runs each.
void ReadMemory(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  constexpr int64_t kRun = 1 << 15, kRuns = 8, kBlocks = kColdBytes / (kRun * kRuns);
  AlignedBuffer buffer(kColdBytes);
  for (int64_t i = 0; i < kColdBytes; i += 64) buffer.As<char>()[i] = 1;
  std::vector<int64_t> sums(kBlocks);
  for (auto _ : state) {
    pool.ParallelFor(kBlocks, [&](int64_t block) {
      const int64_t* words = buffer.As<int64_t>() + block * (kRun * kRuns / 8);
      int64_t sum = 0;
      for (int64_t i = 0; i < kRun / 8; i += 8) {
        for (int64_t run = 0; run < kRuns; ++run) sum += words[run * (kRun / 8) + i];
      }
      sums[block] += sum;
    });
  }
  benchmark::DoNotOptimize(sums.data());
  state.counters["GB/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * kColdBytes * 1e-9, benchmark::Counter::kIsRate);
}
BENCHMARK(ReadMemory)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime();

void ForkAndJoin(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    pool.ParallelFor(state.range(0), [](int64_t task) { benchmark::DoNotOptimize(task); });
  }
}
BENCHMARK(ForkAndJoin)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime();

const bool kRegistered = [] {
  for (const Numerics numerics : {Numerics::kExact, Numerics::kFast}) {
    for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      for (const Shape& shape : kShapes) {
        const std::string name = absl::StrCat(numerics == Numerics::kExact ? "exact" : "fast", "/",
                                              dtype == DType::kBF16 ? "bf16" : "f8", "/",
                                              shape.model, "/", shape.n, "x", shape.k);
        benchmark::RegisterBenchmark(name.c_str(), RunLinear, numerics, dtype, shape)
            ->ArgName("M")
            ->ArgsProduct({{1, 4, 16, 64, 512}})
            ->UseRealTime();
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace sluice
