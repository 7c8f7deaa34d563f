// Any bytes as a safetensors file. What is accepted must tile the data exactly.

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "services/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view file(reinterpret_cast<const char*>(data), size);
  const auto entries = sluice::model::ParseSafetensors(file, "fuzz.safetensors");
  if (!entries.ok()) {
    if (entries.status().message().size() > 2000) std::abort();
    return 0;
  }
  size_t end = entries->empty() ? size : entries->front().begin;
  for (const auto& entry : *entries) {
    size_t bytes = sluice::DTypeBytes(entry.dtype);
    for (const int64_t dim : entry.shape) bytes *= static_cast<size_t>(dim);
    if (entry.begin != end || entry.end - entry.begin != bytes) std::abort();
    end = entry.end;
  }
  if (end != size) std::abort();
  return 0;
}
