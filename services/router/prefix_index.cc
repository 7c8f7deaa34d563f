#include "services/router/prefix_index.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace sluice::router {
namespace {

constexpr int64_t kRoomMin = 1024;
constexpr int64_t kAhead = 16;  // lookups begun before the first is needed: they miss every cache

}  // namespace

WorkerSet& WorkerSet::operator|=(const WorkerSet& other) {
  for (size_t i = 0; i < words_.size(); ++i) words_[i] |= other.words_[i];
  return *this;
}

WorkerSet& WorkerSet::operator&=(const WorkerSet& other) {
  for (size_t i = 0; i < words_.size(); ++i) words_[i] &= other.words_[i];
  return *this;
}

void WorkerSet::Subtract(const WorkerSet& other) {
  for (size_t i = 0; i < words_.size(); ++i) words_[i] &= ~other.words_[i];
}

PrefixIndex::PrefixIndex(int64_t pages_max) : pages_max_(pages_max) { Reserve(1); }

void PrefixIndex::Reserve(int64_t pages) {
  const int64_t wanted = std::min(std::max(pages, kRoomMin), std::max(pages_max_, kRoomMin));
  if (wanted <= room_) return;
  int bits = 1;
  while ((int64_t{1} << bits) < 2 * wanted) ++bits;
  std::vector<uint64_t> keys(size_t{1} << bits);
  std::vector<WorkerSet> sets(size_t{1} << bits);
  keys.swap(keys_);
  sets.swap(sets_);
  shift_ = 64 - bits;
  mask_ = keys_.size() - 1;
  room_ = std::min(static_cast<int64_t>(keys_.size() / 2), std::max(pages_max_, kRoomMin));
  for (size_t i = 0; i < keys.size(); ++i) {
    if (keys[i] == 0) continue;
    const size_t entry = Find(keys[i]);
    keys_[entry] = keys[i];
    sets_[entry] = sets[i];
  }
  // A pass begun in the old table says nothing about this one.
  cursor_ = 0;
}

std::optional<int> PrefixIndex::AddWorker() {
  const auto free_slot = [this]() -> std::optional<int> {
    for (int slot = 0; slot < kIndexedWorkersMax; ++slot) {
      if (!active_.Has(slot) && !sweeping_.Has(slot) && !gone_.Has(slot)) return slot;
    }
    return std::nullopt;
  };
  std::optional<int> slot = free_slot();
  if (!slot) {
    SweepAll();
    slot = free_slot();
  }
  if (slot) active_.Add(*slot);
  return slot;
}

void PrefixIndex::RemoveWorker(int slot) {
  WorkerSet one;
  one.Add(slot);
  active_.Subtract(one);
  // At the start of a pass it can still take part in it.
  (cursor_ == 0 ? sweeping_ : gone_) |= one;
}

void PrefixIndex::Store(int slot, absl::string_view hashes) {
  for (size_t at = 0; at + kPageHashBytes <= hashes.size(); at += kPageHashBytes) {
    const uint64_t key = KeyOf(hashes.data() + at);
    size_t entry = Find(key);
    if (keys_[entry] == 0) {
      if (size_ >= room_) SweepAll();
      if (size_ >= room_) {
        ++pages_dropped_;
        continue;
      }
      entry = Find(key);
      keys_[entry] = key;
      sets_[entry] = WorkerSet();
      ++size_;
    }
    sets_[entry].Add(slot);
  }
}

void PrefixIndex::Remove(int slot, absl::string_view hashes) {
  WorkerSet one;
  one.Add(slot);
  for (size_t at = 0; at + kPageHashBytes <= hashes.size(); at += kPageHashBytes) {
    const size_t entry = Find(KeyOf(hashes.data() + at));
    if (keys_[entry] == 0) continue;
    sets_[entry].Subtract(one);
    if (sets_[entry].empty()) Erase(entry);
  }
}

void PrefixIndex::Match(absl::string_view hashes, absl::Span<uint32_t> pages) const {
  std::fill(pages.begin(), pages.end(), 0);
  const auto key = [&](int64_t i) { return KeyOf(hashes.data() + i * kPageHashBytes); };
  const auto prefetch = [&](int64_t i) {
    const size_t home = Home(key(i));
    __builtin_prefetch(&keys_[home]);
    __builtin_prefetch(&sets_[home]);
  };
  const int64_t count = static_cast<int64_t>(hashes.size()) / kPageHashBytes;
  for (int64_t i = 0; i < std::min(kAhead, count); ++i) prefetch(i);

  WorkerSet have = active_;  // those that have every page so far
  for (int64_t i = 0; i < count && !have.empty(); ++i) {
    if (i + kAhead < count) prefetch(i + kAhead);
    const size_t entry = Find(key(i));
    WorkerSet lost = have;
    if (keys_[entry] != 0) lost.Subtract(sets_[entry]);
    if (lost.empty()) continue;
    lost.ForEach([&](int slot) { pages[slot] = static_cast<uint32_t>(i); });
    have.Subtract(lost);
  }
  have.ForEach([&](int slot) { pages[slot] = static_cast<uint32_t>(count); });
}

void PrefixIndex::Sweep(int64_t entries) {
  if (sweeping_.empty() && gone_.empty()) return;
  WorkerSet clear = sweeping_;
  clear |= gone_;
  const size_t end = std::min(keys_.size(), cursor_ + static_cast<size_t>(entries));
  while (cursor_ < end) {
    if (keys_[cursor_] != 0) {
      sets_[cursor_].Subtract(clear);
      if (sets_[cursor_].empty()) {
        Erase(cursor_);  // may pull a later entry here: look again
        if (keys_[cursor_] != 0) continue;
      }
    }
    ++cursor_;
  }
  if (cursor_ == keys_.size()) EndPass();
}

void PrefixIndex::EndPass() {
  sweeping_ = gone_;  // free: those of the pass that ended
  gone_ = WorkerSet();
  cursor_ = 0;
}

void PrefixIndex::SweepAll() {
  while (!sweeping_.empty() || !gone_.empty()) Sweep(std::numeric_limits<int32_t>::max());
}

uint64_t PrefixIndex::KeyOf(const char* hash) {
  uint64_t key;
  std::memcpy(&key, hash, sizeof(key));
  return key != 0 ? key : 1;
}

size_t PrefixIndex::Find(uint64_t key) const {
  size_t entry = Home(key);
  while (keys_[entry] != 0 && keys_[entry] != key) entry = (entry + 1) & mask_;
  return entry;
}

void PrefixIndex::Erase(size_t entry) {
  // What the sweep has passed must stay clear of workers that are gone, also where an entry moves
  // back over its cursor.
  WorkerSet clear = sweeping_;
  clear |= gone_;
  size_t hole = entry;
  for (size_t next = (hole + 1) & mask_; keys_[next] != 0; next = (next + 1) & mask_) {
    // The entry may move to the hole unless that lies before its home.
    if (((next - Home(keys_[next])) & mask_) < ((next - hole) & mask_)) continue;
    keys_[hole] = keys_[next];
    sets_[hole] = sets_[next];
    sets_[hole].Subtract(clear);
    hole = next;
  }
  keys_[hole] = 0;
  --size_;
}

int64_t PrefixIndex::capacity_bytes() const {
  return static_cast<int64_t>(keys_.size() * (sizeof(uint64_t) + sizeof(WorkerSet)));
}

}  // namespace sluice::router
