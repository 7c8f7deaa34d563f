// KV transfer between processes over sockets: through shared memory between processes of one host,
// over TCP between hosts. The receiver's thread copies pages into the leased ones within the call
// that brings them, so Close waits for one copy at most; with a PageMover for the batches of its
// device that are queued by then, other leases' too. A sender that stalls in the middle of a page
// holds nothing up.
//
// One thread a transport moves everything; it sleeps when there is nothing to move. A receiver is
// given up when it has not been heard of for `silence_max` while something is asked of it, or when
// the connection is gone, whichever comes first.
//
// Nothing is encrypted, and a sender proves no more than that it knows the lease: the port belongs
// on a trusted network. Whoever else connects is refused (see socket_receiver.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/ops/page_mover.h"
#include "services/transport/kv_transfer.h"

namespace sluice::transport {

// What a sender uses: the best that reaches a receiver, a ring of shared memory, TCP.
enum class Medium { kBest, kSharedMemory, kTcp };

struct SocketOptions {
  KvMemory memory;
  // Where the processor does not reach `memory`: moves pages out of it and into it.
  std::unique_ptr<PageMover> mover;
  uint64_t incarnation = 0;  // of this process, drawn at random when it starts
  // IP address of this machine under which senders reach it; a free port is taken.
  std::string host = "127.0.0.1";
  absl::Duration silence_max = absl::Milliseconds(900);
  // To measure and to test: the best that reaches a receiver is right for all else.
  Medium medium = Medium::kBest;
  // False makes and verifies no checksums: only to measure what they cost. Both sides must agree.
  bool checksums = true;
};

// InvalidArgument: memory that CheckMemory refuses, or a host that is no IP address. Unavailable,
// with the system's reason, when it cannot listen there.
absl::StatusOr<std::unique_ptr<KvTransport>> MakeSocketTransport(SocketOptions options);

}  // namespace sluice::transport
