// Sizes of decode steps that are recorded. A step of fewer sequences is padded to the next size.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace sluice::engine {

// The smallest size of at least `sequences`, which is 1 or more: 1, 2, 4, 8, multiples of 8 up to
// 64, then four sizes for each doubling; never above `slots_max`.
inline int64_t DecodeBucket(int64_t sequences, int64_t slots_max) {
  int64_t power = 1;
  while (power * 2 <= sequences) power *= 2;
  int64_t bucket = power;
  if (power < sequences) {
    const int64_t quarter = sequences < 8 ? power : std::max<int64_t>(power / 4, 8);
    bucket = (sequences + quarter - 1) / quarter * quarter;
  }
  return std::min(bucket, slots_max);
}

// All of them, rising; the last is slots_max.
inline std::vector<int64_t> DecodeBuckets(int64_t slots_max) {
  std::vector<int64_t> buckets;
  for (int64_t next = 1; next <= slots_max; next = buckets.back() + 1) {
    buckets.push_back(DecodeBucket(next, slots_max));
  }
  return buckets;
}

}  // namespace sluice::engine
