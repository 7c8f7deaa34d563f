#include "services/transport/device_pages.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/log.h"
#include "services/transport/page_checksum.h"

namespace sluice::transport {
namespace {

constexpr size_t kBatchesAtOnce = 4;        // of one connection
constexpr size_t kStagingBytes = 16 << 20;  // the same
constexpr size_t kSlotsMin = 4;
constexpr size_t kSlotsMax = 1024;
constexpr size_t kAlignment = 128;

}  // namespace

std::byte* Staging::Take() {
  std::byte* const slot = free_.back();
  free_.pop_back();
  return slot;
}

StagingPool::StagingPool(PageMover* mover, const KvLayout& layout, size_t bytes_max)
    : mover_(*mover),
      slot_bytes_((static_cast<size_t>(layout.page_bytes()) + kAlignment - 1) / kAlignment *
                  kAlignment),
      slots_(std::clamp(kStagingBytes / slot_bytes_, kSlotsMin, kSlotsMax)),
      count_max_(std::max<size_t>(1, bytes_max / (slots_ * slot_bytes_))) {}

absl::StatusOr<Staging> StagingPool::Take() {
  const size_t bytes = slots_ * slot_bytes_;
  if (unused_.empty()) {
    if (count_ >= count_max_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("all pinned memory for KV is in use: ", count_, " connections have ", bytes,
                       " bytes each"));
    }
    SLUICE_ASSIGN_OR_RETURN(DeviceBuffer memory, mover_.AllocateStaging(bytes));
    unused_.push_back(std::move(memory));
    ++count_;
  }
  DeviceBuffer memory = std::move(unused_.back());
  unused_.pop_back();
  Staging staging;
  staging.memory_ = {.memory = std::shared_ptr<void>(
                         memory.memory.get(), [this, memory](void*) { unused_.push_back(memory); }),
                     .bytes = bytes};
  staging.quarter_ = slots_ / 4;
  for (size_t slot = slots_; slot > 0; --slot) {
    staging.free_.push_back(staging.memory_.As<std::byte>() + (slot - 1) * slot_bytes_);
  }
  return staging;
}

// --- Out ---

