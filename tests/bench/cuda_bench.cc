#include "tests/bench/cuda_bench.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/bench/cuda_fill.h"

namespace sluice {
extern const char* const kBuildCommit;
}

namespace sluice::bench {
namespace {

constexpr int kCalls = 10;   // of a graph, at least
constexpr int kReplays = 9;  // timed
constexpr double kWarmUpMs = 5;
constexpr double kL2Bytes = 60e6;

DeviceMemory Allocate(int64_t bytes) {
  void* memory = nullptr;
  Check(cudaMalloc(&memory, static_cast<size_t>(std::max<int64_t>(bytes, 1))));
  return DeviceMemory(memory);
}

DeviceMemory Filled(Fill fill, int64_t count, int64_t element_bytes, float a, float b,
                    uint64_t seed) {
  DeviceMemory memory = Allocate(count * element_bytes);
  Check(LaunchFill(fill, memory.get(), count, a, b, seed, nullptr));
  Check(cudaDeviceSynchronize());
  return memory;
}

}  // namespace

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s: %s\n", cudaGetErrorName(error), cudaGetErrorString(error));
  std::exit(1);
}

DeviceMemory RandomF32(int64_t count, float stddev, uint64_t seed) {
  return Filled(Fill::kNormalF32, count, 4, 0, stddev, seed);
}
DeviceMemory RandomBf16(int64_t count, float stddev, uint64_t seed) {
  return Filled(Fill::kNormalBf16, count, 2, 0, stddev, seed);
}
DeviceMemory RandomF8(int64_t count, float stddev, uint64_t seed) {
  return Filled(Fill::kNormalF8, count, 1, 0, stddev, seed);
}
DeviceMemory UniformF32(int64_t count, float low, float high, uint64_t seed) {
  return Filled(Fill::kUniformF32, count, 4, low, high, seed);
}
DeviceMemory Zeros(int64_t bytes) {
  DeviceMemory memory = Allocate(bytes);
  Check(cudaMemset(memory.get(), 0, static_cast<size_t>(bytes)));
  Check(cudaDeviceSynchronize());
  return memory;
}
void FillBf16(void* memory, int64_t count, float stddev, uint64_t seed) {
  Check(LaunchFill(Fill::kNormalBf16, memory, count, 0, stddev, seed, nullptr));
  Check(cudaDeviceSynchronize());
}
DeviceMemory Upload(const void* host, int64_t bytes) {
  DeviceMemory memory = Allocate(bytes);
  Check(cudaMemcpy(memory.get(), host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice));
  return memory;
}

double ClockMhz(cudaStream_t stream) {
  int64_t counted[2];
  const DeviceMemory device = Zeros(sizeof(counted));
  int64_t* const out = static_cast<int64_t*>(device.get());
  Check(LaunchCountClock(out, out + 1, stream));
  Check(cudaStreamSynchronize(stream));
  Check(cudaMemcpy(counted, out, sizeof(counted), cudaMemcpyDeviceToHost));
  return 1e3 * static_cast<double>(counted[0]) / static_cast<double>(counted[1]);
}

int CopiesBeyondL2(double bytes) {
  // Four times over: what is read in between pushes it out even when it is not the oldest.
  return static_cast<int>(std::clamp(4 * kL2Bytes / std::max(bytes, 1.0) + 1, 2.0, 64.0));
}

std::unique_ptr<Backend> MakeBackend(Numerics numerics) {
  auto backend = MakeCudaBackend({.numerics = numerics});
  Check(backend.status());
  return *std::move(backend);
}

void PrintHeading(int argc, char** argv) {
  int device = 0, driver = 0, runtime = 0, sm_khz = 0, memory_khz = 0;
  cudaDeviceProp properties;
  Check(cudaGetDevice(&device));
  Check(cudaGetDeviceProperties(&properties, device));
  Check(cudaDriverGetVersion(&driver));
  Check(cudaRuntimeGetVersion(&runtime));
  Check(cudaDeviceGetAttribute(&sm_khz, cudaDevAttrClockRate, device));
  Check(cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, device));
  std::printf(
      "# %s, %d SMs at up to %d MHz, memory at %d MHz, driver for CUDA %d.%d, runtime %d.%d\n",
      properties.name, properties.multiProcessorCount, sm_khz / 1000, memory_khz / 1000,
      driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  std::printf("# commit %s, SM clock now %.0f MHz, command:", kBuildCommit, ClockMhz(nullptr));
  for (int i = 0; i < argc; ++i) std::printf(" %s", argv[i]);
  std::printf("\n");
}

