#include "services/engine/sequence_pages.h"

#include <algorithm>
#include <utility>

#include "kernels/ops/attention.h"

namespace sluice::engine {

static_assert(kPageTokens == model::kHashPageTokens, "a name is that of a page of KV");

absl::Span<const model::PageHash> SequencePages::Names(model::PageHasher* hasher,
                                                       absl::Span<const int32_t> tokens,
                                                       int64_t count) {
  if (names_.empty() && !seed_.has_value()) return {};
  hasher->Extend(seed_.value_or(model::PageHash{}), tokens.first(count * kPageTokens), &names_);
  return absl::MakeConstSpan(names_).first(count);
}

bool SequencePages::Acquire(KvPool* pool, model::PageHasher* hasher,
                            absl::Span<const int32_t> tokens, int64_t cached_max,
                            int64_t positions) {
  num_cached_ = num_offered_ = pool->Match(Names(hasher, tokens, cached_max), &pages_);
  if (Grow(pool, positions)) return true;
  pool->Release(Take());
  return false;
}

bool SequencePages::Grow(KvPool* pool, int64_t positions) {
  const int64_t missing = PagesFor(positions) - static_cast<int64_t>(pages_.size());
  return missing <= 0 || pool->Allocate(missing, &pages_);
}

void SequencePages::Offer(KvPool* pool, model::PageHasher* hasher, absl::Span<const int32_t> tokens,
                          int64_t positions) {
  const int64_t full = positions / kPageTokens;
  if (full <= num_offered_) return;
  const absl::Span<const model::PageHash> names = Names(hasher, tokens, full);
  for (; num_offered_ < static_cast<int64_t>(names.size()); ++num_offered_) {
    pool->SetName(pages_[num_offered_], names[num_offered_]);
  }
}

void SequencePages::Disown(KvPool* pool) {
  for (const int32_t page : pages_) pool->ForgetName(page);
}

std::vector<int32_t> SequencePages::Take() {
  num_offered_ = 0;
  return std::exchange(pages_, {});
}

}  // namespace sluice::engine
