// Which workers have which prefix pages in their KV cache, as far as they have told.
//
// A table from page hash to a set of workers, as a bitmap. Hashes are keyed by their first 8 bytes:
// a collision (one in 2^24 lookups at a million pages) costs a page's computation where a cached
// one was hoped for, never correctness. Nothing here is a promise of a worker.
//
// Memory: 80 bytes for each page of room, 84 MB at a million. When full, pages that it does not
// know are not taken in, so requests find them on no worker; those it knows stay right.
//
// A worker's slot is left in O(1): its bit is masked from then on, and Sweep, called now and then,
// clears it a slice at a time before the slot is used again.
//
// Threads: one.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace sluice::router {

inline constexpr int kIndexedWorkersMax = 256;
inline constexpr int64_t kPageHashBytes = 16;
inline constexpr int64_t kPageTokens = 64;

class WorkerSet {
 public:
  void Add(int slot) { words_[slot / 64] |= uint64_t{1} << (slot % 64); }
  bool Has(int slot) const { return (words_[slot / 64] >> (slot % 64)) & 1; }
  bool empty() const { return (words_[0] | words_[1] | words_[2] | words_[3]) == 0; }
  WorkerSet& operator|=(const WorkerSet& other);
  WorkerSet& operator&=(const WorkerSet& other);
  void Subtract(const WorkerSet& other);
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (int word = 0; word < 4; ++word) {
      for (uint64_t bits = words_[word]; bits != 0; bits &= bits - 1) {
        visit(word * 64 + __builtin_ctzll(bits));
      }
    }
  }

 private:
  std::array<uint64_t, kIndexedWorkersMax / 64> words_ = {};
};

class PrefixIndex {
 public:
  // pages_max: most pages that will ever be known, > 0.
  explicit PrefixIndex(int64_t pages_max);

  // Makes room for so many pages, at most pages_max. Moves every entry when it grows (30 ms at a
  // million), so it is told what workers can hold when they come rather than page by page.
  void Reserve(int64_t pages);

  // A slot that knows nothing yet, or nothing when 256 workers are here.
  std::optional<int> AddWorker();
  void RemoveWorker(int slot);

  // Hashes stand one after the other, 16 bytes each.
  void Store(int slot, absl::string_view hashes);
  void Remove(int slot, absl::string_view hashes);

  // (*pages)[slot]: how many of the first pages of the chain that worker has. Of
  // kIndexedWorkersMax.
  void Match(absl::string_view hashes, absl::Span<uint32_t> pages) const;

  // Looks at the next `entries` entries for bits of workers that are gone. Free when there are
  // none.
  void Sweep(int64_t entries);

  int64_t size() const { return size_; }
  int64_t room() const { return room_; }
  int64_t pages_dropped() const { return pages_dropped_; }
  int64_t capacity_bytes() const;

 private:
  static uint64_t KeyOf(const char* hash);
  size_t Home(uint64_t key) const { return (key * 0x9E3779B97F4A7C15) >> shift_; }
  size_t Find(uint64_t key) const;  // its entry, or the empty one where it would stand
  void Erase(size_t entry);
  void SweepAll();
  void EndPass();

  const int64_t pages_max_;
  int64_t room_ = 0;  // entries that may be used: half of the table
  int64_t size_ = 0;
  int64_t pages_dropped_ = 0;
  int shift_ = 64;
  size_t mask_ = 0;
  std::vector<uint64_t> keys_;  // 0: empty; linear probing, no tombstones
  std::vector<WorkerSet> sets_;

  WorkerSet active_;
  // Slots given up: those that this pass of the sweep clears, and those that came since it began.
  WorkerSet sweeping_;
  WorkerSet gone_;
  size_t cursor_ = 0;
};

}  // namespace sluice::router
