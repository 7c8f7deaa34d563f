#include "services/transport/watched_mover.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"

namespace sluice::transport {
namespace {

constexpr absl::Duration kUncheckedMax = absl::Seconds(1);

class WatchedBatch final : public PageBatch {
 public:
  WatchedBatch(std::unique_ptr<PageBatch> batch, DeviceWatch* watch)
      : batch_(std::move(batch)), watch_(*watch), mark_(watch_.Begin("a copy of KV")) {}
  ~WatchedBatch() override {
    batch_.reset();  // waits
    End();
  }

  absl::StatusOr<bool> Done() override {
    absl::StatusOr<bool> done = batch_->Done();
    if (!done.ok()) watch_.Failed(done.status());
    if (done.ok() && *done) End();
    return done;
  }
  PageSums sums(size_t i) const override { return batch_->sums(i); }

 private:
  void End() {
    if (mark_.has_value()) watch_.End(*mark_);
    mark_.reset();
  }

  std::unique_ptr<PageBatch> batch_;
  DeviceWatch& watch_;
  std::optional<DeviceWatch::Mark> mark_;
};

}  // namespace

DeviceWatch::Mark DeviceWatch::Begin(const char* what) {
  const std::lock_guard lock(mutex_);
  return open_.emplace(time_, what);
}

void DeviceWatch::End(Mark mark) {
  const std::lock_guard lock(mutex_);
  open_.erase(mark);
}

void DeviceWatch::Failed(const absl::Status& status) {
  const std::lock_guard lock(mutex_);
  if (failure_.ok()) failure_ = status;
}

absl::Status DeviceWatch::Check(absl::Duration limit, absl::Time now) {
  const std::lock_guard lock(mutex_);
  time_ += std::clamp(now - checked_, absl::ZeroDuration(), kUncheckedMax);
  checked_ = now;
  if (!failure_.ok() || open_.empty()) return failure_;
  const auto& [began, what] = *open_.begin();
  if (time_ - began < limit) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat("the KV transport: ", what, " has not ended for ",
                                                  absl::FormatDuration(time_ - began),
                                                  ", the limit is ", absl::FormatDuration(limit),
                                                  "; see the system's log for errors of the GPU"));
}

WatchedMover::WatchedMover(std::unique_ptr<PageMover> mover, DeviceWatch* watch)
    : mover_(std::move(mover)), watch_(*watch) {}

absl::StatusOr<DeviceBuffer> WatchedMover::AllocateStaging(size_t bytes) {
  absl::StatusOr<DeviceBuffer> memory = mover_->AllocateStaging(bytes);
  if (absl::IsInternal(memory.status())) watch_.Failed(memory.status());
  return memory;
}

absl::StatusOr<DeviceBuffer> WatchedMover::Map(const MemoryHandle& handle) {
  absl::StatusOr<DeviceBuffer> memory = mover_->Map(handle);
  if (absl::IsInternal(memory.status())) watch_.Failed(memory.status());
  return memory;
}

absl::StatusOr<std::unique_ptr<PageBatch>> WatchedMover::Queue(absl::Span<const PageCopy> copies,
                                                               StreamPoint after) {
  absl::StatusOr<std::unique_ptr<PageBatch>> batch = mover_->Queue(copies, after);
  if (!batch.ok()) {
    watch_.Failed(batch.status());
    return batch.status();
  }
  return std::make_unique<WatchedBatch>(*std::move(batch), &watch_);
}

}  // namespace sluice::transport
