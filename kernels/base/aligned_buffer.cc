#include "kernels/base/aligned_buffer.h"

#include <sys/mman.h>

#include <atomic>
#include <new>

namespace sluice {
namespace {

std::atomic<int64_t> buffers_created{0};

}  // namespace

int64_t AlignedBuffer::num_created() { return buffers_created.load(std::memory_order_relaxed); }

AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  buffers_created.fetch_add(1, std::memory_order_relaxed);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  if (bytes >= (size_t{2} << 20)) madvise(data, bytes, MADV_HUGEPAGE);
  data_ = std::unique_ptr<void, Unmap>(data, Unmap{bytes});
}

void AlignedBuffer::Unmap::operator()(void* data) const { munmap(data, bytes); }

}  // namespace sluice
