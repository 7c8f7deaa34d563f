// How far apart two words are: for "did you mean".
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace sluice {

// Letters to insert, take away, change, or swap with their neighbour to make one of the other.
// Takes |a| x |b| steps.
size_t EditDistance(absl::string_view a, absl::string_view b);

// The word of `known` nearest to `word` (the first of several); empty when none is near: more than
// a third of its letters, and more than two, would have to change.
std::string NearestWord(absl::string_view word, const std::vector<std::string>& known);

}  // namespace sluice
