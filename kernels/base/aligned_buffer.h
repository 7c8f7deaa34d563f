// Zeroed host memory aligned to cache lines, owned by one object.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace sluice {

class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;

  AlignedBuffer() = default;  // empty
  // Zero-filled. Large buffers come straight from the kernel, so pages cost nothing until touched.
  // Aborts when memory is exhausted, as operator new would.
  explicit AlignedBuffer(size_t bytes);

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
