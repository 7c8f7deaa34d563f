// Whether a device still moves pages, as other threads than the one that moves them may ask, also
// while that one hangs in a call of the device's.
//
// Threads: DeviceWatch any, WatchedMover as PageMover.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/ops/page_mover.h"

namespace sluice::transport {

// What was begun and has not ended, and how the device failed.
class DeviceWatch {
 private:
  using Open = std::multiset<std::pair<absl::Duration, const char*>>;

 public:
  using Mark = Open::const_iterator;

  // `what`, a literal, begins, and ends.
  Mark Begin(const char* what);
  void End(Mark mark);
  // The first counts.
  void Failed(const absl::Status& status);

  // That failure, or DeadlineExceeded: something began `limit` ago and has not ended. What lies
  // between two calls counts a second at most: a process that was stopped accuses nobody.
  absl::Status Check(absl::Duration limit, absl::Time now);

 private:
  std::mutex mutex_;  // guards what follows
  Open open_;         // by the time of this watch at which it began
  absl::Duration time_;
  absl::Time checked_ = absl::InfiniteFuture();
  absl::Status failure_;
};

// Tells a watch of its batches, and of every call that the device fails.
class WatchedMover final : public PageMover {
 public:
  // `watch` must outlive the mover and its batches.
  WatchedMover(std::unique_ptr<PageMover> mover, DeviceWatch* watch);

  void SetWake(std::function<void()> wake) override { mover_->SetWake(std::move(wake)); }
  absl::StatusOr<DeviceBuffer> AllocateStaging(size_t bytes) override;
  absl::StatusOr<DeviceBuffer> Map(const MemoryHandle& handle) override;
  bool HasRoom() const override { return mover_->HasRoom(); }
  absl::StatusOr<std::unique_ptr<PageBatch>> Queue(absl::Span<const PageCopy> copies,
                                                   StreamPoint after) override;

 private:
  const std::unique_ptr<PageMover> mover_;
  DeviceWatch& watch_;
};

}  // namespace sluice::transport
