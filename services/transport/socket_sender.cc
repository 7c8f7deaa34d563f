#include "services/transport/socket_sender.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/transport/socket_address.h"
#include "services/transport/turns.h"

namespace sluice::transport {

SocketSender::SocketSender(const SessionContext* context, TransferTable* transfers, Poller* poller,
                           std::shared_ptr<const MemoryHandle> pool, Medium medium,
                           absl::Duration silence_max)
    : context_(*context),
      transfers_(*transfers),
      poller_(*poller),
      pool_(std::move(pool)),
      medium_(medium),
      silence_max_(silence_max) {}

SocketSender::~SocketSender() = default;

bool SocketSender::Pump() {
  bool worked = false;
  for (const TransferTable::Peer& peer : transfers_.NewPeers()) {
    Connect(peer);
    worked = true;
  }
  std::vector<std::pair<PeerId, absl::Status>> lost;
  // First of all, so that the room that there is then is shared out in turn.
  for (auto& [id, connection] : connections_) {
    absl::Status status = connection->session.Collect();
    if (!status.ok()) lost.emplace_back(id, std::move(status));
  }
  for (const auto& [id, status] : std::exchange(lost, {})) Lose(id, status);
  VisitInTurn(context_.mover, &connections_, &first_, [&](PeerId id, Connection* connection) {
    const absl::StatusOr<bool> pumped = connection->session.Pump(&connection->link);
    if (pumped.ok()) {
      worked |= *pumped;
      WatchOutput(id, connection);
    } else {
      lost.emplace_back(id, pumped.status());
    }
  });
  for (const auto& [id, status] : lost) Lose(id, status);
  Settle(/*wait=*/false);
  return worked;
}

void SocketSender::OnEvent(uint64_t id, uint32_t events) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  if ((events & Poller::kMayWrite) != 0) found->second->link.MayWrite();
  // Before anything is written: what the receiver said last counts, also when it has gone since.
  const absl::Status status = Read(found->second.get());
  if (!status.ok()) Lose(id, status);
}

absl::Status SocketSender::Read(Connection* connection) {
  std::vector<FileDescriptor> unwanted;
  SLUICE_ASSIGN_OR_RETURN(const size_t bytes,
                          connection->link.Read(connection->session.Room(), &unwanted));
  return connection->session.Arrived(bytes);
}

void SocketSender::Tick(absl::Duration since_last) {
  std::vector<std::pair<PeerId, absl::Status>> lost;
  for (auto& [id, connection] : connections_) {
    absl::Status status = connection->session.Tick(since_last, silence_max_, &connection->link);
    if (!status.ok()) lost.emplace_back(id, std::move(status));
  }
  for (const auto& [id, status] : lost) Lose(id, status);
}

void SocketSender::Shutdown(const absl::Status& status) {
  for (const TransferTable::Peer& peer : transfers_.NewPeers()) {
    transfers_.FailPeer(peer.id, status);
  }
  while (!connections_.empty()) Lose(connections_.begin()->first, status);
  Settle(/*wait=*/true);
}

void SocketSender::Lose(PeerId id, const absl::Status& status) {
  const auto found = connections_.find(id);
  std::unique_ptr<Connection> connection = std::move(found->second);
  connections_.erase(found);
  poller_.Remove(connection->link.socket());
  connection->session.Fail(status);
  connection->link = SocketLink(FileDescriptor());
  leaving_.push_back(std::move(connection));
}

void SocketSender::Settle(bool wait) {
  leaving_.erase(std::remove_if(leaving_.begin(), leaving_.end(),
                                [&](const auto& gone) { return gone->session.Settle(wait); }),
                 leaving_.end());
}

void SocketSender::WatchOutput(PeerId id, Connection* connection) {
  const uint32_t interest = connection->link.output_queued() ? EPOLLIN | EPOLLOUT : EPOLLIN;
  if (interest == connection->interest) return;
  connection->interest = interest;
  poller_.Change(connection->link.socket(), Poller::Owner::kSender, id, interest);
}

// --- Connecting ---

void SocketSender::Connect(const TransferTable::Peer& peer) {
  absl::StatusOr<std::unique_ptr<Connection>> made = ConnectTo(peer);
  if (made.ok() && !poller_.Add((*made)->link.socket(), Poller::Owner::kSender, peer.id, EPOLLIN)) {
    made = absl::UnavailableError("the system cannot watch another socket");
  }
  if (made.ok()) {
    const absl::Status greeted = (*made)->session.Greet(&(*made)->link);  // goes out with a Pump
    if (!greeted.ok()) made = absl::UnavailableError(greeted.message());
  }
  if (!made.ok()) {
    transfers_.FailPeer(peer.id, made.status());
    return;
  }
  Connection& connection = *connections_.emplace(peer.id, *std::move(made)).first->second;
  connection.interest = EPOLLIN;
}

absl::StatusOr<std::unique_ptr<SocketSender::Connection>> SocketSender::ConnectTo(
    const TransferTable::Peer& peer) {
  SLUICE_ASSIGN_OR_RETURN(const SocketEndpoint endpoint, SocketEndpoint::Decode(peer.endpoint));
  if (medium_ != Medium::kTcp) {
    // On another host or in another network namespace it fails at once.
    auto by_memory = ConnectByMemory(peer, endpoint.unix_name);
    if (by_memory.ok() || medium_ == Medium::kSharedMemory) return by_memory;
  }
  SLUICE_ASSIGN_OR_RETURN(const SocketAddress address,
                          SocketAddress::Ip(endpoint.host, endpoint.port));
  SLUICE_ASSIGN_OR_RETURN(FileDescriptor socket, transport::ConnectTo(address));
  return std::make_unique<Connection>(
      Connection{.link = SocketLink(std::move(socket)),
                 .session = SendSession(&context_, &transfers_, peer, std::nullopt)});
}

absl::StatusOr<std::unique_ptr<SocketSender::Connection>> SocketSender::ConnectByMemory(
    const TransferTable::Peer& peer, const std::string& unix_name) {
  SLUICE_ASSIGN_OR_RETURN(FileDescriptor socket,
                          transport::ConnectTo(SocketAddress::Unix(unix_name)));
  // Whoever listens there now must not get what is meant for a process of ours.
  const int64_t user = PeerUser(socket.get());
  if (user != int64_t{geteuid()} && geteuid() != 0) {
    return absl::UnavailableError(absl::StrCat("the receiver is a process of user ", user));
  }
  if (context_.mover != nullptr && pool_ != nullptr && medium_ != Medium::kSharedMemory) {
    return std::make_unique<Connection>(Connection{
        .link = SocketLink(std::move(socket)),
        .session = SendSession(&context_, &transfers_, peer, pool_, context_.layout.pages)});
  }
  SLUICE_ASSIGN_OR_RETURN(SharedRing ring, SharedRing::Create(context_.layout));
  return std::make_unique<Connection>(
      Connection{.link = SocketLink(std::move(socket)),
                 .session = SendSession(&context_, &transfers_, peer, std::move(ring))});
}

}  // namespace sluice::transport