CudaBench::CudaBench(int argc, char** argv) : filter_(argc > 1 ? argv[1] : "") {
  PrintHeading(argc, argv);
  std::printf("# bounds: %.2f TB/s, %.0f (FP8) and %.0f (bf16) TFLOPS\n", kHbmBytes / 1e12,
              kFp8Flops / 1e12, kBf16Flops / 1e12);
  std::printf("%-22s %-30s %9s %7s %7s %9s %6s %5s  %s\n", "case", "shape", "us", "TFLOPS", "GB/s",
              "bound us", "share", "MHz", "peer");
}

bool CudaBench::Wants(std::string_view name, std::string_view shape) const {
  return absl::StrContains(absl::StrCat(absl::string_view(name.data(), name.size()), " ",
                                        absl::string_view(shape.data(), shape.size())),
                           filter_);
}

Timing CudaBench::Run(const Case& c, cudaStream_t stream, const std::function<void(int)>& call) {
  if (!Wants(c.name, c.shape)) return {};
  const int calls = std::max(kCalls, c.copies);
  for (int i = 0; i < c.copies; ++i) call(i);
  Check(cudaStreamSynchronize(stream));

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) call(i);
  Check(cudaStreamEndCapture(stream, &graph));
  Check(cudaGraphInstantiate(&replay, graph, 0));
  cudaEvent_t events[kReplays + 1];
  for (cudaEvent_t& event : events) Check(cudaEventCreate(&event));
  const auto elapsed_ms = [&](int from, int to) {
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, events[from], events[to]));
    return static_cast<double>(ms);
  };

  double warm_up_ms = 0;
  for (int i = 0; i < 3 || warm_up_ms < kWarmUpMs; ++i) {
    Check(cudaEventRecord(events[0], stream));
    Check(cudaGraphLaunch(replay, stream));
    Check(cudaEventRecord(events[1], stream));
    Check(cudaEventSynchronize(events[1]));
    warm_up_ms += elapsed_ms(0, 1);
  }
  Check(cudaEventRecord(events[0], stream));
  for (int i = 0; i < kReplays; ++i) {
    Check(cudaGraphLaunch(replay, stream));
    Check(cudaEventRecord(events[i + 1], stream));
  }
  const double mhz = ClockMhz(stream);
  double us[kReplays];
  for (int i = 0; i < kReplays; ++i) us[i] = 1e3 * elapsed_ms(i, i + 1) / calls;
  for (const cudaEvent_t event : events) Check(cudaEventDestroy(event));
  Check(cudaGraphExecDestroy(replay));
  Check(cudaGraphDestroy(graph));
  std::sort(us, us + kReplays);
  const Timing timing = {.us = us[kReplays / 2], .us_min = us[0], .us_max = us[kReplays - 1]};

  const double tflops = c.flops / timing.us / 1e6, gbps = c.bytes / timing.us / 1e3;
  const double bound_us = 1e6 * std::max(c.flops / c.flops_max, c.bytes / kHbmBytes);
  std::printf("%-22s %-30s %9.2f %7.0f %7.0f %9.2f %5.0f%% %5.0f", c.name.c_str(), c.shape.c_str(),
              timing.us, tflops, gbps, bound_us, 100 * bound_us / timing.us, mhz);
  if (!c.peer.empty()) {
    std::printf("  %s %.1f us (%.2fx)", c.peer.c_str(), c.peer_us, c.peer_us / timing.us);
  }
  std::printf("\nrow\t%s\t%s\t%.3f\t%.3f\t%.3f\t%.1f\t%.1f\t%.3f\t%.4f\t%s\t%.3f\t%.0f\n",
              c.name.c_str(), c.shape.c_str(), timing.us, timing.us_min, timing.us_max, tflops,
              gbps, bound_us, bound_us / timing.us, c.peer.c_str(), c.peer_us, mhz);
  std::fflush(stdout);
  return timing;
}

}  // namespace sluice::bench
