// Ops are queued on streams: calls on one stream take effect in order. The CPU backend computes
// before it returns, so there every stream is the same.
#pragma once

namespace sluice {

struct StreamId {
  int value = 0;
};

}  // namespace sluice
