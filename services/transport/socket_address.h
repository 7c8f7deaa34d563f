// Where a transport listens, and how it is reached.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/transport/file_descriptor.h"

namespace sluice::transport {

class SocketAddress {
 public:
  // InvalidArgument: not an IP address, or not a port. Asks no name server.
  static absl::StatusOr<SocketAddress> Ip(const std::string& host, const std::string& port);
  // A Unix socket in Linux's abstract namespace, which ends with the network namespace.
  static SocketAddress Unix(absl::string_view name);

  const sockaddr* data() const { return reinterpret_cast<const sockaddr*>(&storage_); }
  socklen_t size() const { return size_; }
  int family() const { return storage_.ss_family; }

 private:
  sockaddr_storage storage_ = {};
  socklen_t size_ = 0;
};

// Sockets that do not block, and that a program started from here does not inherit. Unavailable
// with the system's reason.
absl::StatusOr<FileDescriptor> ListenAt(const SocketAddress& address);
// A TCP connection may still be under way.
absl::StatusOr<FileDescriptor> ConnectTo(const SocketAddress& address);
// Sets what a TCP connection wants: no delay, and an end when the other machine is gone.
void TuneTcp(int socket);

// That a listening socket got.
uint16_t PortOf(int socket);
// Of the process at the other end of a Unix socket; -1 when the system does not tell.
int64_t PeerUser(int socket);

// What a lease's endpoint says. Its text is "sluice-kv-3:", the incarnation (8 bytes), the name of
// the Unix socket, and HOST:PORT. The digit is the version of the text and of the messages.
struct SocketEndpoint {
  static constexpr size_t kUnixNameBytes = 42;

  uint64_t incarnation = 0;
  std::string unix_name;  // kUnixNameBytes
  std::string host;
  std::string port;

  std::string Encode() const;
  // InvalidArgument: none of ours.
  static absl::StatusOr<SocketEndpoint> Decode(absl::string_view text);
};

// Cannot be guessed: 128 random bits.
std::string MakeUnixName();

}  // namespace sluice::transport
