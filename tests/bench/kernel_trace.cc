#include "tests/bench/kernel_trace.h"

#include <cupti.h>
#include <cxxabi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include "tests/bench/cuda_bench.h"

namespace sluice::bench {
namespace {

constexpr size_t kBufferBytes = 8 << 20;
constexpr size_t kAlignment = 8;

struct Span {        // nanoseconds
  std::string name;  // mangled
  uint64_t start, end;
};

std::mutex mutex;
std::vector<Span> spans;

void Check(CUptiResult result) {
  if (result == CUPTI_SUCCESS) return;
  const char* text = nullptr;
  cuptiGetResultString(result, &text);
  std::fprintf(stderr, "CUPTI: %s\n", text);
  std::exit(1);
}

void CUPTIAPI OnBufferWanted(uint8_t** buffer, size_t* bytes, size_t* records_max) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, kBufferBytes));
  *bytes = kBufferBytes;
  *records_max = 0;
}

void CUPTIAPI OnBufferFull(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid_bytes) {
  const std::lock_guard lock(mutex);
  CUpti_Activity* record = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid_bytes, &record) == CUPTI_SUCCESS) {
    if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
    const auto* kernel = reinterpret_cast<const CUpti_ActivityKernel10*>(record);
    spans.push_back({kernel->name, kernel->start, kernel->end});
  }
  std::free(buffer);
}

std::string Readable(const std::string& mangled) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), std::free);
  if (status != 0) return mangled;
  std::string name = text.get();
  for (const char* part : {"void ", "sluice::cuda::", "(anonymous namespace)::"}) {
    for (size_t at; (at = name.find(part)) != std::string::npos;) {
      name.erase(at, std::string(part).size());
    }
  }
  // Parameters begin at the first parenthesis outside of template arguments.
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (name[i] == '(' && depth == 0) return name.substr(0, i);
  }
  return name;
}

}  // namespace

void PrepareKernelTrace() {
  Check(cuptiActivityRegisterCallbacks(OnBufferWanted, OnBufferFull));
  Check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL));
  Check(cuptiActivityDisable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL));
}

void StartKernelTrace() {
  Check(cudaDeviceSynchronize());
  Check(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED));
  {
    const std::lock_guard lock(mutex);
    spans.clear();
  }
  Check(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL));
}

std::vector<KernelTime> StopKernelTrace() {
  Check(cudaDeviceSynchronize());
  Check(cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED));
  Check(cuptiActivityDisable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL));
  const std::lock_guard lock(mutex);
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.end < b.end; });
  std::map<std::string, KernelTime> times;
  uint64_t ended = 0;
  for (const Span& span : spans) {
    KernelTime& time = times[span.name];
    ++time.calls;
    time.us += 1e-3 * static_cast<double>(span.end - std::max(span.start, ended));
    ended = span.end;
  }
  std::vector<KernelTime> sorted;
  for (const auto& [name, time] : times) sorted.push_back({Readable(name), time.calls, time.us});
  std::sort(sorted.begin(), sorted.end(),
            [](const KernelTime& a, const KernelTime& b) { return a.us > b.us; });
  return sorted;
}

}  // namespace sluice::bench
