#include "services/model/bpe.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace sluice::model {
namespace {

// Up to this length a scan for the lowest rank is quickest.
constexpr size_t kShortBytesMax = 128;

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// 0xC0, 0xC1 and 0xF5 to 0xFF are in no valid UTF-8; DeepSeek-V2's vocabulary has no tokens for
// them.
bool IsInUtf8(int byte) { return byte != 0xC0 && byte != 0xC1 && byte < 0xF5; }

size_t PairHash(uint64_t pair, int shift) { return (pair * 0x9E3779B97F4A7C15u) >> shift; }

// Positions waiting to be merged, by rank. Nearly all of a rank's positions are there before the
// first of them is taken, so sorting them then is cheaper than keeping all of them in one heap.
class RankQueue {
 public:
  void Push(uint32_t rank, uint32_t position) {
    const auto [head, is_new] = head_of_rank_.try_emplace(rank, kNone);
    if (is_new) ranks_.push(rank);
    entries_.push_back({position, head->second});
    head->second = static_cast<uint32_t>(entries_.size() - 1);
  }

  // Takes all positions of the lowest rank, in order. False: there are none.
  bool Pop(uint32_t* rank, std::vector<uint32_t>* positions) {
    positions->clear();
    if (ranks_.empty()) return false;
    *rank = ranks_.top();
    ranks_.pop();
    const auto head = head_of_rank_.find(*rank);
    for (uint32_t i = head->second; i != kNone; i = entries_[i].next) {
      positions->push_back(entries_[i].position);
    }
    head_of_rank_.erase(head);
    std::reverse(positions->begin(), positions->end());  // most often in order then
    if (!std::is_sorted(positions->begin(), positions->end())) {
      std::sort(positions->begin(), positions->end());
    }
    return true;
  }

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  struct Entry {
    uint32_t position;
    uint32_t next;  // of the same rank
  };
  std::vector<Entry> entries_;
  absl::flat_hash_map<uint32_t, uint32_t> head_of_rank_;  // indices of entries_
  std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> ranks_;
};

}  // namespace

absl::StatusOr<Bpe> Bpe::Create(Params params) {
  Bpe bpe;
  bpe.token_bytes_ = std::move(params.token_bytes);
  bpe.ignore_merges_ = params.ignore_merges;
  bpe.id_of_bytes_.reserve(bpe.token_bytes_.size());
  for (size_t id = 0; id < bpe.token_bytes_.size(); ++id) {
    const std::string& bytes = bpe.token_bytes_[id];
    if (bytes.empty()) continue;
    const auto [other, is_new] = bpe.id_of_bytes_.emplace(bytes, static_cast<int32_t>(id));
    if (!is_new) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.vocab: ids ", other->second, " and ", id, " are the same token"));
    }
    bpe.token_bytes_max_ = std::max(bpe.token_bytes_max_, bytes.size());
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const auto found = bpe.id_of_bytes_.find(absl::string_view(&c, 1));
    if (found == bpe.id_of_bytes_.end() && IsInUtf8(byte)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("model.vocab: no token for the byte 0x%02X", byte));
    }
    bpe.id_of_byte_[byte] = found == bpe.id_of_bytes_.end() ? -1 : found->second;
  }
  bpe.BuildPairs(params.merges);
  bpe.self_merge_ = std::make_unique<std::atomic<uint8_t>[]>(bpe.token_bytes_.size());
  return bpe;
}

void Bpe::BuildPairs(const std::vector<Merge>& merges) {
  int bits = 4;
  while ((size_t{1} << bits) < 2 * merges.size()) ++bits;
  pair_shift_ = 64 - bits;
  pairs_.assign(size_t{1} << bits, PairSlot{kNoPair, kNoRank, -1});
  merged_of_rank_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    const uint64_t pair = PairKey(merge.left, merge.right);
    size_t i = PairHash(pair, pair_shift_);
    while (pairs_[i].pair != kNoPair && pairs_[i].pair != pair) i = (i + 1) & (pairs_.size() - 1);
    pairs_[i] = {pair, static_cast<uint32_t>(rank),
                 merge.merged};  // of equal pairs the last counts
    merged_of_rank_.push_back(merge.merged);
  }
}

const Bpe::PairSlot* Bpe::FindPair(int32_t left, int32_t right) const {
  const uint64_t pair = PairKey(left, right);
  for (size_t i = PairHash(pair, pair_shift_);; i = (i + 1) & (pairs_.size() - 1)) {
    if (pairs_[i].pair == pair || pairs_[i].pair == kNoPair) return &pairs_[i];
  }
}

