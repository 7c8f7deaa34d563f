#include "services/transport/memory_mover.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "services/transport/page_checksum.h"

namespace sluice::transport {
namespace {

constexpr size_t kUnit = 4096;

size_t RoundUp(size_t bytes) { return (bytes + kUnit - 1) / kUnit * kUnit; }

// Maps the chunks one behind the other; null when that is not possible.
std::shared_ptr<void> MapChunks(const MemoryHandle& handle, int protection) {
  if (handle.bytes == 0 || handle.chunk_bytes == 0 || handle.chunk_bytes % kUnit != 0) {
    return nullptr;
  }
  if ((handle.bytes - 1) / handle.chunk_bytes + 1 != handle.descriptors.size()) return nullptr;
  void* const base = mmap(nullptr, handle.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  const size_t bytes = handle.bytes;
  std::shared_ptr<void> range(base, [bytes](void* at) { munmap(at, bytes); });
  for (size_t i = 0; i < handle.descriptors.size(); ++i) {
    const size_t at = i * handle.chunk_bytes;
    const size_t size = std::min(handle.chunk_bytes, handle.bytes - at);
    // What lies behind the end of a file would end the process when it is read.
    if (lseek(handle.descriptors[i], 0, SEEK_END) < static_cast<off_t>(size)) return nullptr;
    void* const wanted = static_cast<std::byte*>(base) + at;
    if (mmap(wanted, size, protection, MAP_SHARED | MAP_FIXED, handle.descriptors[i], 0) !=
        wanted) {
      return nullptr;
    }
  }
  return range;
}

struct OwnedMemory {
  ~OwnedMemory() {
    for (int descriptor : handle.descriptors) close(descriptor);
  }
  MemoryHandle handle;
  std::shared_ptr<void> range;
};

}  // namespace

DeviceBuffer AllocateMappable(size_t bytes) {
  auto owned = std::make_shared<OwnedMemory>();
  owned->handle.bytes = RoundUp(bytes);
  owned->handle.chunk_bytes = RoundUp(owned->handle.bytes / 2);
  for (size_t at = 0; at < owned->handle.bytes; at += owned->handle.chunk_bytes) {
    const int descriptor = memfd_create("kv", MFD_CLOEXEC);
    const size_t size = std::min(owned->handle.chunk_bytes, owned->handle.bytes - at);
    if (ftruncate(descriptor, static_cast<off_t>(size)) != 0) return {};
    owned->handle.descriptors.push_back(descriptor);
  }
  owned->range = MapChunks(owned->handle, PROT_READ | PROT_WRITE);
  return {.memory = std::shared_ptr<void>(owned, owned->range.get()),
          .bytes = bytes,
          .handle = std::shared_ptr<const MemoryHandle>(owned, &owned->handle)};
}

absl::StatusOr<DeviceBuffer> MapMappable(const MemoryHandle& handle) {
  std::shared_ptr<void> range = MapChunks(handle, PROT_READ);
  if (range == nullptr) return absl::FailedPreconditionError("no memory of ours");
  return DeviceBuffer{.memory = std::move(range), .bytes = handle.bytes, .handle = nullptr};
}

void MemoryMoverFaults::Hold(bool held) {
  {
    const std::lock_guard lock(mutex_);
    held_ = held;
  }
  released_.notify_all();
}

void MemoryMoverFaults::HoldCalls(bool held) {
  {
    const std::lock_guard lock(mutex_);
    calls_held_ = held;
  }
  released_.notify_all();
}

void MemoryMoverFaults::WaitWhile(const bool* held) {
  std::unique_lock lock(mutex_);
  ++waiting_;
  released_.wait(lock, [&] { return !*held; });
  --waiting_;
}

// Of one batch; the mover's until it is done.
struct MemoryMover::Work {
  std::vector<PageCopy> copies;
  std::vector<PageSums> sums;
  std::mutex mutex;
  std::condition_variable came;
  bool done = false;
  bool failed = false;
};

class MemoryMover::Batch final : public PageBatch {
 public:
  Batch(std::shared_ptr<Work> work, std::atomic<int64_t>* batches)
      : work_(std::move(work)), batches_(*batches) {}
  ~Batch() override {
    std::unique_lock lock(work_->mutex);
    work_->came.wait(lock, [&] { return work_->done; });
    --batches_;
  }
  absl::StatusOr<bool> Done() override {
    const std::lock_guard lock(work_->mutex);
    if (work_->failed) return absl::InternalError("the device failed");
    return work_->done;
  }
  PageSums sums(size_t i) const override { return work_->sums[i]; }

 private:
  const std::shared_ptr<Work> work_;
  std::atomic<int64_t>& batches_;
};

MemoryMover::MemoryMover(std::shared_ptr<MemoryMoverFaults> faults)
    : faults_(std::move(faults)), thread_([this] { Run(); }) {}

MemoryMover::~MemoryMover() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

absl::StatusOr<DeviceBuffer> MemoryMover::AllocateStaging(size_t bytes) {
  if (faults_->fail_) return absl::InternalError("the device failed");
  return AllocateMappable(bytes);
}

absl::StatusOr<DeviceBuffer> MemoryMover::Map(const MemoryHandle& handle) {
  if (faults_->fail_) return absl::InternalError("the device failed");
  if (faults_->refuse_maps_) return absl::FailedPreconditionError("maps are refused");
  return MapMappable(handle);
}

absl::StatusOr<std::unique_ptr<PageBatch>> MemoryMover::Queue(absl::Span<const PageCopy> copies,
                                                              StreamPoint) {
  faults_->WaitWhile(&faults_->calls_held_);
  if (faults_->fail_) return absl::InternalError("the device failed");
  auto work = std::make_shared<Work>();
  work->copies.assign(copies.begin(), copies.end());
  work->sums.resize(copies.size());
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(work);
  }
  changed_.notify_all();
  ++batches_;
  return std::make_unique<Batch>(work, &batches_);
}

void MemoryMover::Run() {
  while (true) {
    std::shared_ptr<Work> work;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      work = queue_.front();
      queue_.pop_front();
    }
    faults_->WaitWhile(&faults_->held_);
    const PageSumKernel& kernel = PageSumKernels().back();
    for (size_t i = 0; i < work->copies.size(); ++i) {
      const PageCopy& copy = work->copies[i];
      const absl::Span<const std::byte> from(static_cast<const std::byte*>(copy.from), copy.bytes);
      auto* const to = static_cast<std::byte*>(copy.to);
      if (to == nullptr) {
        work->sums[i] = kernel.sum(copy.key, from);
        continue;
      }
      std::memcpy(to, from.data(), from.size());
      if (faults_->damage_next_.exchange(false)) to[from.size() / 2] ^= std::byte{16};
      work->sums[i] = kernel.sum(copy.key, {to, copy.bytes});
    }
    bool failed = false;
    {
      const std::lock_guard lock(work->mutex);
      work->done = true;
      work->failed = failed = faults_->fail_next_.exchange(false) || faults_->fail_;
    }
    work->came.notify_all();
    if (!failed && wake_ != nullptr) wake_();
  }
}

}  // namespace sluice::transport
