// Pages between the network and memory that the processor does not reach: both directions' queues
// of copies that a PageMover makes. With staging the bytes go through pinned memory of the host,
// which is a ring of slots; without, only sums are made here (sending) or the copy comes straight
// from another process's memory (receiving).
//
// Threads: the transport's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/ops/page_mover.h"
#include "services/transport/kv_transfer.h"
#include "services/transport/lease_table.h"
#include "services/transport/page_message.h"
#include "services/transport/transfer_table.h"

namespace sluice::transport {

// Slots of pinned memory, one page each. A quarter of them makes a batch of what is sent: some fill
// while others are emptied.
class Staging {
 public:
  bool HasFree() const { return !free_.empty(); }
  size_t free() const { return free_.size(); }
  size_t quarter() const { return quarter_; }
  // REQUIRES HasFree.
  std::byte* Take();
  void Return(std::byte* slot) { free_.push_back(slot); }

 private:
  friend class StagingPool;
  DeviceBuffer memory_;
  std::vector<std::byte*> free_;
  size_t quarter_ = 0;
};

// The pinned memory of all connections of a process. What a connection leaves is kept for another:
// to give it back to the system waits for all that the device does.
class StagingPool {
 public:
  static constexpr size_t kBytesMax = size_t{4} << 30;

  // `mover` must outlive the pool, and the pool what it gives. `bytes_max`: of all, or what one
  // takes.
  StagingPool(PageMover* mover, const KvLayout& layout, size_t bytes_max = kBytesMax);

  // ResourceExhausted: all is in use. Else as the mover's.
  absl::StatusOr<Staging> Take();

 private:
  PageMover& mover_;
  const size_t slot_bytes_;
  const size_t slots_;
  const size_t count_max_;
  size_t count_ = 0;  // with those in use
  std::vector<DeviceBuffer> unused_;
};

// A sender's pages: taken from the table, summed (and staged), given out in order.
class DevicePagesOut {
 public:
  // All must outlive the object.
  DevicePagesOut(PageMover* mover, TransferTable* transfers, PeerId peer, bool checksums)
      : mover_(*mover), transfers_(*transfers), peer_(peer), checksums_(checksums) {}

  // Once, before Work: from now on pages are staged.
  void StageIn(Staging staging) { staging_.emplace(std::move(staging)); }

  // Looks which pages are done.
  absl::Status Collect();
  // Takes as many as make a batch; true: there was something.
  absl::StatusOr<bool> Start();

  struct Page {
    TransferTable::Job job;  // with its checksum
    // Staged: a copy of job.bytes, until Return. The job is Sent already. Null: it is not.
    std::byte* staged = nullptr;
  };
  // The next that is done.
  std::optional<Page> Next();
  void Return(const Page& page) { staging_->Return(page.staged); }

  // From now on nothing is taken, and what is not out is given back: what is in flight by Settle.
  void Fail(const absl::Status& status);
  // After Fail. False: copies are in flight still. `wait`: until none is.
  bool Settle(bool wait);

 private:
  struct Batch {
    std::vector<Page> pages;
    std::unique_ptr<PageBatch> copies;
  };

  PageMover& mover_;
  TransferTable& transfers_;
  const PeerId peer_;
  const bool checksums_;
  std::optional<Staging> staging_;
  std::deque<Batch> batches_;
  std::deque<Page> done_;
  absl::Status failure_;
};

// A receiver's pages: copied into the leased ones, summed there, and told to the lease table.
class DevicePagesIn {
 public:
  // All must outlive the object.
  DevicePagesIn(PageMover* mover, LeaseTable* leases, bool checksums)
      : mover_(*mover), leases_(*leases), checksums_(checksums) {}

  // Once, before Add: pages come from the host.
  void StageIn(Staging staging) { staging_.emplace(std::move(staging)); }

  bool HasRoom() const;
  // What the table said kTaken of: from where the mover reaches it, or, staged, from anywhere: then
  // it was copied when the call returns. REQUIRES HasRoom.
  void Add(const PageHeader& header, const LeaseTable::Arrival& arrival, const std::byte* from);
  // A page that was not taken: it counts when those before it are there. REQUIRES HasRoom.
  void Skip() { ++pending_.count; }

  // Starts what was added. To be called again while busy().
  void Flush();
  // Finishes what is there, in order, and calls `answer` for each; gives the number of pages that
  // were added or skipped and are done.
  size_t Collect(absl::Time now, absl::FunctionRef<void(const PageHeader&, Answer)> answer);
  // Gives up what was added and has not started.
  void Abandon(absl::Time now);
  // Whether any page is not finished.
  bool busy() const { return !batches_.empty() || pending_.count > 0; }

 private:
  struct Page {
    PageHeader header;
    uint64_t checksum_key = 0;
    std::byte* staged = nullptr;
  };
  struct Batch {
    std::vector<Page> pages;
    std::vector<PageCopy> copies;
    size_t count = 0;  // with those skipped
    std::unique_ptr<PageBatch> batch;
  };

  PageMover& mover_;
  LeaseTable& leases_;
  const bool checksums_;
  std::optional<Staging> staging_;
  Batch pending_;
  std::deque<Batch> batches_;
};

}  // namespace sluice::transport
