// How a row of an FP8 KV cache lies in memory; apart from the ops because device code reads it too.
// kernels/ops/attention.h says what it means.
#pragma once

#include <cstdint>

namespace sluice {

inline constexpr int kF8KvGroup = 128;

// In bytes from the row's first: the scales, the rotated key, and the next row.
constexpr int64_t F8KvScalesAt(int64_t kv_lora_rank) { return (kv_lora_rank + 3) / 4 * 4; }
constexpr int64_t F8KvKeyAt(int64_t kv_lora_rank) {
  return F8KvScalesAt(kv_lora_rank) + 4 * ((kv_lora_rank + kF8KvGroup - 1) / kF8KvGroup);
}
constexpr int64_t F8KvRowBytes(int64_t kv_lora_rank, int64_t rope_dim) {
  return F8KvKeyAt(kv_lora_rank) + 2 * rope_dim;
}

}  // namespace sluice
