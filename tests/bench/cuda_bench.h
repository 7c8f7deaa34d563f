// Times kernels on the GPU, and tells what was measured beside what the hardware allows.
//
//   int main(int argc, char** argv) {
//     bench::CudaBench bench(argc, argv);  // prints the GPU, the commit and the command
//     auto backend = bench::MakeBackend(); // numerics fast
//     const int copies = bench::CopiesBeyondL2(weight_bytes);
//     const bench::DeviceMemory w = bench::RandomF8(copies * n * k, /*stddev=*/100, /*seed=*/1);
//     bench.Run({.name = "linear fp8", .shape = "m=64 n=7168 k=2048", .flops = 2.0 * m * n * k,
//                .flops_max = bench::kFp8Flops, .bytes = n * k, .peer = "DeepGEMM", .peer_us
//                = 8.5},
//               StreamOf(*backend), [&](int i) { /* queue call i: weights i % copies */ });
//   }
//
// A time is that of a CUDA graph of 10 calls or more, divided by their number: the median of its
// replays after warm-up. The first call runs before the graph is captured, so that it may allocate.
// Whatever goes wrong ends the process with a message. Not thread-safe.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/ops/backend.h"
#include "kernels/ops/numerics.h"

namespace sluice::bench {

// What an H200 is measured to reach, as bounds: bytes copied a second, and products and sums a
// second of large matrix products (docs/benchmarks say where from).
inline constexpr double kHbmBytes = 4.3e12;
inline constexpr double kFp8Flops = 1450e12;
inline constexpr double kBf16Flops = 800e12;

struct CudaFree {
  void operator()(void* memory) const { cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<void, CudaFree>;

// Memory filled on the device: normally distributed numbers, never all zeros; the same for a seed.
DeviceMemory RandomF32(int64_t count, float stddev, uint64_t seed);
DeviceMemory RandomBf16(int64_t count, float stddev, uint64_t seed);
DeviceMemory RandomF8(int64_t count, float stddev, uint64_t seed);  // e4m3
// Uniform in [low, high): scales.
DeviceMemory UniformF32(int64_t count, float low, float high, uint64_t seed);
// Zeros, for what is written.
DeviceMemory Zeros(int64_t bytes);
// Fills memory that is there already.
void FillBf16(void* memory, int64_t count, float stddev, uint64_t seed);
// A copy of host memory.
DeviceMemory Upload(const void* host, int64_t bytes);
template <typename T>
DeviceMemory Upload(const std::vector<T>& host) {
  return Upload(host.data(), static_cast<int64_t>(host.size() * sizeof(T)));
}

// How many copies of a buffer of `bytes` to go through in turn so that none of it is still in L2
// (60 MB) when its turn comes again; at most 64.
int CopiesBeyondL2(double bytes);

// Prints the GPU, the commit and the command.
void PrintHeading(int argc, char** argv);
// The SM clock just after what was queued on the stream before.
double ClockMhz(cudaStream_t stream);

std::unique_ptr<Backend> MakeBackend(Numerics numerics = Numerics::kFast);

// End the process unless all is well.
void Check(const absl::Status& status);
void Check(cudaError_t error);

struct Case {
  std::string name;   // of the kernel or op
  std::string shape;  // "m=64 n=7168 k=2048"
  double flops = 0;   // of one call: products and sums apart
  double flops_max = kBf16Flops;
  double bytes = 0;  // that one call must move at least
  std::string peer;  // whose figure stands beside; empty: none
  double peer_us = 0;
  int copies = 1;  // of rotated buffers: the graph has at least so many calls
};

struct Timing {
  double us = 0;      // of one call: the median of the replays
  double us_min = 0;  // the fastest replay
  double us_max = 0;
};

class CudaBench {
 public:
  // Arguments: [FILTER]: only cases whose name and shape contain it.
  CudaBench(int argc, char** argv);

  // Times and prints a case; zeros if the filter leaves it out. `call(i)` queues the i-th call on
  // the stream. Each case is a line to read and one for programs: "row", name, shape, us, us_min,
  // us_max, TFLOPS, GB/s, bound in us, share of the bound, peer, peer's us, and SM clock in MHz
  // just after the replays, separated by tabs.
  Timing Run(const Case& c, cudaStream_t stream, const std::function<void(int)>& call);

  // Whether Run would run it: for cases that take long to prepare.
  bool Wants(std::string_view name, std::string_view shape) const;

 private:
  std::string filter_;
};

}  // namespace sluice::bench
