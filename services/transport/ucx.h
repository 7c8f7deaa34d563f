// KV transfer between processes over UCX: shared memory between processes of one host, TCP between
// hosts. Pages travel as eager UCP active messages straight out of the sender's KV memory; the
// receiver's thread copies them into the leased pages within the call that brings them, so Close
// waits for one copy at most. (Rendezvous into the page was tried: no faster for messages of 40 to
// 72 KiB, and a fetch in flight would have to be torn down when its sender hangs.)
//
// One thread a transport moves everything; it sleeps when there is nothing to move.
//
// A peer is given up when it has not been heard of for `peer_timeout` while something is asked of
// it, or when UCX says that the connection is gone, whichever comes first.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/transport/kv_transfer.h"

namespace sluice::transport {

struct UcxOptions {
  KvMemory memory;
  uint64_t incarnation = 0;  // of this process, drawn at random when it starts
  // What UCX may use, as its UCX_TLS and UCX_NET_DEVICES ("posix,cma,self", "tcp"; "eth0"). Empty:
  // those environment variables, and without them whatever there is.
  std::string transports;
  std::string net_devices;
  // IP address of this machine under which senders reach it; a free port is taken.
  std::string host = "127.0.0.1";
  absl::Duration peer_timeout = absl::Milliseconds(900);
  // False makes and verifies no checksums: only to measure what they cost. Both sides must agree.
  bool checksums = true;
};

// Unavailable, with UCX's reason and what to do about it, when UCX cannot start; InvalidArgument
// for memory that CheckMemory refuses.
absl::StatusOr<std::unique_ptr<KvTransport>> MakeUcxTransport(UcxOptions options);

}  // namespace sluice::transport
