#include "services/engine/kv_pool.h"

#include "absl/base/internal/raw_logging.h"

namespace sluice::engine {

KvPool::KvPool(int64_t num_pages) : in_use_(num_pages, false) {
  free_.reserve(num_pages);
  for (int64_t page = num_pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

bool KvPool::Allocate(int64_t count, std::vector<int32_t>* pages) {
  if (count > num_free()) return false;
  for (int64_t i = 0; i < count; ++i) {
    pages->push_back(free_.back());
    in_use_[free_.back()] = true;
    free_.pop_back();
  }
  return true;
}

void KvPool::Free(absl::Span<const int32_t> pages) {
  for (const int32_t page : pages) {
    if (page < 0 || page >= num_pages() || !in_use_[page]) {
      ABSL_RAW_LOG(FATAL, "KV page %d freed, but it is not allocated", page);
    }
    in_use_[page] = false;
    free_.push_back(page);
  }
}

}  // namespace sluice::engine
