// Ops are queued on streams: calls on one stream take effect in order. The CPU backend computes
// before it returns, so there every stream is the same.
#pragma once

#include <cstdint>

namespace sluice {

struct StreamId {
  int value = 0;
};

// A point in what was queued on a stream. Later ones have larger numbers; 0 has been reached.
struct StreamPoint {
  uint64_t number = 0;
};

}  // namespace sluice
