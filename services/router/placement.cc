#include "services/router/placement.h"

#include <algorithm>
#include <vector>

#include "services/router/prefix_index.h"

namespace sluice::router {
namespace {

// Larger than any real cost, each larger than all before it together.
constexpr double kTooSlowCost = 1e4;
constexpr double kTooSmallForAllCost = 1e6;
constexpr double kFullCost = 1e8;
constexpr double kFailedBeforeCost = 1e10;

int64_t PagesOf(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

bool IsPrefill(const Candidate& c) { return c.role == sluice::v1::ROLE_PREFILL; }
bool IsDecode(const Candidate& c) { return c.role == sluice::v1::ROLE_DECODE; }
bool IsMixed(const Candidate& c) { return c.role == sluice::v1::ROLE_MIXED; }

int64_t SequenceMax(const Candidate& c) { return std::min(c.positions, c.kv_pages * kPageTokens); }

double TokensPerSecond(const Candidate& c) {
  return c.tokens_per_second > 0 ? c.tokens_per_second : kTokensPerSecondUnknown;
}

bool PrefillFull(const Candidate& c) {
  if (c.full) return true;
  if (c.waiting_tokens <= c.step_tokens) return false;  // less than one step: never idle it
  return c.waiting_tokens / TokensPerSecond(c) > kPrefillBacklogSeconds;
}

// A decode gives every lease a slot; on a mixed instance a few may wait for one, so that it does
// not stay empty.
bool DecodeFull(const Candidate& c, int64_t pages) {
  const int64_t requests_max = IsMixed(c) ? c.slots + std::max<int64_t>(1, c.slots / 4) : c.slots;
  return c.full || c.requests >= requests_max || pages - c.cached_pages > c.kv_pages_free;
}

double PrefillSeconds(const PlacementNeed& need, const Candidate& c) {
  // The last token is computed even if every page is cached.
  const int64_t tokens = std::max<int64_t>(1, need.tokens - c.cached_pages * kPageTokens);
  return (c.waiting_tokens + tokens) / TokensPerSecond(c);
}

double CrowdedSeconds(const Candidate& c, int64_t pages) {
  const double slots = static_cast<double>(c.requests + 1) / std::max<int64_t>(1, c.slots);
  const double used = static_cast<double>(c.kv_pages - c.kv_pages_free + pages - c.cached_pages);
  return kCrowdedSeconds * (slots + used / std::max<int64_t>(1, c.kv_pages));
}

// Steps of an idle instance say nothing of those to come.
double SlowSeconds(const PlacementNeed& need, const Candidate& c) {
  const bool slow =
      need.step_seconds_max > 0 && c.requests > 0 && c.step_seconds > need.step_seconds_max;
  return slow ? kTooSlowCost : 0;
}

double TransferSeconds(const PlacementNeed& need, const Candidate& c) {
  return std::max<int64_t>(0, need.tokens - c.cached_pages * kPageTokens) /
         kTransferTokensPerSecond;
}

// The cheapest candidate of one side so far.
struct Best {
  int index = -1;
  double cost = 0;
  bool full = false;

  void Offer(int candidate, double seconds, bool candidate_full, const PlacementNeed& need,
             absl::Span<const Candidate> candidates) {
    const Candidate& c = candidates[candidate];
    if (candidate_full) seconds += kFullCost;
    if (c.failed_before) seconds += kFailedBeforeCost;
    if (SequenceMax(c) < need.tokens_max) seconds += kTooSmallForAllCost;
    const bool better = index < 0 || seconds < cost ||
                        (seconds == cost && c.placements < candidates[index].placements);
    if (!better) return;
    index = candidate;
    cost = seconds;
    full = candidate_full;
  }
};

struct Layout {
  absl::string_view hash;
  Best prefill, decode, mixed;
};

Layout& LayoutOf(absl::string_view hash, std::vector<Layout>* layouts) {
  for (Layout& layout : *layouts) {
    if (layout.hash == hash) return layout;
  }
  layouts->push_back({.hash = hash});
  return layouts->back();
}

}  // namespace

Placement Place(const PlacementNeed& need, absl::Span<const Candidate> candidates) {
  const int64_t pages = PagesOf(need.tokens + 1);
  std::vector<Layout> layouts;
  for (int i = 0; i < static_cast<int>(candidates.size()); ++i) {
    const Candidate& c = candidates[i];
    if (SequenceMax(c) < need.tokens + 1) continue;
    Layout& layout = LayoutOf(c.kv_layout, &layouts);
    const double prefill = PrefillSeconds(need, c);
    const double crowded = CrowdedSeconds(c, pages) + SlowSeconds(need, c);
    if (IsPrefill(c)) {
      layout.prefill.Offer(i, prefill, PrefillFull(c), need, candidates);
    } else if (IsDecode(c)) {
      layout.decode.Offer(i, TransferSeconds(need, c) + crowded, DecodeFull(c, pages), need,
                          candidates);
    } else if (IsMixed(c)) {
      layout.mixed.Offer(i, prefill + crowded, PrefillFull(c) || DecodeFull(c, pages), need,
                         candidates);
    }
  }

  Placement best;
  const auto offer = [&best](const Best& prefill, const Best& decode, double cost) {
    if (best.verdict != PlacementVerdict::kNone && cost >= best.cost) return;
    best.verdict =
        prefill.full || decode.full ? PlacementVerdict::kWait : PlacementVerdict::kPlaced;
    best.prefill = prefill.index;
    best.decode = decode.index;
    best.cost = cost;
  };
  for (const Layout& layout : layouts) {
    if (layout.prefill.index >= 0 && layout.decode.index >= 0) {
      offer(layout.prefill, layout.decode, layout.prefill.cost + layout.decode.cost);
    }
    if (layout.mixed.index >= 0) offer(layout.mixed, layout.mixed, layout.mixed.cost);
  }
  return best;
}

SequenceLimit LongestSequence(absl::Span<const Candidate> candidates) {
  const auto limit_of = [](const Candidate& c) {
    return SequenceLimit{
        .tokens = SequenceMax(c),
        .limited_by = c.positions < c.kv_pages * kPageTokens ? "positions" : "kv_pages"};
  };
  SequenceLimit longest;
  for (const Candidate& c : candidates) {
    SequenceLimit limit = limit_of(c);
    if (IsPrefill(c)) {
      SequenceLimit other;  // the best decode for it
      for (const Candidate& d : candidates) {
        if (!IsDecode(d) || d.kv_layout != c.kv_layout) continue;
        if (limit_of(d).tokens > other.tokens) other = limit_of(d);
      }
      if (other.tokens < limit.tokens) limit = other;
    } else if (!IsMixed(c)) {
      continue;
    }
    if (limit.tokens > longest.tokens) longest = limit;
  }
  return longest;
}

}  // namespace sluice::router
