// Bytes a second of the page checksum, from cache (one page) and from memory (many pages).
#include <vector>

#include <benchmark/benchmark.h>

#include "services/transport/page_checksum.h"

namespace sluice::transport {
namespace {

constexpr int64_t kPageBytes = 64 * 576 * 2;  // one layer of a DeepSeek-V3 page

// With copies: to one page, as a slot of a ring is.
void Sum(benchmark::State& state, const PageSumKernel& kernel, int64_t pages, bool copies) {
  std::vector<std::byte> pool(static_cast<size_t>(pages * kPageBytes), std::byte{1});
  std::vector<std::byte> copy(static_cast<size_t>(kPageBytes));
  const PageKey key = ExpandKey(1);
  int64_t page = 0;
  for (auto _ : state) {
    const auto bytes = absl::MakeConstSpan(pool).subspan(page * kPageBytes, kPageBytes);
    benchmark::DoNotOptimize(copies ? kernel.copy(key, bytes, copy.data())
                                    : kernel.sum(key, bytes));
    page = (page + 1) % pages;
  }
  state.SetBytesProcessed(state.iterations() * kPageBytes);
}

const bool registered = [] {
  for (const PageSumKernel& kernel : PageSumKernels()) {
    for (int64_t pages : {1, 8192}) {
      for (bool copies : {false, true}) {
        benchmark::RegisterBenchmark(
            (std::string(copies ? "copy_with_checksum/" : "page_checksum/") + kernel.name +
             (pages == 1 ? "/cache" : "/memory"))
                .c_str(),
            [&kernel, pages, copies](benchmark::State& state) {
              Sum(state, kernel, pages, copies);
            });
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace sluice::transport
