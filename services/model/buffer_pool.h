// Zeroed memory for many tensors, taken from few large buffers: a big model has more tensors than a
// process may have mappings.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/base/aligned_buffer.h"

namespace sluice::model {

// Threads: one at a time. The memory lives as long as any copy of its owner.
class BufferPool {
 public:
  template <typename T>
  T* Allocate(int64_t count) {
    const size_t bytes = Rounded(static_cast<size_t>(count) * sizeof(T));
    if (bytes > left_) {
      owners_.push_back(std::make_shared<AlignedBuffer>(std::max(bytes, kSlabBytes)));
      next_ = owners_.back()->As<char>();
      left_ = owners_.back()->size();
    }
    char* data = next_;
    next_ += bytes;
    left_ -= bytes;
    return reinterpret_cast<T*>(data);
  }

  const std::vector<std::shared_ptr<AlignedBuffer>>& owners() const { return owners_; }

 private:
  static constexpr size_t kSlabBytes = size_t{64} << 20;  // costs nothing where untouched
  static size_t Rounded(size_t bytes) {
    constexpr size_t kLine = AlignedBuffer::kAlignment;
    return (std::max<size_t>(bytes, 1) + kLine - 1) / kLine * kLine;
  }

  std::vector<std::shared_ptr<AlignedBuffer>> owners_;
  char* next_ = nullptr;
  size_t left_ = 0;
};

}  // namespace sluice::model
