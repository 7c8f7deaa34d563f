// Hears how far a step has come, so that KV can leave for elsewhere while later layers compute.
#pragma once

#include <cstdint>

namespace sluice::engine {

class LayerListener {
 public:
  virtual ~LayerListener() = default;
  // The KV rows of all tokens of step `step` lie in the memory of layer `layer`, for anybody to
  // read. Layers come in order, 0 first. Called on the engine's thread, and the step waits for it:
  // it must be short, and must not call the engine.
  virtual void OnKvWritten(uint64_t step, int64_t layer) = 0;
};

}  // namespace sluice::engine
