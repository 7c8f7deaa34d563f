// Zeroed host memory aligned to cache lines, owned by one object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace sluice {

class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;

  AlignedBuffer() = default;  // empty
  // Zero-filled; pages cost nothing until touched. Throws std::bad_alloc when memory is exhausted,
  // as operator new would.
  explicit AlignedBuffer(size_t bytes);

  // How many were ever made, for tests that watch for allocations.
  static int64_t num_created();

  void* data() const { return data_.get(); }
  size_t size() const { return size_; }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data());
  }

 private:
  struct Unmap {
    size_t bytes;
    void operator()(void* data) const;
  };
  std::unique_ptr<void, Unmap> data_{nullptr, Unmap{0}};
  size_t size_ = 0;
};

}  // namespace sluice
