// Hears how far a step has come, so that KV can leave for elsewhere while later layers compute.
#pragma once

#include <cstdint>
#include <mutex>

#include "kernels/ops/stream.h"

namespace sluice::engine {

class LayerListener {
 public:
  virtual ~LayerListener() = default;
  // Once the backend's stream has come to `point`, the KV rows of all tokens of step `step` lie in
  // the memory of layer `layer`, for anybody to read. Layers come in order, 0 first, and so do
  // points. Called on the engine's thread, and the step waits for it: it must be short, and must
  // not call the engine.
  virtual void OnKvWritten(uint64_t step, int64_t layer, StreamPoint point) = 0;
};

// Passes calls on to a listener that may go while a step runs: once Set has returned, the one
// before is not called any more. Threads: any.
class LayerListenerGate final : public LayerListener {
 public:
  void Set(LayerListener* listener) {
    const std::lock_guard lock(mutex_);
    listener_ = listener;
  }
  bool has_listener() const {
    const std::lock_guard lock(mutex_);
    return listener_ != nullptr;
  }
  void OnKvWritten(uint64_t step, int64_t layer, StreamPoint point) override {
    const std::lock_guard lock(mutex_);
    if (listener_ != nullptr) listener_->OnKvWritten(step, layer, point);
  }

 private:
  mutable std::mutex mutex_;
  LayerListener* listener_ = nullptr;
};

}  // namespace sluice::engine
