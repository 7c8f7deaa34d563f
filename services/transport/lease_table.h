// The receiving side of KV transfer, without a network: which leases are open, which write may go
// where, and when a lease is complete or fenced. Both twins put arriving pages through it:
//
//   Arrival arrival = table.Start(header, bytes, now);      // may this page be copied, and
//   whereto? if (arrival.answer == kTaken) { copy; answer = table.Finish(header, copied, now); }
//
// Between Start and Finish the copy is in flight and Close waits for it.
//
// Threads: Open, Close and stats from any thread; Start, Finish and RunReady from the transport's
// thread alone, which is where on_done is called, without locks held.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/transport/kv_transfer.h"
#include "services/transport/page_message.h"

namespace sluice::transport {

class LeaseTable {
 public:
  // `wake` asks for RunReady on the transport's thread; called from any thread without locks held.
  LeaseTable(KvMemory memory, uint64_t incarnation, std::function<void()> wake);
  ~LeaseTable();

  // As KvReceiver has them.
  absl::Status Open(const v1::Lease& lease, int64_t rows, LeaseDone on_done);
  absl::Status Close(uint64_t lease, absl::Duration timeout);
  KvReceiverStats stats() const;

  struct Arrival {
    Answer answer = Answer::kTaken;
    absl::Span<std::byte> target;  // for kTaken
  };
  // `bytes`: how many came or are to come.
  Arrival Start(const PageHeader& header, size_t bytes, absl::Time now);
  // After Start said kTaken. `copied`: all bytes are in the target; verify: compare the checksum.
  Answer Finish(const PageHeader& header, bool copied, bool verify, absl::Time now);

  // Reports leases that were complete when opened.
  void RunReady();

 private:
  struct Lease;

  Lease* Find(uint64_t lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckPages(const v1::Lease& lease, int64_t rows) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Forget(uint64_t lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Span<std::byte> Target(const Lease& lease, const PageHeader& header) const;

  const KvMemory memory_;
  const uint64_t incarnation_;
  const std::function<void()> wake_;

  mutable absl::Mutex mutex_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Lease>> leases_ ABSL_GUARDED_BY(mutex_);
  std::vector<bool> leased_pages_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> ready_ ABSL_GUARDED_BY(mutex_);  // leases without pages, not yet reported
  KvReceiverStats stats_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sluice::transport
