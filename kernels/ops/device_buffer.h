// Memory on a backend's device (or of the host, for copies), and how another process finds it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace sluice {

// What another process of this host needs to map a buffer: chunk i holds its bytes
// [i, i + 1) * chunk_bytes. Places in it are told as offsets, never as addresses.
struct MemoryHandle {
  static constexpr size_t kChunksMax = 64;
  std::vector<int> descriptors;  // one a chunk; open as long as the handle's owner says
  size_t chunk_bytes = 0;        // but the last may have less
  size_t bytes = 0;              // of all chunks, at least the buffer's
};

// Zero-filled; freed with the object, which must not outlive the backend.
struct DeviceBuffer {
  std::shared_ptr<void> memory;
  size_t bytes = 0;
  std::shared_ptr<const MemoryHandle> handle;  // null: other processes cannot map it
  std::string why_no_handle;                   // where one was asked for
  template <typename T>
  T* As() const {
    return static_cast<T*>(memory.get());
  }
};

}  // namespace sluice
