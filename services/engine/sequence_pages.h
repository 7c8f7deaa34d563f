// The pages of one sequence: found in the prefix cache or allocated, named for the cache as they
// fill, given back as a whole.
//
// Holds no reference to the pool: every call gets the one it is about. Threads: as KvPool.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "services/engine/kv_pool.h"
#include "services/model/page_hash.h"

namespace sluice::engine {

class SequencePages {
 public:
  // `names`: of the first full pages, as many as are known; `seed`: where their chain starts.
  // Without either, the cache is neither asked nor fed.
  SequencePages(std::vector<model::PageHash> names, std::optional<model::PageHash> seed)
      : names_(std::move(names)), seed_(seed) {}

  // REQUIRES: no pages. Takes pages for `positions` positions of the sequence that starts with
  // `tokens`: from the cache at most the first `cached_max` (all full), else new ones. False, and
  // none taken, when too few are free.
  bool Acquire(KvPool* pool, model::PageHasher* hasher, absl::Span<const int32_t> tokens,
               int64_t cached_max, int64_t positions);
  // Takes new pages until `positions` are covered. False, and none taken, when too few are free.
  bool Grow(KvPool* pool, int64_t positions);
  // The KV of the first `positions` tokens lies in the pages: offers the full ones to the cache.
  void Offer(KvPool* pool, model::PageHasher* hasher, absl::Span<const int32_t> tokens,
             int64_t positions);
  // Its KV is worth nothing: nobody is to find it.
  void Disown(KvPool* pool);
  // Hands over the references.
  std::vector<int32_t> Take();

  const std::vector<int32_t>& pages() const { return pages_; }
  // Pages that came from the cache when it was last asked.
  int64_t num_cached() const { return num_cached_; }

 private:
  // As far as names_ can be had for the first `count` pages of `tokens`.
  absl::Span<const model::PageHash> Names(model::PageHasher* hasher,
                                          absl::Span<const int32_t> tokens, int64_t count);

  std::vector<model::PageHash> names_;
  const std::optional<model::PageHash> seed_;
  std::vector<int32_t> pages_;
  int64_t num_cached_ = 0;
  int64_t num_offered_ = 0;  // the cache has these
};

}  // namespace sluice::engine
