// One device and every op on it: what the engine is written against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/device_buffer.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/kernel_calls.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/page_mover.h"
#include "kernels/ops/sampling.h"

namespace sluice {

// A device's memory, in bytes. `taken` is by the process, under the names that Allocate was given;
// what is neither free nor in there, kernels have for themselves, or other processes.
struct DeviceMemory {
  std::map<std::string, uint64_t> taken;
  uint64_t free = 0;
  uint64_t total = 0;
};

// A place in a stream's work that can be waited for. Goes before its backend.
class StreamEvent {
 public:
  virtual ~StreamEvent() = default;
};

// Work that was recorded once, to be queued again as a whole. Goes before its backend.
class Recording {
 public:
  virtual ~Recording() = default;
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

  // Host memory that CopyToDevice and CopyToHost read and write without a copy in between, and so
  // without holding up the caller. Zero-filled; not tied to a device.
  virtual absl::StatusOr<DeviceBuffer> AllocateHost(size_t bytes, const std::string& what) {
    return Allocate(bytes, what);
  }

  // Device memory that other processes of this host may map where the device can: then the buffer
  // has a handle.
  virtual absl::StatusOr<DeviceBuffer> AllocateShareable(size_t bytes, const std::string& what) {
    return Allocate(bytes, what);
  }

  // Copies between host and device memory, in stream order. The host side must stay untouched until
  // a Sync of that stream.
  virtual absl::Status CopyToDevice(void* device, const void* host, size_t bytes,
                                    StreamId stream) = 0;
  virtual absl::Status CopyToHost(void* host, const void* device, size_t bytes,
                                  StreamId stream) = 0;

  // Waits until everything queued on the stream has taken effect. Device faults surface here.
  virtual absl::Status Sync(StreamId stream) = 0;

  // For whoever gives up on what was queued: device code that waits for other device code ends
  // soon, and with it everything that this process has on the device.
  virtual void StopWaiting() {}

  // An event marks what was queued on the stream before it, each time anew. Waiting returns when
  // all of that has taken effect, at once for an event that marks nothing; device faults surface
  // there. These defaults are for backends that compute before they return.
  virtual absl::StatusOr<std::unique_ptr<StreamEvent>> MakeEvent() {
    return std::make_unique<StreamEvent>();
  }
  virtual absl::Status Mark(StreamEvent*, StreamId) { return absl::OkStatus(); }
  virtual absl::Status Wait(const StreamEvent&) { return absl::OkStatus(); }

  // For device memory that the processor does not reach; null where it does. Goes before its
  // backend.
  virtual absl::StatusOr<std::unique_ptr<PageMover>> MakePageMover() { return nullptr; }
  // What a PageMover waits for: everything queued on the stream before. Not while recording.
  virtual absl::StatusOr<StreamPoint> Point(StreamId) { return StreamPoint{}; }

  // Whether work can be recorded, which backends that compute before they return have no use for.
  virtual bool records() const { return false; }
  // Records what `queue` queues on the stream, without running it. All memory that the work names
  // must stay while the recording does. While recording, ops can neither allocate nor wait: the
  // same, or something larger, must have run before.
  virtual absl::StatusOr<std::unique_ptr<Recording>> Record(
      absl::FunctionRef<absl::Status()> /*queue*/, StreamId) {
    return absl::UnimplementedError("this backend records nothing");
  }
  virtual absl::Status Replay(const Recording&, StreamId) {
    return absl::UnimplementedError("this backend records nothing");
  }

  // Which kernels have served the ops so far. Null from backends that do not count.
  virtual const KernelCalls* kernel_calls() const { return nullptr; }

  // Where its memory has gone. All zero from backends that have none of their own.
  virtual DeviceMemory memory() const { return {}; }

  // One line for the log: device, instruction set or architecture, threads, numerics.
  virtual std::string Describe() const = 0;
};

}  // namespace sluice
