// The pages of KV that one attention group owns: who uses each, and what those hold that nobody
// uses. The cache memory itself belongs to the engine; a page index names the same rows in every
// layer.
//
// A page is in one state:
//   free         holds nothing of use
//   held         by one or more sequences, each of which has a reference
//   cached       named, full of KV, held by nobody: found again by its name until somebody needs
//                the room; the one given back longest ago goes first
//   quarantined  somebody outside may still write to it
// A held page may have a name too; then it is shared, and must not be written to any more.
//
// Every operation is O(1) for each page or name that it handles, and memory is bounded by the
// number of pages. Threads: none of its own; the owner of the scheduler calls it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"
#include "services/model/page_hash.h"

namespace sluice::engine {

class KvPool {
 public:
  explicit KvPool(int64_t num_pages);

  // Appends `count` pages, each with one reference, to *pages; or takes none and returns false when
  // fewer are free or cached.
  bool Allocate(int64_t count, std::vector<int32_t>* pages);
  // Appends the pages with these names to *pages, a reference more for each, up to the first name
  // that is not known; gives their number.
  int64_t Match(absl::Span<const model::PageHash> names, std::vector<int32_t>* pages);
  // Drops one reference of each page; a reference too many is a broken invariant and aborts. Pages
  // of one sequence go in its order: its end is then forgotten before its beginning.
  void Release(absl::Span<const int32_t> pages);

  // A held page is full of KV: gives it a name. Nothing happens when it has one, or when another
  // page has this one.
  void SetName(int32_t page, const model::PageHash& name);
  // The page's KV is worth nothing: takes the name, if any, away.
  void ForgetName(int32_t page);

  // Held pages without names, with one reference: that reference turns into quarantine.
  void Quarantine(absl::Span<const int32_t> pages);
  void EndQuarantine(absl::Span<const int32_t> pages);

  // The names that came and went since the last call, both sorted; what came and went is in
  // neither.
  void TakeEvents(std::vector<model::PageHash>* stored, std::vector<model::PageHash>* removed);
  // All names as of the last TakeEvents: those events come on top of it.
  std::vector<model::PageHash> Snapshot() const;

  int64_t num_pages() const { return static_cast<int64_t>(pages_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()) + num_cached_; }
  int64_t num_cached() const { return num_cached_; }  // part of num_free
  int64_t num_quarantined() const { return num_quarantined_; }

 private:
  struct Page {
    int32_t references = 0;
    int32_t previous = -1, next = -1;  // among the cached ones
    bool named = false;
    bool quarantined = false;
    model::PageHash name;
  };

  Page& CheckedPage(int32_t page, const char* what);
  void AddToCached(int32_t page);
  void TakeFromCached(int32_t page);

  std::vector<Page> pages_;
  std::vector<int32_t> free_;  // a stack: the page freed last is warm in the caches
  absl::flat_hash_map<model::PageHash, int32_t> page_of_name_;
  // The cached pages as a list, in order of being given back.
  int32_t oldest_ = -1, newest_ = -1;
  int64_t num_cached_ = 0;
  int64_t num_quarantined_ = 0;
  absl::flat_hash_set<model::PageHash> stored_, removed_;  // since TakeEvents
};

}  // namespace sluice::engine
