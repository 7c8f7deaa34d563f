// The receiving half of the socket transport: listens, takes connections in, and lets their
// sessions answer. Anybody who can reach the port may connect: what does not say a hello that fits
// within a moment, or is out of order later, is closed and counted, and costs nothing else.
//
// Threads: the transport's, except the counts.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/transport/lease_table.h"
#include "services/transport/poller.h"
#include "services/transport/receive_session.h"
#include "services/transport/socket_address.h"
#include "services/transport/socket_link.h"

namespace sluice::transport {

class SocketReceiver {
 public:
  // All must outlive the receiver.
  SocketReceiver(const SessionContext* context, LeaseTable* leases, Poller* poller);
  ~SocketReceiver();

  // On a free TCP port of `host` and on a Unix socket. InvalidArgument: not an IP address.
  // Unavailable: not an address of this machine, or the system's limits.
  absl::Status Listen(const std::string& host);
  // Where; once Listen was Ok.
  const SocketEndpoint& endpoint() const { return endpoint_; }

  void OnEvent(uint64_t id, uint32_t events, absl::Time now);
  // Every now and then while NeedsTicks.
  void Tick(absl::Duration since_last);
  bool NeedsTicks() const { return !strangers_.empty() || paused_ || copying_; }
  // Looks at copies into memory that the processor does not reach.
  void Pump(absl::Time now);

  int64_t connections() const { return connection_count_; }
  int64_t refused() const { return refused_count_; }

 private:
  struct Connection {
    SocketLink link;
    ReceiveSession session;
    uint32_t interest = 0;
    absl::Duration waited;  // for its hello
    std::string out;        // to be queued
    bool copied = false;    // had copies in flight as this pass began
  };

  void Accept(int listener, bool shares_memory);
  void Admit(FileDescriptor socket, bool shares_memory);
  absl::Status Serve(uint64_t id, Connection* connection, absl::Time now);
  static bool MayRead(const Connection& connection);
  absl::Status Answer(uint64_t id, Connection* connection);
  void Close(uint64_t id, const absl::Status& status);
  void Refused(const absl::Status& status);
  void Pause(bool pause);

  const SessionContext& context_;
  LeaseTable& leases_;
  Poller& poller_;
  SocketEndpoint endpoint_;
  FileDescriptor tcp_, unix_;
  std::map<uint64_t, std::unique_ptr<Connection>> connections_;
  uint64_t first_ = 0;                                // whose turn it is
  std::set<uint64_t> strangers_;                      // without a hello that fits; the oldest first
  std::vector<std::unique_ptr<Connection>> leaving_;  // closed, with copies in flight
  bool copying_ = false;                              // as of the last Pump
  uint64_t next_id_;
  bool paused_ = false;  // nobody is let in until the next tick

  std::atomic<int64_t> connection_count_{0}, refused_count_{0};
  absl::Time last_log_ = absl::InfinitePast();
  int64_t refused_logged_ = 0;
};

}  // namespace sluice::transport
