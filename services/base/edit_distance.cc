#include "services/base/edit_distance.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace sluice {

size_t EditDistance(absl::string_view a, absl::string_view b) {
  // Rows of the table for the prefixes of `a`: two letters ago, one ago, now.
  std::vector<size_t> before_last(b.size() + 1), last(b.size() + 1), now(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    now[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t changed = a[i - 1] == b[j - 1] ? 0 : 1;
      now[j] = std::min({last[j] + 1, now[j - 1] + 1, last[j - 1] + changed});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        now[j] = std::min(now[j], before_last[j - 2] + 1);
      }
    }
    std::swap(before_last, last);
    std::swap(last, now);
  }
  return last[b.size()];
}

std::string NearestWord(absl::string_view word, const std::vector<std::string>& known) {
  std::string best;
  if (word.size() > 100) return best;  // no name is that long, and the table would be
  size_t best_distance = SIZE_MAX;
  for (const std::string& candidate : known) {
    const size_t distance = EditDistance(word, candidate);
    if (distance <= std::max<size_t>(2, candidate.size() / 3) && distance < best_distance &&
        distance < candidate.size()) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace sluice
