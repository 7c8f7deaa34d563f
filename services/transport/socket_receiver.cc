#include "services/transport/socket_receiver.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/status.h"
#include "services/base/log.h"
#include "services/transport/turns.h"

namespace sluice::transport {
namespace {

constexpr uint64_t kTcpListener = 0, kUnixListener = 1, kFirstConnection = 2;
constexpr int kAcceptedAtOnce = 16;
constexpr size_t kConnectionsMax = 1024;
constexpr size_t kStrangersMax = 64;
constexpr absl::Duration kHelloWithin = absl::Seconds(2);
constexpr size_t kOutputMax = 64 << 10;  // bytes not taken by a sender until it is not read either
constexpr absl::Duration kLogEvery = absl::Seconds(10);

bool IsOurs(int64_t user) { return user == 0 || user == int64_t{geteuid()}; }

}  // namespace

SocketReceiver::SocketReceiver(const SessionContext* context, LeaseTable* leases, Poller* poller)
    : context_(*context), leases_(*leases), poller_(*poller), next_id_(kFirstConnection) {}

SocketReceiver::~SocketReceiver() = default;

absl::Status SocketReceiver::Listen(const std::string& host) {
  SLUICE_ASSIGN_OR_RETURN(const SocketAddress address, SocketAddress::Ip(host, "0"));
  absl::StatusOr<FileDescriptor> tcp = ListenAt(address);
  if (!tcp.ok()) {
    return absl::UnavailableError(absl::StrCat("KV transport on ", host, ": ",
                                               tcp.status().message(),
                                               "; see that it is an address of this machine"));
  }
  tcp_ = *std::move(tcp);
  endpoint_ = {.incarnation = context_.incarnation,
               .unix_name = MakeUnixName(),
               .host = host,
               .port = absl::StrCat(PortOf(tcp_.get()))};
  SLUICE_ASSIGN_OR_RETURN(unix_, ListenAt(SocketAddress::Unix(endpoint_.unix_name)));
  if (!poller_.Add(tcp_.get(), Poller::Owner::kReceiver, kTcpListener, EPOLLIN) ||
      !poller_.Add(unix_.get(), Poller::Owner::kReceiver, kUnixListener, EPOLLIN)) {
    return absl::UnavailableError("KV transport: the system cannot watch its sockets");
  }
  return absl::OkStatus();
}

void SocketReceiver::OnEvent(uint64_t id, uint32_t events, absl::Time now) {
  if (id == kTcpListener) return Accept(tcp_.get(), /*shares_memory=*/false);
  if (id == kUnixListener) return Accept(unix_.get(), /*shares_memory=*/true);
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  if ((events & Poller::kMayWrite) != 0) found->second->link.MayWrite();
  const absl::Status status = Serve(id, found->second.get(), now);
  if (!status.ok()) Close(id, status);
}

void SocketReceiver::Tick(absl::Duration since_last) {
  std::vector<uint64_t> late;
  for (uint64_t id : strangers_) {
    Connection& connection = *connections_[id];
    connection.waited += since_last;
    if (connection.waited >= kHelloWithin) late.push_back(id);
  }
  for (uint64_t id : late) {
    Close(id, absl::DeadlineExceededError("no hello that fits came in time"));
  }
  if (paused_) Pause(false);
}

// --- Letting in ---

void SocketReceiver::Pause(bool pause) {
  paused_ = pause;
  const uint32_t events = pause ? 0u : EPOLLIN;
  poller_.Change(tcp_.get(), Poller::Owner::kReceiver, kTcpListener, events);
  poller_.Change(unix_.get(), Poller::Owner::kReceiver, kUnixListener, events);
}

void SocketReceiver::Accept(int listener, bool shares_memory) {
  for (int i = 0; i < kAcceptedAtOnce; ++i) {
    FileDescriptor socket(accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket.valid()) {
      Admit(std::move(socket), shares_memory);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return;
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      // It would be there at once again.
      Refused(absl::ErrnoToStatus(errno, "nobody can be let in"));
      return Pause(true);
    }
  }
}

void SocketReceiver::Admit(FileDescriptor socket, bool shares_memory) {
  if (shares_memory && !IsOurs(PeerUser(socket.get()))) {
    return Refused(absl::PermissionDeniedError(
        absl::StrCat("a process of user ", PeerUser(socket.get()), " has connected")));
  }
  if (connections_.size() >= kConnectionsMax) {
    return Refused(absl::ResourceExhaustedError(
        absl::StrCat("there are ", connections_.size(), " connections")));
  }
  if (strangers_.size() >= kStrangersMax) {
    Close(*strangers_.begin(), absl::ResourceExhaustedError("too many connections without hello"));
  }
  const uint64_t id = next_id_++;
  if (!poller_.Add(socket.get(), Poller::Owner::kReceiver, id, EPOLLIN)) {
    return Refused(absl::ResourceExhaustedError("the system cannot watch another socket"));
  }
  if (!shares_memory) TuneTcp(socket.get());
  strangers_.insert(id);
  connections_.emplace(id, std::make_unique<Connection>(Connection{
                               .link = SocketLink(std::move(socket)),
                               .session = ReceiveSession(&context_, &leases_, shares_memory),
                               .interest = EPOLLIN}));
  connection_count_ = static_cast<int64_t>(connections_.size());
}

// --- Those that are in ---

absl::Status SocketReceiver::Serve(uint64_t id, Connection* connection, absl::Time now) {
  SocketLink& link = connection->link;
  SLUICE_RETURN_IF_ERROR(link.Flush());
  if (MayRead(*connection)) {
    std::vector<FileDescriptor> passed;
    SLUICE_ASSIGN_OR_RETURN(const size_t bytes, link.Read(connection->session.Room(), &passed));
    SLUICE_RETURN_IF_ERROR(
        connection->session.Arrived(bytes, std::move(passed), now, &connection->out));
    if (connection->session.welcome()) strangers_.erase(id);
  }
  return Answer(id, connection);
}

bool SocketReceiver::MayRead(const Connection& connection) {
  return connection.link.queued_bytes() < kOutputMax && connection.session.may_read();
}

absl::Status SocketReceiver::Answer(uint64_t id, Connection* connection) {
  SocketLink& link = connection->link;
  link.Queue(connection->out);
  connection->out.clear();
  SLUICE_RETURN_IF_ERROR(link.Flush());
  const uint32_t interest =
      (MayRead(*connection) ? EPOLLIN : 0u) | (link.output_queued() ? EPOLLOUT : 0u);
  if (interest != connection->interest) {
    connection->interest = interest;
    poller_.Change(link.socket(), Poller::Owner::kReceiver, id, interest);
  }
  return absl::OkStatus();
}

void SocketReceiver::Pump(absl::Time now) {
  if (context_.mover == nullptr) return;
  size_t collected = 0;
  do {
    // First of all, so that the room that there is then is shared out in turn.
    collected = 0;
    for (auto& [id, connection] : connections_) {
      if (connection->session.busy()) {
        collected += connection->session.Collect(now, &connection->out);
        connection->copied = true;
      }
    }
    std::vector<std::pair<uint64_t, absl::Status>> lost;
    VisitInTurn(context_.mover, &connections_, &first_, [&](uint64_t id, Connection* connection) {
      if (!std::exchange(connection->copied, false)) return;
      absl::Status status = connection->session.Read(now, &connection->out);
      if (status.ok()) status = Answer(id, connection);
      if (!status.ok()) lost.emplace_back(id, status);
    });
    for (const auto& [id, status] : lost) Close(id, status);
  } while (collected > 0);
  for (auto& connection : leaving_) connection->session.Collect(now, &connection->out);
  leaving_.erase(std::remove_if(leaving_.begin(), leaving_.end(),
                                [](const auto& gone) { return !gone->session.busy(); }),
                 leaving_.end());
  copying_ = !leaving_.empty() ||
             std::any_of(connections_.begin(), connections_.end(),
                         [](const auto& entry) { return entry.second->session.busy(); });
}

void SocketReceiver::Close(uint64_t id, const absl::Status& status) {
  const auto found = connections_.find(id);
  poller_.Remove(found->second->link.socket());
  const bool was_welcome = found->second->session.welcome();
  found->second->session.End(absl::Now());
  if (found->second->session.busy()) {
    found->second->link = SocketLink(FileDescriptor());
    leaving_.push_back(std::move(found->second));
  }
  connections_.erase(found);
  strangers_.erase(id);
  connection_count_ = static_cast<int64_t>(connections_.size());
  if (!was_welcome || absl::IsInvalidArgument(status)) Refused(status);
}

void SocketReceiver::Refused(const absl::Status& status) {
  ++refused_count_;
  const absl::Time now = absl::Now();
  if (now - last_log_ < kLogEvery) return;
  LogWarn("refused connections to the KV transport",
          {{"count", refused_count_ - refused_logged_}, {"last", status}});
  last_log_ = now;
  refused_logged_ = refused_count_;
}

}  // namespace sluice::transport
