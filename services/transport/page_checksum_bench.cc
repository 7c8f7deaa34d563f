// Bytes a second of the page checksum, from cache (one page) and from memory (many pages).
#include <vector>

#include <benchmark/benchmark.h>

#include "services/transport/page_checksum.h"

namespace sluice::transport {
namespace {

constexpr int64_t kPageBytes = 64 * 576 * 2;  // one layer of a DeepSeek-V3 page

void Sum(benchmark::State& state, const PageSumKernel& kernel, int64_t pages) {
  std::vector<std::byte> pool(static_cast<size_t>(pages * kPageBytes), std::byte{1});
  const WordKey key(1);
  int64_t page = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        kernel.sum(key, absl::MakeConstSpan(pool).subspan(page * kPageBytes, kPageBytes)));
    page = (page + 1) % pages;
  }
  state.SetBytesProcessed(state.iterations() * kPageBytes);
}

const bool registered = [] {
  for (const PageSumKernel& kernel : PageSumKernels()) {
    for (int64_t pages : {1, 8192}) {
      benchmark::RegisterBenchmark(
          (std::string("page_checksum/") + kernel.name + (pages == 1 ? "/cache" : "/memory"))
              .c_str(),
          [&kernel, pages](benchmark::State& state) { Sum(state, kernel, pages); });
    }
  }
  return true;
}();

}  // namespace
}  // namespace sluice::transport
