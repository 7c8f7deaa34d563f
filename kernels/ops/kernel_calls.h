// Which kernel served which op, and how often: so that no slow path is silent. A backend's ops
// count each call that queues a kernel; a recording's are counted when it is replayed.
//
// Threads: any. Counting takes no lock but the first time.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

namespace sluice {

class KernelCalls {
 public:
  struct Entry {
    const char* op;
    const char* kernel;
    int64_t calls;
  };

  // Names are string literals: the op's in snake case, as in kernels/ops; the kernel's own.
  void Count(const char* op, const char* kernel, int64_t calls = 1);

  // In order of their first call. Later snapshots have the same entries first.
  std::vector<Entry> Snapshot() const;

 private:
  static constexpr int kEntriesMax = 128;  // far more than there are kernels
  struct Slot {
    const char* op = nullptr;
    const char* kernel = nullptr;
    std::atomic<int64_t> calls{0};
  };

  // The slot among the first `size`, or null.
  Slot* Find(const char* op, const char* kernel, int size);

  std::array<Slot, kEntriesMax> slots_;  // names of the first size_ stay as they are
  std::atomic<int> size_{0};
  std::mutex mutex_;  // held by whoever adds a slot
};

}  // namespace sluice
