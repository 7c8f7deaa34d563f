// When a mock worker gave each token away, told to the load generator over a file that both map:
// row `seed % kEmitRows` belongs to the request with that sampling seed, column i to its i-th
// output. Entries are nanoseconds of CLOCK_MONOTONIC; 0: not yet. Both are processes of one
// machine.
//
// What the tokens say is agreed on as well: the i-th output of a request is one small letter, which
// follows from the seed, so that the generator knows every character that it is to get.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace sluice::bench {

inline constexpr uint64_t kEmitRows = 1 << 15;  // more than are ever open at once
inline constexpr uint64_t kEmitColumns = 1024;  // outputs beyond have no time
inline constexpr int kLetters = 26;

// Which letter, from 0.
inline int LetterOf(uint64_t seed, uint64_t output) {
  return static_cast<int>((seed * 7 + output) % kLetters);
}

int64_t NowNs();

class EmitTable {
 public:
  // Maps the file, which is made if it is not there; its pages are as many as are written to.
  static absl::StatusOr<EmitTable> Open(const std::string& path);
  ~EmitTable();
  EmitTable(EmitTable&& other) noexcept;
  EmitTable& operator=(EmitTable&&) = delete;

  void Set(uint64_t seed, uint64_t output, int64_t ns) {
    if (output < kEmitColumns) Cell(seed, output).store(ns, std::memory_order_release);
  }
  int64_t Get(uint64_t seed, uint64_t output) const {
    return output < kEmitColumns ? Cell(seed, output).load(std::memory_order_acquire) : 0;
  }

 private:
  explicit EmitTable(int64_t* cells) : cells_(cells) {}
  std::atomic_ref<int64_t> Cell(uint64_t seed, uint64_t output) const {
    return std::atomic_ref<int64_t>(cells_[seed % kEmitRows * kEmitColumns + output]);
  }

  int64_t* cells_;
};

}  // namespace sluice::bench
