#include "services/engine/kv_pool.h"

#include <algorithm>

#include "absl/base/internal/raw_logging.h"

namespace sluice::engine {

KvPool::KvPool(int64_t num_pages) : pages_(num_pages) {
  free_.reserve(num_pages);
  page_of_name_.reserve(num_pages);
  for (int64_t page = num_pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

KvPool::Page& KvPool::CheckedPage(int32_t page, const char* what) {
  if (page < 0 || page >= num_pages() || pages_[page].references <= 0) {
    ABSL_RAW_LOG(FATAL, "KV page %d %s, but nobody holds it", page, what);
  }
  return pages_[page];
}

bool KvPool::Allocate(int64_t count, std::vector<int32_t>* pages) {
  if (count > num_free()) return false;
  for (int64_t i = 0; i < count; ++i) {
    if (free_.empty()) ForgetName(oldest_);
    const int32_t page = free_.back();
    free_.pop_back();
    pages_[page].references = 1;
    pages->push_back(page);
  }
  return true;
}

int64_t KvPool::Match(absl::Span<const model::PageHash> names, std::vector<int32_t>* pages) {
  int64_t count = 0;
  for (const model::PageHash& name : names) {
    const auto found = page_of_name_.find(name);
    if (found == page_of_name_.end()) break;
    if (pages_[found->second].references == 0) TakeFromCached(found->second);
    ++pages_[found->second].references;
    pages->push_back(found->second);
    ++count;
  }
  return count;
}

void KvPool::Release(absl::Span<const int32_t> pages) {
  for (auto it = pages.rbegin(); it != pages.rend(); ++it) {
    Page& page = CheckedPage(*it, "released");
    if (--page.references > 0) continue;
    if (page.named) {
      AddToCached(*it);
    } else {
      free_.push_back(*it);
    }
  }
}

void KvPool::SetName(int32_t index, const model::PageHash& name) {
  Page& page = CheckedPage(index, "named");
  if (page.named || !page_of_name_.emplace(name, index).second) return;
  page.named = true;
  page.name = name;
  if (removed_.erase(name) == 0) stored_.insert(name);
}

void KvPool::ForgetName(int32_t index) {
  Page& page = pages_[index];
  if (!page.named) return;
  page.named = false;
  page_of_name_.erase(page.name);
  if (stored_.erase(page.name) == 0) removed_.insert(page.name);
  if (page.references > 0) return;
  TakeFromCached(index);
  free_.push_back(index);
}

void KvPool::Quarantine(absl::Span<const int32_t> pages) {
  for (const int32_t index : pages) {
    Page& page = CheckedPage(index, "put into quarantine");
    if (page.named || page.references != 1) {
      ABSL_RAW_LOG(FATAL, "KV page %d put into quarantine while it is shared", index);
    }
    page.references = 0;
    page.quarantined = true;
    ++num_quarantined_;
  }
}

void KvPool::EndQuarantine(absl::Span<const int32_t> pages) {
  for (const int32_t index : pages) {
    if (!pages_[index].quarantined) {
      ABSL_RAW_LOG(FATAL, "KV page %d taken out of quarantine, but it is not in it", index);
    }
    pages_[index].quarantined = false;
    --num_quarantined_;
    free_.push_back(index);
  }
}

void KvPool::AddToCached(int32_t index) {
  pages_[index].previous = newest_;
  pages_[index].next = -1;
  (newest_ < 0 ? oldest_ : pages_[newest_].next) = index;
  newest_ = index;
  ++num_cached_;
}

void KvPool::TakeFromCached(int32_t index) {
  const Page& page = pages_[index];
  (page.previous < 0 ? oldest_ : pages_[page.previous].next) = page.next;
  (page.next < 0 ? newest_ : pages_[page.next].previous) = page.previous;
  --num_cached_;
}

void KvPool::TakeEvents(std::vector<model::PageHash>* stored,
                        std::vector<model::PageHash>* removed) {
  stored->assign(stored_.begin(), stored_.end());
  removed->assign(removed_.begin(), removed_.end());
  stored_.clear();
  removed_.clear();
  // The sets' own order differs from run to run.
  std::sort(stored->begin(), stored->end());
  std::sort(removed->begin(), removed->end());
}

std::vector<model::PageHash> KvPool::Snapshot() const {
  std::vector<model::PageHash> names(removed_.begin(), removed_.end());
  for (const Page& page : pages_) {
    if (page.named && !stored_.contains(page.name)) names.push_back(page.name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace sluice::engine
