// The sending half of the socket transport: a connection to each receiver that transfers go to,
// over a Unix socket and a ring of shared memory when the receiver can be reached so, else over
// TCP.
//
// Threads: the transport's.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/transport/poller.h"
#include "services/transport/send_session.h"
#include "services/transport/socket_link.h"
#include "services/transport/socket_transport.h"
#include "services/transport/transfer_table.h"

namespace sluice::transport {

class SocketSender {
 public:
  // All must outlive the sender. `pool`: how others map this process's pool, or null.
  SocketSender(const SessionContext* context, TransferTable* transfers, Poller* poller,
               std::shared_ptr<const MemoryHandle> pool, Medium medium, absl::Duration silence_max);
  ~SocketSender();

  // Connects to new receivers and sends what there is; false: there was nothing to do.
  bool Pump();
  void OnEvent(uint64_t id, uint32_t events);
  void Tick(absl::Duration since_last);
  // Ends all connections.
  void Shutdown(const absl::Status& status);

 private:
  struct Connection {
    SocketLink link;
    SendSession session;
    uint32_t interest = 0;
  };

  void Connect(const TransferTable::Peer& peer);
  absl::StatusOr<std::unique_ptr<Connection>> ConnectTo(const TransferTable::Peer& peer);
  absl::StatusOr<std::unique_ptr<Connection>> ConnectByMemory(const TransferTable::Peer& peer,
                                                              const std::string& unix_name);
  absl::Status Read(Connection* connection);
  void WatchOutput(PeerId id, Connection* connection);
  void Lose(PeerId id, const absl::Status& status);
  void Settle(bool wait);

  const SessionContext& context_;
  TransferTable& transfers_;
  Poller& poller_;
  const std::shared_ptr<const MemoryHandle> pool_;
  const Medium medium_;
  const absl::Duration silence_max_;
  std::map<PeerId, std::unique_ptr<Connection>> connections_;
  PeerId first_ = 0;                                  // whose turn it is
  std::vector<std::unique_ptr<Connection>> leaving_;  // lost, with copies in flight
};

}  // namespace sluice::transport
