// The receiving side of KV transfer, without a network: which leases are open, which write may go
// where, and when a lease is complete or fenced. Both twins put arriving pages through it:
//
//   Arrival arrival = table.Start(header, bytes, now);  // may this page be copied, and whereto?
//   if (arrival.answer == kTaken) { copy and sum; answer = table.Finish(header, copy, now); }
//
// Between Start and Finish the copy is in flight and Close waits for it.
//
// Threads: Open, Close and stats from any thread; Start, Finish and RunReady from the transport's
// thread alone, which is where on_done is called, without locks held.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
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
    uint64_t checksum_key = 0;     // the same
  };
  // What became of the bytes: not all came; all did, and what lies in the target has another
  // checksum than the header says; all is well.
  enum class Copy { kBroken, kDamaged, kIntact };
  // `bytes`: how many came or are to come.
  Arrival Start(const PageHeader& header, size_t bytes, absl::Time now);
  // After Start said kTaken.
  Answer Finish(const PageHeader& header, Copy copy, absl::Time now);

  // Reports leases that were complete when opened.
  void RunReady();

 private:
  struct Lease;

  // With the mutex held.
  Lease* Find(uint64_t lease);
  absl::Status CheckPages(const v1::Lease& lease, int64_t rows) const;
  void Forget(uint64_t lease);
  void Land(Lease* lease);
  absl::Span<std::byte> Target(const Lease& lease, const PageHeader& header) const;

  const KvMemory memory_;
  const uint64_t incarnation_;
  const std::function<void()> wake_;

  mutable std::mutex mutex_;        // of what follows
  std::condition_variable landed_;  // a copy into a closing lease has ended
  absl::flat_hash_map<uint64_t, std::unique_ptr<Lease>> leases_;
  std::vector<bool> leased_pages_;
  std::vector<uint64_t> ready_;  // leases without pages, not yet reported
  KvReceiverStats stats_;
};

}  // namespace sluice::transport
