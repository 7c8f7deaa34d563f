// The sender's end of one connection: greets the receiver, writes pages of the transfers that go to
// it, and notices when it is silent while something is asked of it.
//
// Threads: the transport's.
// Errors: what ends the connection, as the transfers that go over it are told: Unavailable;
// FailedPrecondition when the receiver's KV has another layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/transport/device_pages.h"
#include "services/transport/message_reader.h"
#include "services/transport/receive_session.h"
#include "services/transport/shared_ring.h"
#include "services/transport/socket_link.h"
#include "services/transport/transfer_table.h"

namespace sluice::transport {

class SendSession {
 public:
  // With a ring pages are copied into it, without one they are written to the socket. `context` and
  // `transfers` must outlive the session.
  SendSession(const SessionContext* context, TransferTable* transfers,
              const TransferTable::Peer& peer, std::optional<SharedRing> ring);
  // Over a Unix socket: the receiver is offered this process's whole pool, which `handle` names,
  // to copy pages out of by itself; where it cannot, a ring.
  SendSession(const SessionContext* context, TransferTable* transfers,
              const TransferTable::Peer& peer, std::shared_ptr<const MemoryHandle> pool,
              int64_t pool_pages);

  // Once, first. Errors: no memory for copies through the host.
  absl::Status Greet(SocketLink* link);
  // Looks which copies are done. Then, in turn, Pump.
  absl::Status Collect();
  // Sends what there is to send, but no more than a few pages; true: there was something.
  absl::StatusOr<bool> Pump(SocketLink* link);

  // Where to read to; so many bytes have come.
  absl::Span<char> Room() { return reader_.Room(); }
  absl::Status Arrived(size_t bytes);

  // Every now and then. `since_last` does not count time in which this process did not run.
  absl::Status Tick(absl::Duration since_last, absl::Duration silence_max, SocketLink* link);

  // The connection has ended: the transfers that went over it end with `status`, those with copies
  // in flight by Settle.
  void Fail(const absl::Status& status);
  // After Fail. False: copies are in flight still. `wait`: until none is.
  bool Settle(bool wait) { return !device_.has_value() || device_->Settle(wait); }

 private:
  absl::StatusOr<bool> PumpRing(SocketLink* link);
  absl::StatusOr<bool> PumpSocket(SocketLink* link);
  // The same for pages that a PageMover reads first, and out of the pool.
  absl::StatusOr<bool> PumpDevice(SocketLink* link);
  bool SendFromDevice(SocketLink* link);
  absl::Status On(const Message& message);
  void Heard() { silence_ = absl::ZeroDuration(); }

  const SessionContext& context_;
  TransferTable& transfers_;
  const TransferTable::Peer peer_;
  std::optional<SharedRing> ring_;
  std::shared_ptr<const MemoryHandle> pool_;  // null: not offered, or refused
  int64_t pool_pages_ = 0;
  std::optional<DevicePagesOut> device_;
  MessageReader reader_;
  bool greet_again_ = false;
  bool welcome_ = false;
  uint64_t shared_ = 0;    // pages put into the ring, or told of in the pool
  uint64_t consumed_ = 0;  // of them
  struct Told {
    TransferTable::Job job;
    absl::Duration at;  // of time_
  };
  std::deque<Told> unread_;                   // of the pool, told of and not consumed
  absl::Duration time_;                       // of all ticks
  std::optional<DevicePagesOut::Page> page_;  // staged, on its way into the socket
  std::optional<TransferTable::Job> job_;     // on its way into the socket
  absl::Duration silence_;                    // while something was asked of the receiver
  absl::Duration since_ping_;
  uint64_t pings_ = 0;
};

}  // namespace sluice::transport
