// One device and every op on it: what the engine is written against.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/sampling.h"

namespace sluice {

// Memory on a backend's device, zero-filled; freed with the object, which must not outlive the
// backend.
struct DeviceBuffer {
  std::shared_ptr<void> memory;
  size_t bytes = 0;
  template <typename T>
  T* As() const {
    return static_cast<T*>(memory.get());
  }
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual LinearOps& linear() = 0;
  virtual ElementwiseOps& elementwise() = 0;
  virtual AttentionOps& attention() = 0;
  virtual MoeOps& moe() = 0;
  virtual SamplingOps& sampling() = 0;

  // To be called first by every thread that queues work.
  virtual absl::Status BindThread() { return absl::OkStatus(); }

  // Whether ops may be given views of host memory as well. Where not, weights are copied first.
  virtual bool reads_host_memory() const = 0;

  // ResourceExhausted, naming `what`, when the device has no room.
  virtual absl::StatusOr<DeviceBuffer> Allocate(size_t bytes, const std::string& what) = 0;

  // Copies between host and device memory, in stream order. The host side must stay untouched until
  // a Sync of that stream.
  virtual absl::Status CopyToDevice(void* device, const void* host, size_t bytes,
                                    StreamId stream) = 0;
  virtual absl::Status CopyToHost(void* host, const void* device, size_t bytes,
                                  StreamId stream) = 0;

  // Waits until everything queued on the stream has taken effect. Device faults surface here.
  virtual absl::Status Sync(StreamId stream) = 0;

  // One line for the log: device, instruction set or architecture, threads, numerics.
  virtual std::string Describe() const = 0;
};

}  // namespace sluice
