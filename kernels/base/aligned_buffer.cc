#include "kernels/base/aligned_buffer.h"

#include <sys/mman.h>

#include "absl/base/internal/raw_logging.h"

namespace sluice {

AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    ABSL_RAW_LOG(FATAL, "out of memory: cannot map %zu bytes", bytes);
  }
  if (bytes >= (size_t{2} << 20)) madvise(data, bytes, MADV_HUGEPAGE);
  data_ = std::unique_ptr<void, Unmap>(data, Unmap{bytes});
}

void AlignedBuffer::Unmap::operator()(void* data) const { munmap(data, bytes); }

}  // namespace sluice
