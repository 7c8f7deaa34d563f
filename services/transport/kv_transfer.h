// KV pages from the memory of a prefill to the memory of a decode: KvSender, KvReceiver, and what
// holds both, KvTransport. Twins: in_process.h (memory, for tests and simulation) and
// socket_transport.h (shared memory and TCP between processes).
//
// The decode opens a lease: a promise of pages for the KV of one attempt. It travels to the prefill
// by other means (v1::Lease through the router). The prefill begins a transfer for it and names
// pages to write, in any order, while it computes. The receiver copies them into the leased pages,
// verifies a checksum keyed with (lease, layer, page), and reports once: all there and verified, or
// damaged. See README.md for what happens when either side dies.
//
// Threads: all methods may be called from any thread and do not wait for the network, except Close
// with a timeout. Callbacks come on the transport's thread, one at a time; they must not block, and
// of the transport they may call Begin, Write and Abort alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/ops/device_buffer.h"
#include "kernels/ops/stream.h"
#include "sluice/v1/control.pb.h"

namespace sluice::transport {

// What the pages of one process look like. A sender and a receiver must agree on all but `pages`.
struct KvLayout {
  int64_t layers = 0;
  int64_t pages = 0;       // in the pool; a page index names the same rows in every layer
  int64_t page_rows = 64;  // tokens of a page
  int64_t row_bytes = 0;   // of one token in one layer

  int64_t page_bytes() const { return page_rows * row_bytes; }  // in one layer
};

// KV memory, owned by the engine, which must outlive the transport. Page p of layer l is the
// layout.page_bytes() bytes at layers[l] + p * layout.page_bytes().
struct KvMemory {
  KvLayout layout;
  std::vector<std::byte*> layers;
  // How other processes of this host map it; null where they cannot. Then layers follow each other
  // without gaps, layer 0 at offset 0.
  std::shared_ptr<const MemoryHandle> handle;

  // REQUIRES layer and page inside the layout, rows at most page_rows.
  absl::Span<std::byte> Rows(int64_t layer, int64_t page, int64_t rows) const {
    return {layers[static_cast<size_t>(layer)] + page * layout.page_bytes(),
            static_cast<size_t>(rows * layout.row_bytes)};
  }
};

// InvalidArgument naming the field that is not positive, the count of layers that differs, or the
// layer of mappable memory that does not lie where it should.
absl::Status CheckMemory(const KvMemory& memory);

// --- The receiving side ---

// How a lease ended at the receiver.
struct LeaseResult {
  uint64_t lease = 0;
  // Ok: every layer of every leased page is there and matched its checksum. DataLoss: a page's
  // bytes or length are not what the sender had; nothing more will be written.
  absl::Status status;
  int64_t bytes = 0;
  absl::Duration duration;  // from the first write's arrival to the last one's verification
};
using LeaseDone = std::function<void(const LeaseResult&)>;

// Writes that were not taken, by cause, and what was.
struct KvReceiverStats {
  int64_t open_leases = 0;
  int64_t closing_leases = 0;   // closed, a copy into them still in flight
  int64_t bytes_received = 0;   // verified
  int64_t pages_received = 0;   // (layer, page) pairs, verified
  int64_t dropped_unknown = 0;  // lease unknown, closed or already ended
  int64_t dropped_duplicate = 0;
  int64_t dropped_outside = 0;      // layer or page outside the lease
  int64_t dropped_incarnation = 0;  // meant for a process that is gone
  int64_t damaged = 0;              // wrong checksum or length
  int64_t connections = 0;          // of senders, or of who has not said yet what it is
  int64_t connections_refused = 0;  // since the start: no sender of ours, or one out of order
};

class KvReceiver {
 public:
  virtual ~KvReceiver() = default;

  // For v1::Lease: how senders reach this process, and which life of it.
  virtual const std::string& endpoint() const = 0;
  virtual uint64_t incarnation() const = 0;