absl::Status DevicePagesOut::Collect() {
  while (!batches_.empty()) {
    Batch& batch = batches_.front();
    SLUICE_ASSIGN_OR_RETURN(const bool there, batch.copies->Done());
    if (!there) break;
    for (size_t i = 0; i < batch.pages.size(); ++i) {
      Page& page = batch.pages[i];
      TransferTable::Job& job = page.job;
      if (checksums_) {
        job.header.checksum = FinishChecksum(job.checksum_key, job.header.tag(), job.bytes.size(),
                                             batch.copies->sums(i));
      }
      if (page.staged != nullptr) {
        transfers_.Sent(job, absl::OkStatus());
        job.bytes = {page.staged, job.bytes.size()};
      }
      done_.push_back(page);
    }
    batches_.pop_front();
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> DevicePagesOut::Start() {
  if (batches_.size() >= kBatchesAtOnce || !mover_.HasRoom()) return false;
  size_t copies_max = PageMover::kCopiesMax;
  if (staging_.has_value()) copies_max = std::min(copies_max, staging_->quarter());
  if (staging_.has_value() && staging_->free() < copies_max) return false;
  Batch batch;
  std::vector<PageCopy> copies;
  StreamPoint after;
  while (copies.size() < copies_max) {
    const std::optional<TransferTable::Job> job = transfers_.Take(peer_);
    if (!job.has_value()) break;
    Page& page = batch.pages.emplace_back(Page{.job = *job});
    if (staging_.has_value()) page.staged = staging_->Take();
    copies.push_back({.from = job->bytes.data(),
                      .to = page.staged,
                      .bytes = job->bytes.size(),
                      .key = ExpandKey(job->checksum_key),
                      .sum = checksums_});
    after.number = std::max(after.number, job->after.number);
  }
  if (copies.empty()) return false;
  absl::StatusOr<std::unique_ptr<PageBatch>> queued = mover_.Queue(copies, after);
  if (!queued.ok()) {
    for (const Page& page : batch.pages) transfers_.Sent(page.job, queued.status());
    return queued.status();
  }
  batch.copies = *std::move(queued);
  batches_.push_back(std::move(batch));
  return true;
}

std::optional<DevicePagesOut::Page> DevicePagesOut::Next() {
  if (done_.empty()) return std::nullopt;
  const Page page = done_.front();
  done_.pop_front();
  return page;
}

void DevicePagesOut::Fail(const absl::Status& status) {
  failure_ = status;
  for (const Page& page : done_) {
    if (page.staged == nullptr) transfers_.Sent(page.job, status);
  }
  done_.clear();
}

bool DevicePagesOut::Settle(bool wait) {
  for (; !batches_.empty(); batches_.pop_front()) {
    Batch& batch = batches_.front();
    if (!wait) {
      const absl::StatusOr<bool> there = batch.copies->Done();
      if (there.ok() && !*there) return false;
    }
    batch.copies.reset();  // waits, unless it is done or failed
    for (const Page& page : batch.pages) transfers_.Sent(page.job, failure_);
  }
  return true;
}

// --- In ---

bool DevicePagesIn::HasRoom() const {
  return pending_.count < PageMover::kCopiesMax && batches_.size() < kBatchesAtOnce &&
         (!staging_.has_value() || staging_->HasFree());
}

void DevicePagesIn::Add(const PageHeader& header, const LeaseTable::Arrival& arrival,
                        const std::byte* from) {
  Page page{.header = header, .checksum_key = arrival.checksum_key};
  if (staging_.has_value()) {
    page.staged = staging_->Take();
    std::memcpy(page.staged, from, arrival.target.size());
    from = page.staged;
  }
  pending_.copies.push_back({.from = from,
                             .to = arrival.target.data(),
                             .bytes = arrival.target.size(),
                             .key = ExpandKey(arrival.checksum_key),
                             .sum = checksums_});
  pending_.pages.push_back(page);
  ++pending_.count;
}

void DevicePagesIn::Flush() {
  if (pending_.count == 0) return;
  if (!pending_.copies.empty()) {
    if (!mover_.HasRoom()) return;
    absl::StatusOr<std::unique_ptr<PageBatch>> queued = mover_.Queue(pending_.copies, {});
    if (queued.ok()) {
      pending_.batch = *std::move(queued);
    } else {
      LogError("KV that came cannot be copied", {{"reason", queued.status()}});
    }
  }
  batches_.push_back(std::exchange(pending_, {}));
}

void DevicePagesIn::Abandon(absl::Time now) {
  for (const Page& page : pending_.pages) {
    if (page.staged != nullptr) staging_->Return(page.staged);
    leases_.Finish(page.header, LeaseTable::Copy::kBroken, now);
  }
  pending_ = {};
}

size_t DevicePagesIn::Collect(absl::Time now,
                              absl::FunctionRef<void(const PageHeader&, Answer)> answer) {
  size_t count = 0;
  while (!batches_.empty()) {
    Batch& batch = batches_.front();
    if (batch.batch != nullptr) {
      const absl::StatusOr<bool> there = batch.batch->Done();
      if (there.ok() && !*there) break;
      if (!there.ok()) {
        LogError("KV that came was not copied", {{"reason", there.status()}});
        batch.batch.reset();
      }
    }
    for (size_t i = 0; i < batch.pages.size(); ++i) {
      const Page& page = batch.pages[i];
      using Outcome = LeaseTable::Copy;
      Outcome outcome = Outcome::kBroken;
      if (batch.batch != nullptr) {
        const bool intact =
            !checksums_ ||
            FinishChecksum(page.checksum_key, page.header.tag(), batch.copies[i].bytes,
                           batch.batch->sums(i)) == page.header.checksum;
        outcome = intact ? Outcome::kIntact : Outcome::kDamaged;
      }
      if (page.staged != nullptr) staging_->Return(page.staged);
      answer(page.header, leases_.Finish(page.header, outcome, now));
    }
    count += batch.count;
    batches_.pop_front();
  }
  return count;
}

}  // namespace sluice::transport
