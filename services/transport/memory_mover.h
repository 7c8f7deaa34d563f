// The in-memory twin of a GPU's PageMover, for tests: "device" memory is the host's, copies happen
// later on a thread of its own, and can be held, damaged or failed.
//
// Threads: the faults from any; the rest as PageMover says.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "kernels/ops/page_mover.h"

namespace sluice::transport {

// What several movers are told.
class MemoryMoverFaults {
 public:
  // True: batches wait until it is false.
  void Hold(bool held);
  // Likewise calls of Queue.
  void HoldCalls(bool held);
  // Whether one of either waits.
  bool holds() const { return waiting_ > 0; }
  // One bit of the next copied page is wrong.
  void DamageNextCopy() { damage_next_ = true; }
  // Nobody can map others' memory.
  void RefuseMaps() { refuse_maps_ = true; }
  // The device fails with the next batch; for good.
  void FailNextBatch() { fail_next_ = true; }
  void Fail() { fail_ = true; }

 private:
  friend class MemoryMover;
  void WaitWhile(const bool* held);

  std::mutex mutex_;
  std::condition_variable released_;
  bool held_ = false, calls_held_ = false;  // guarded by mutex_
  std::atomic<int> waiting_{0};
  std::atomic<bool> damage_next_{false}, refuse_maps_{false}, fail_next_{false}, fail_{false};
};

// Memory as AllocateShareable of a GPU gives it: zero-filled, in two chunks where there is room.
DeviceBuffer AllocateMappable(size_t bytes);
// As PageMover::Map of what AllocateMappable gave, to another process perhaps.
absl::StatusOr<DeviceBuffer> MapMappable(const MemoryHandle& handle);

class MemoryMover final : public PageMover {
 public:
  explicit MemoryMover(std::shared_ptr<MemoryMoverFaults> faults);
  ~MemoryMover() override;

  void SetWake(std::function<void()> wake) override { wake_ = std::move(wake); }
  absl::StatusOr<DeviceBuffer> AllocateStaging(size_t bytes) override;
  absl::StatusOr<DeviceBuffer> Map(const MemoryHandle& handle) override;
  bool HasRoom() const override { return batches_ < kBatchesMax; }
  absl::StatusOr<std::unique_ptr<PageBatch>> Queue(absl::Span<const PageCopy> copies,
                                                   StreamPoint after) override;

 private:
  static constexpr int64_t kBatchesMax = 3;
  struct Work;
  class Batch;

  void Run();

  const std::shared_ptr<MemoryMoverFaults> faults_;
  std::function<void()> wake_;
  std::atomic<int64_t> batches_{0};
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Work>> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace sluice::transport
