// The pages of KV that one attention group owns: which are free. The cache memory itself belongs to
// the engine; a page index names the same rows in every layer.
//
// Threads: none of its own; the owner of the scheduler calls it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace sluice::engine {

class KvPool {
 public:
  explicit KvPool(int64_t num_pages);

  // Appends `count` pages to *pages, or takes none and returns false when fewer are free.
  bool Allocate(int64_t count, std::vector<int32_t>* pages);
  // Each page must be allocated; a double free is a broken invariant and aborts.
  void Free(absl::Span<const int32_t> pages);

  int64_t num_pages() const { return static_cast<int64_t>(in_use_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }

 private:
  std::vector<int32_t> free_;  // a stack: the page freed last is warm in the caches
  std::vector<bool> in_use_;
};

}  // namespace sluice::engine
