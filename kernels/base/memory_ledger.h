// What a device's memory has gone to, for the message that says that there is no more.
//
// Threads: any.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace sluice {

// "16.1 GB", "512.0 MB", "12 B": three or four digits, in powers of 1000 as cards are sold.
std::string MemoryString(uint64_t bytes);

class MemoryLedger {
 public:
  // Writes down that `bytes` have gone to `what`, until what it returns goes.
  static std::shared_ptr<void> Take(const std::shared_ptr<MemoryLedger>& ledger,
                                    const std::string& what, uint64_t bytes);

  // What has gone to whom, as of now.
  std::map<std::string, uint64_t> bytes() const;
  // "45.2 GB so far: weights 40.1 GB, KV cache 5.0 GB, others 0.1 GB": the largest three by name.
  // "nothing so far".
  std::string ToString() const;

 private:
  mutable std::mutex mutex_;  // guards all below
  std::map<std::string, uint64_t> bytes_;
};

}  // namespace sluice