uint32_t Bpe::RankOf(int32_t left, int32_t right) const { return FindPair(left, right)->rank; }

void Bpe::Encode(absl::string_view word, std::vector<int32_t>* ids) const {
  if (word.size() == 1) {
    ids->push_back(id_of_byte_[static_cast<uint8_t>(word[0])]);
    return;
  }
  if (word.size() > token_bytes_max_) return MergeWord(word, ids);
  const auto token = id_of_bytes_.find(word);
  if (token == id_of_bytes_.end()) return MergeWord(word, ids);
  const int32_t id = token->second;
  std::atomic<uint8_t>& self_merge = self_merge_[id];
  if (ignore_merges_ || self_merge.load(std::memory_order_relaxed) == kYes) {
    ids->push_back(id);
    return;
  }
  const size_t before = ids->size();
  MergeWord(word, ids);
  const bool is_self = ids->size() == before + 1 && ids->back() == id;
  self_merge.store(is_self ? kYes : kNo, std::memory_order_relaxed);
}

void Bpe::MergeWord(absl::string_view word, std::vector<int32_t>* ids) const {
  if (word.size() <= kShortBytesMax) {
    MergeShort(word, ids);
  } else {
    MergeLong(word, ids);
  }
}

void Bpe::MergeShort(absl::string_view word, std::vector<int32_t>* ids) const {
  int32_t symbols[kShortBytesMax];
  uint32_t ranks[kShortBytesMax];  // of the pair (i, i + 1)
  size_t count = word.size();
  for (size_t i = 0; i < count; ++i) symbols[i] = id_of_byte_[static_cast<uint8_t>(word[i])];
  for (size_t i = 0; i + 1 < count; ++i) ranks[i] = RankOf(symbols[i], symbols[i + 1]);
  while (count > 1) {
    const size_t at = std::min_element(ranks, ranks + count - 1) - ranks;  // the leftmost of equals
    if (ranks[at] == kNoRank) break;
    symbols[at] = merged_of_rank_[ranks[at]];
    std::copy(symbols + at + 2, symbols + count, symbols + at + 1);
    --count;
    if (at + 1 < count) {
      std::copy(ranks + at + 2, ranks + count, ranks + at + 1);
      ranks[at] = RankOf(symbols[at], symbols[at + 1]);
    }
    if (at > 0) ranks[at - 1] = RankOf(symbols[at - 1], symbols[at]);
  }
  ids->insert(ids->end(), symbols, symbols + count);
}

void Bpe::MergeLong(absl::string_view word, std::vector<int32_t>* ids) const {
  struct Symbol {
    int32_t id;  // -1: swallowed by the one before
    uint32_t prev;
    uint32_t next;  // word.size(): none
  };
  const uint32_t end = static_cast<uint32_t>(word.size());
  std::vector<Symbol> symbols(end);
  for (uint32_t i = 0; i < end; ++i) {
    symbols[i] = {id_of_byte_[static_cast<uint8_t>(word[i])], i - 1, i + 1};
  }
  RankQueue queue;
  const auto rank_at = [&](uint32_t at) {
    const Symbol& left = symbols[at];
    return left.id < 0 || left.next == end ? kNoRank : RankOf(left.id, symbols[left.next].id);
  };
  const auto push = [&](uint32_t at) {
    const uint32_t rank = rank_at(at);
    if (rank != kNoRank) queue.Push(rank, at);
    return rank;
  };
  for (uint32_t i = 0; i < end; ++i) push(i);

  uint32_t rank = 0;
  std::vector<uint32_t> batch;
  while (queue.Pop(&rank, &batch)) {
    for (size_t i = 0; i < batch.size(); ++i) {
      const uint32_t at = batch[i];
      if (rank_at(at) != rank) continue;  // an earlier merge changed this pair
      Symbol& left = symbols[at];
      Symbol& right = symbols[left.next];
      left.id = merged_of_rank_[rank];
      left.next = right.next;
      right.id = -1;
      if (left.next != end) symbols[left.next].prev = at;
      uint32_t lowest = push(at);
      if (at != 0) lowest = std::min(lowest, push(left.prev));
      if (lowest < rank) {  // not in a vocabulary that was trained: the new pair's turn is now
        for (++i; i < batch.size(); ++i) queue.Push(rank, batch[i]);
      }
    }
  }
  for (uint32_t i = 0; i < end; i = symbols[i].next) ids->push_back(symbols[i].id);
}

}  // namespace sluice::model
