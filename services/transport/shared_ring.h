// Memory that a sender shares with a receiver of the same host: slots of one page each, used in
// turn. The sender makes it and passes its descriptor; the receiver maps it for reading and trusts
// nothing in it: the sender may change what lies there at any time.
//
// Threads: none of its own; who may touch which slot is the connection's business.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "services/transport/file_descriptor.h"
#include "services/transport/kv_transfer.h"

namespace sluice::transport {

class SharedRing {
 public:
  // For pages of this layout. Unavailable with the system's reason.
  static absl::StatusOr<SharedRing> Create(const KvLayout& layout);
  // What another process made. InvalidArgument: it does not hold `slots` slots of pages of this
  // layout, or could shrink under the reader.
  static absl::StatusOr<SharedRing> Open(FileDescriptor memory, const KvLayout& layout,
                                         uint64_t slots);
  SharedRing(SharedRing&& other) noexcept;
  SharedRing& operator=(SharedRing&& other) = delete;
  ~SharedRing();

  int descriptor() const { return memory_.get(); }
  uint64_t slots() const { return slots_; }
  // Where page n lies. Not to be written by who opened it.
  std::byte* Slot(uint64_t n) const { return base_ + n % slots_ * slot_bytes_; }

 private:
  SharedRing(FileDescriptor memory, uint64_t slots, size_t slot_bytes);
  absl::Status Map(int protection);

  FileDescriptor memory_;
  uint64_t slots_;
  size_t slot_bytes_;
  std::byte* base_ = nullptr;
};

}  // namespace sluice::transport
