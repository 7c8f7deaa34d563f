#include "services/transport/socket_address.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <random>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/base/status.h"

namespace sluice::transport {
namespace {

constexpr absl::string_view kEndpointPrefix = "sluice-kv-3:";
constexpr absl::string_view kUnixPrefix = "sluice-kv-";
static_assert(kUnixPrefix.size() + 32 == SocketEndpoint::kUnixNameBytes);

// An idle connection to a machine that is gone ends after kIdleSeconds + kProbes * kProbeSeconds.
constexpr int kIdleSeconds = 10;
constexpr int kProbeSeconds = 5;
constexpr int kProbes = 3;

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", absl::ErrnoToStatus(errno, "").message()));
}

absl::StatusOr<FileDescriptor> MakeSocket(const SocketAddress& address) {
  FileDescriptor made(socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!made.valid()) return SystemError("no socket can be made");
  return made;
}

}  // namespace

absl::StatusOr<SocketAddress> SocketAddress::Ip(const std::string& host, const std::string& port) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  if (host.empty() || port.empty() ||
      getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", host, "\", port \"", port, "\": not an IP address and a port"));
  }
  SocketAddress address;
  std::memcpy(&address.storage_, found->ai_addr, found->ai_addrlen);
  address.size_ = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

SocketAddress SocketAddress::Unix(absl::string_view name) {
  SocketAddress address;
  auto* const unix_address = reinterpret_cast<sockaddr_un*>(&address.storage_);
  unix_address->sun_family = AF_UNIX;
  // A name that begins with a zero is abstract; its length is the address's.
  const size_t size = std::min(name.size(), sizeof(unix_address->sun_path) - 1);
  std::memcpy(unix_address->sun_path + 1, name.data(), size);
  address.size_ = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + size);
  return address;
}

absl::StatusOr<FileDescriptor> ListenAt(const SocketAddress& address) {
  SLUICE_ASSIGN_OR_RETURN(FileDescriptor socket, MakeSocket(address));
  if (bind(socket.get(), address.data(), address.size()) != 0 ||
      listen(socket.get(), SOMAXCONN) != 0) {
    return SystemError("cannot listen");
  }
  return socket;
}

absl::StatusOr<FileDescriptor> ConnectTo(const SocketAddress& address) {
  SLUICE_ASSIGN_OR_RETURN(FileDescriptor socket, MakeSocket(address));
  if (address.family() != AF_UNIX) TuneTcp(socket.get());
  if (connect(socket.get(), address.data(), address.size()) != 0 && errno != EINPROGRESS) {
    return SystemError("cannot connect");
  }
  return socket;
}

void TuneTcp(int socket) {
  const auto set = [&](int level, int option, int value) {
    (void)setsockopt(socket, level, option, &value, sizeof(value));
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, kIdleSeconds);
  set(IPPROTO_TCP, TCP_KEEPINTVL, kProbeSeconds);
  set(IPPROTO_TCP, TCP_KEEPCNT, kProbes);
}

uint16_t PortOf(int socket) {
  sockaddr_storage bound = {};
  socklen_t size = sizeof(bound);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return 0;
  // The port lies at the same place in IPv4 and IPv6 addresses.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&bound)->sin_port);
}

int64_t PeerUser(int socket) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return -1;
  return peer.uid;
}

std::string SocketEndpoint::Encode() const {
  const absl::string_view life(reinterpret_cast<const char*>(&incarnation), sizeof(incarnation));
  return absl::StrCat(kEndpointPrefix, life, unix_name, host, ":", port);
}

absl::StatusOr<SocketEndpoint> SocketEndpoint::Decode(absl::string_view text) {
  const auto foreign = [bytes = text.size()] {
    return absl::InvalidArgumentError(
        absl::StrCat("an endpoint of ", bytes, " bytes is not one of \"", kEndpointPrefix, "\""));
  };
  SocketEndpoint endpoint;
  if (!absl::ConsumePrefix(&text, kEndpointPrefix)) return foreign();
  if (text.size() < sizeof(incarnation) + kUnixNameBytes) return foreign();
  std::memcpy(&endpoint.incarnation, text.data(), sizeof(incarnation));
  endpoint.unix_name = std::string(text.substr(sizeof(incarnation), kUnixNameBytes));
  text.remove_prefix(sizeof(incarnation) + kUnixNameBytes);
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return foreign();
  endpoint.host = std::string(text.substr(0, colon));
  endpoint.port = std::string(text.substr(colon + 1));
  SLUICE_RETURN_IF_ERROR(SocketAddress::Ip(endpoint.host, endpoint.port).status());
  return endpoint;
}

std::string MakeUnixName() {
  std::random_device random;
  return absl::StrCat(kUnixPrefix, absl::Hex(random(), absl::kZeroPad8),
                      absl::Hex(random(), absl::kZeroPad8), absl::Hex(random(), absl::kZeroPad8),
                      absl::Hex(random(), absl::kZeroPad8));
}

}  // namespace sluice::transport
