#include "services/model/unicode_classes.h"

#include <algorithm>
#include <iterator>
#include <vector>

namespace sluice::model {
namespace {

struct Run {
  uint32_t first;
  uint8_t bits;
};

constexpr Run kRuns[] = {
#include "services/model/unicode_classes.inc"
};

constexpr uint32_t kCodePoints = 0x110000;

}  // namespace

const uint8_t* CharClassTable() {
  static const std::vector<uint8_t>* const table = [] {
    auto* bits = new std::vector<uint8_t>(kCodePoints);
    for (size_t i = 0; i < std::size(kRuns); ++i) {
      const uint32_t end = i + 1 < std::size(kRuns) ? kRuns[i + 1].first : kCodePoints;
      std::fill(bits->begin() + kRuns[i].first, bits->begin() + end, kRuns[i].bits);
    }
    return bits;
  }();
  return table->data();
}

}  // namespace sluice::model