  // From now on until Close, writes for `lease` go into its pages. `lease` is as it will be sent:
  // lease (never used before in this incarnation), checksum_key (random), first_page, pages,
  // endpoint, incarnation. `rows` is the number of valid rows in all leased pages together: every
  // page is full but the last, which may be partial. With no pages, `rows` is 0 and on_done comes
  // at once. on_done is called at most once, never after Close has returned Ok.
  // InvalidArgument: a page outside the pool or twice, or rows that do not fit the pages.
  // AlreadyExists: the lease is open. FailedPrecondition: another incarnation's lease, or a page
  // that belongs to a lease which is not closed.
  virtual absl::Status Open(const v1::Lease& lease, int64_t rows, LeaseDone on_done) = 0;

  // The fence. From the call on no copy into the lease's pages starts. Ok: none is in flight
  // either, the pages may be used for something else, and the lease is forgotten. DeadlineExceeded:
  // one is still in flight after `timeout` (zero: just look); keep the pages and call again. An
  // unknown lease is Ok.
  // To be called for every lease, also after on_done.
  virtual absl::Status Close(uint64_t lease, absl::Duration timeout) = 0;

  virtual KvReceiverStats receiver_stats() const = 0;
};

// --- The sending side ---

// Names one transfer of this sender; never used twice.
using TransferId = uint64_t;

// Ok: everything was written and the receiver has verified it. Else: Unavailable, the receiver is
// gone, never was there, or is another incarnation; DeadlineExceeded; Cancelled, by Abort;
// NotFound, the receiver does not know the lease or has closed it; DataLoss, it got damaged bytes.
using SentDone = std::function<void(TransferId transfer, const absl::Status& status)>;

struct PageWrite {
  int64_t layer = 0;
  int64_t index = 0;       // of the page in the sequence: from lease.first_page() on
  int64_t page = 0;        // where it lies in the sender's memory
  int64_t rows = 0;        // valid rows: all, or fewer in the sequence's last page
  StreamPoint after = {};  // of the backend's stream: from there on the rows are written
};

struct KvSenderStats {
  int64_t transfers = 0;          // not ended
  int64_t queued_pages = 0;       // named, not started
  int64_t outstanding_bytes = 0;  // started, not known to be out of the sender's memory
  int64_t bytes_sent = 0;
  int64_t peers = 0;       // connections
  int64_t peers_lost = 0;  // since the start
};

class KvSender {
 public:
  virtual ~KvSender() = default;

  // Starts a transfer to the receiver of `lease`. It must be complete after `timeout` (finite). It
  // ends with exactly one on_sent, after which the sender's memory is not read for it; until then
  // the pages named in Write must stay as they are. It ends by itself once every layer of every
  // leased page was written. InvalidArgument: the lease's endpoint cannot be understood.
  // ResourceExhausted: too many transfers.
  virtual absl::StatusOr<TransferId> Begin(const v1::Lease& lease, absl::Duration timeout,
                                           SentDone on_sent) = 0;

  // Names pages that may be read from now on. Only references are queued; pages are read, summed
  // and sent as earlier ones leave. All or none are taken. InvalidArgument names the field that is
  // outside its range; AlreadyExists: (layer, index) was written before; NotFound: the transfer is
  // unknown or has ended (its on_sent has come or is about to).
  virtual absl::Status Write(TransferId transfer, absl::Span<const PageWrite> writes) = 0;

  // Ends the transfer with Cancelled, soon: once nothing reads the memory any more. Nothing happens
  // when it is unknown or has ended.
  virtual void Abort(TransferId transfer) = 0;

  virtual KvSenderStats sender_stats() const = 0;
};

// Both sides of one process. Destroying it ends all transfers (with Cancelled) and closes all
// leases; no callback comes afterwards.
class KvTransport {
 public:
  virtual ~KvTransport() = default;
  virtual KvSender& sender() = 0;
  virtual KvReceiver& receiver() = 0;

  // Ok while pages move. Else no page ever will: the error of the device whose memory this is, or
  // DeadlineExceeded, a copy (or the transport's thread) has been at it for `limit`. Time in which
  // nobody asks counts a second at most: to be called several times a second.
  virtual absl::Status CheckDevice(absl::Duration limit) = 0;
};

}  // namespace sluice::transport
