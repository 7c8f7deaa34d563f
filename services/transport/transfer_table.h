// The sending side of KV transfer, without a network: which transfers there are, which pages wait
// to be sent to which peer, and when a transfer has ended. Both twins take their work from it:
//
//   for peer in NewPeers(): connect
//   while (auto job = table.Take(peer)) { send job->header and job->bytes; then Sent(*job, status)
//   } Answered(…) for what the receiver says; FailPeer(…) when it is gone; Expire(now); RunEnded()
//
// A transfer ends with the first of: the receiver's answer, an error, Abort, its deadline. From
// then on none of its pages is taken; on_sent comes when those taken before have all been Sent.
//
// Threads: Begin, Write, Abort and stats from any thread; the rest from the transport's thread
// alone, which is where on_sent is called (by RunEnded), without locks held.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/transport/kv_transfer.h"
#include "services/transport/page_message.h"

namespace sluice::transport {

// One connection to one receiver, from its first transfer until it is lost. Never used twice.
using PeerId = uint64_t;

struct TransferLimits {
  int64_t outstanding_bytes =
      4 << 20;  // of one peer: taken and not Sent; one page is always allowed
  size_t transfers = 4096;
};

class TransferTable {
 public:
  // `wake` says that there is new work; called from any thread without locks held.
  TransferTable(KvMemory memory, TransferLimits limits, std::function<void()> wake);
  ~TransferTable();

  // As KvSender has them.
  absl::StatusOr<TransferId> Begin(const v1::Lease& lease, absl::Duration timeout, SentDone on_sent,
                                   absl::Time now);
  absl::Status Write(TransferId transfer, absl::Span<const PageWrite> writes);
  void Abort(TransferId transfer);
  KvSenderStats stats() const;

  struct Peer {
    PeerId id = 0;
    std::string endpoint;
    uint64_t incarnation = 0;
  };
  // Those that came since the last call.
  std::vector<Peer> NewPeers();

  struct Job {
    PeerId peer = 0;
    uint64_t checksum_key = 0;
    PageHeader header;  // without checksum: see Seal
    absl::Span<const std::byte> bytes;
    int64_t page = 0;   // of this process's pool, in the header's layer
    StreamPoint after;  // from there on the bytes are what is to be sent
  };
  // The next page for this peer, or nothing when none waits or too many bytes are outstanding.
  std::optional<Job> Take(PeerId peer);
  // The job's bytes are not read any more. An error loses the transfer.
  void Sent(const Job& job, const absl::Status& status);
  // The receiver's word on a page of a transfer; ignored unless the transfer goes to that peer.
  void Answered(PeerId peer, TransferId transfer, Answer answer);

  // The connection is lost: all its transfers end with `status`, and the next Begin for the same
  // endpoint makes a new peer. Its jobs must still be Sent, as they come home.
  void FailPeer(PeerId peer, const absl::Status& status);
  // Whether anything is asked of this peer: transfers that have not ended, or pages taken and not
  // Sent, also of transfers that have.
  bool Busy(PeerId peer) const;

  // Ends what is over its deadline. False: no transfer is left to be watched.
  bool Expire(absl::Time now);
  void EndAll(const absl::Status& status);
  // Calls on_sent of transfers that ended.
  void RunEnded();

 private:
  struct Transfer;
  struct PeerQueue;
  struct QueuedPage {
    TransferId transfer;
    PageWrite write;
  };

  // With the mutex held.
  Transfer* Find(TransferId transfer);
  absl::Status CheckWrite(const Transfer& transfer, const PageWrite& write) const;
  void End(TransferId id, Transfer* transfer, const absl::Status& status);

  const KvMemory memory_;
  const TransferLimits limits_;
  const std::function<void()> wake_;

  mutable std::mutex mutex_;  // of what follows
  absl::flat_hash_map<TransferId, std::unique_ptr<Transfer>> transfers_;
  absl::flat_hash_map<PeerId, std::unique_ptr<PeerQueue>> peers_;
  absl::flat_hash_map<std::string, PeerId> peer_of_endpoint_;
  std::vector<Peer> new_peers_;
  std::vector<TransferId> ended_;  // ready for on_sent
  TransferId next_transfer_ = 1;
  PeerId next_peer_ = 1;
  KvSenderStats stats_;
};

// Makes the job's checksum.
void Seal(TransferTable::Job* job);

}  // namespace sluice::transport
