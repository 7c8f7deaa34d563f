// Byte-pair encoding of one word, by the rank of its merges.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice::model {

// Tokens are given by their bytes (byte_level.h). Words are any bytes; every single byte is a
// token.
//
// Threads: immutable but for a cache of relaxed atomics; share freely.
class Bpe {
 public:
  struct Merge {
    int32_t left;
    int32_t right;
    int32_t merged;
  };
  struct Params {
    std::vector<std::string> token_bytes;  // [ids]; empty where no word can contain the token
    std::vector<Merge> merges;             // in order of rank, first is merged first
    bool ignore_merges = false;  // a word that is a token is that token, whatever merges say
  };

  // Errors: InvalidArgument if a byte that UTF-8 can have has no token, or two tokens have the same
  // bytes. REQUIRES: the ids in `merges` are indices of token_bytes.
  static absl::StatusOr<Bpe> Create(Params params);

  // Appends the ids of `word`, which is valid UTF-8 and not empty. Time O(n log n) for n bytes, and
  // close to linear in practice.
  void Encode(absl::string_view word, std::vector<int32_t>* ids) const;

 private:
  // What is known of "merging the bytes of this token gives this token": it nearly always does, and
  // then a word that is a token needs no merging.
  enum SelfMerge : uint8_t { kUnknown, kYes, kNo };

  // Open addressing; the pair is left << 32 | right.
  struct PairSlot {
    uint64_t pair;
    uint32_t rank;
    int32_t merged;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static constexpr uint32_t kNoRank = ~uint32_t{0};

  Bpe() = default;
  void BuildPairs(const std::vector<Merge>& merges);
  const PairSlot* FindPair(int32_t left, int32_t right) const;
  uint32_t RankOf(int32_t left, int32_t right) const;
  void MergeWord(absl::string_view word, std::vector<int32_t>* ids) const;
  void MergeShort(absl::string_view word, std::vector<int32_t>* ids) const;
  void MergeLong(absl::string_view word, std::vector<int32_t>* ids) const;

  std::vector<std::string> token_bytes_;
  absl::flat_hash_map<absl::string_view, int32_t> id_of_bytes_;  // keys point into token_bytes_
  size_t token_bytes_max_ = 0;                                   // the longest token
  int32_t id_of_byte_[256];  // -1: none (some vocabularies leave out 0xC0, 0xC1, 0xF5 to 0xFF)
  std::vector<PairSlot> pairs_;
  int pair_shift_ = 0;
  std::vector<int32_t> merged_of_rank_;
  bool ignore_merges_ = false;
  std::unique_ptr<std::atomic<uint8_t>[]> self_merge_;  // [ids], SelfMerge
};

}  // namespace sluice::model
