#include "kernels/ops/kernel_calls.h"

#include <cstdlib>
#include <cstring>

namespace sluice {

KernelCalls::Slot* KernelCalls::Find(const char* op, const char* kernel, int size) {
  for (int i = 0; i < size; ++i) {  // a literal is nearly always the same one
    if (slots_[i].op == op && slots_[i].kernel == kernel) return &slots_[i];
  }
  for (int i = 0; i < size; ++i) {
    if (std::strcmp(slots_[i].op, op) == 0 && std::strcmp(slots_[i].kernel, kernel) == 0) {
      return &slots_[i];
    }
  }
  return nullptr;
}

void KernelCalls::Count(const char* op, const char* kernel, int64_t calls) {
  Slot* slot = Find(op, kernel, size_.load(std::memory_order_acquire));
  if (slot == nullptr) {
    const std::lock_guard lock(mutex_);
    const int size = size_.load(std::memory_order_relaxed);
    slot = Find(op, kernel, size);
    if (slot == nullptr) {
      if (size == kEntriesMax) std::abort();
      slot = &slots_[size];
      slot->op = op;
      slot->kernel = kernel;
      size_.store(size + 1, std::memory_order_release);
    }
  }
  slot->calls.fetch_add(calls, std::memory_order_relaxed);
}

std::vector<KernelCalls::Entry> KernelCalls::Snapshot() const {
  std::vector<Entry> entries;
  const int size = size_.load(std::memory_order_acquire);
  for (int i = 0; i < size; ++i) {
    entries.push_back({slots_[i].op, slots_[i].kernel, slots_[i].calls.load()});
  }
  return entries;
}

}  // namespace sluice
