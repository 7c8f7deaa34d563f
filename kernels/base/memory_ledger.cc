#include "kernels/base/memory_ledger.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sluice {

std::string MemoryString(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1000 && unit < 6) {
    value /= 1000;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::shared_ptr<void> MemoryLedger::Take(const std::shared_ptr<MemoryLedger>& ledger,
                                         const std::string& what, uint64_t bytes) {
  {
    const std::lock_guard lock(ledger->mutex_);
    ledger->bytes_[what] += bytes;
  }
  return std::shared_ptr<void>(nullptr, [ledger, what, bytes](void*) {
    const std::lock_guard lock(ledger->mutex_);
    const auto entry = ledger->bytes_.find(what);
    entry->second -= bytes;
    if (entry->second == 0) ledger->bytes_.erase(entry);
  });
}

std::map<std::string, uint64_t> MemoryLedger::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

std::string MemoryLedger::ToString() const {
  std::vector<std::pair<uint64_t, std::string>> parts;
  uint64_t total = 0;
  for (const auto& [what, taken] : bytes()) {
    parts.emplace_back(taken, what);
    total += taken;
  }
  if (total == 0) return "nothing so far";
  std::sort(parts.rbegin(), parts.rend());
  std::string text = absl::StrCat(MemoryString(total), " so far:");
  uint64_t named = 0;
  for (size_t i = 0; i < std::min<size_t>(3, parts.size()); ++i) {
    absl::StrAppend(&text, i == 0 ? " " : ", ", parts[i].second, " ", MemoryString(parts[i].first));
    named += parts[i].first;
  }
  if (named < total) absl::StrAppend(&text, ", others ", MemoryString(total - named));
  return text;
}

}  // namespace sluice
