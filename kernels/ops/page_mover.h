// Moves pages of KV that the processor does not reach itself, on a stream of its own beside the
// steps, and maps such memory of other processes: what services/transport needs of a backend whose
// memory is not the host's.
//
// Threads: one at a time, except that `wake` is called from any.
// Errors: Internal, with the device's reason, from a device that is of no more use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/base/page_sum.h"
#include "kernels/ops/device_buffer.h"
#include "kernels/ops/stream.h"

namespace sluice {

// One page, or a part of one.
struct PageCopy {
  const void* from = nullptr;
  void* to = nullptr;  // null: it is only summed
  size_t bytes = 0;
  PageKey key;
  bool sum = true;  // false: sums() is of no use
};

// Copies that were queued together.
class PageBatch {
 public:
  // Waits until nothing touches the memory any more.
  virtual ~PageBatch() = default;
  // Whether all copies are there and summed; does not wait.
  virtual absl::StatusOr<bool> Done() = 0;
  // Of copy i, of the bytes that were written to `to` (each is read once). REQUIRES Done.
  virtual PageSums sums(size_t i) const = 0;
};

class PageMover {
 public:
  static constexpr size_t kCopiesMax = 512;  // of one batch

  // REQUIRES that no batch and no memory of it is left.
  virtual ~PageMover() = default;

  // From now on `wake` is called when a batch is done. It must be short. Not called for batches
  // that fail: look at them every now and then.
  virtual void SetWake(std::function<void()> wake) = 0;

  // Memory of the host that copies may name, and that the processor reaches.
  virtual absl::StatusOr<DeviceBuffer> AllocateStaging(size_t bytes) = 0;

  // Another process's memory, for copies to read. The descriptors are not kept, and not believed.
  // FailedPrecondition: this device does not reach it, or it is something else.
  virtual absl::StatusOr<DeviceBuffer> Map(const MemoryHandle& handle) = 0;

  // False: so many batches are there that another has no room.
  virtual bool HasRoom() const = 0;
  // Starts once the backend's steps have come to `after`, and behind all batches queued before.
  // REQUIRES HasRoom, and at most kCopiesMax copies.
  virtual absl::StatusOr<std::unique_ptr<PageBatch>> Queue(absl::Span<const PageCopy> copies,
                                                           StreamPoint after) = 0;
};

}  // namespace sluice
