// Parts of one buffer, for workspaces whose sizes follow from a call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/aligned_buffer.h"

namespace sluice {

class Carver {
 public:
  // *part becomes the next `count` elements, aligned to a cache line.
  template <typename T>
  void Take(T** part, int64_t count) {
    *part = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  }

 private:
  template <typename TakeAll>
  friend void CarveParts(AlignedBuffer* buffer, TakeAll take_all);
  char* memory_ = nullptr;
  size_t bytes_ = 0;
};

// Calls take_all(Carver&) once to learn the size, enlarges the buffer if it is too small (what it
// held is lost), and calls it again to set the parts.
template <typename TakeAll>
void CarveParts(AlignedBuffer* buffer, TakeAll take_all) {
  Carver measure;
  take_all(measure);
  if (buffer->size() < measure.bytes_) *buffer = AlignedBuffer(measure.bytes_);
  Carver carver;
  carver.memory_ = buffer->As<char>();
  take_all(carver);
}

}  // namespace sluice
