#include "tools/sluice/free_ports.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice::cli {
namespace {

constexpr int kTries = 200;

// A bound socket, or -1. `port` 0: any, told in *port.
int Bind(const addrinfo& address, int* port) {
  const int fd = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_storage bound{};
  std::memcpy(&bound, address.ai_addr, address.ai_addrlen);
  in_port_t& bound_port = bound.ss_family == AF_INET6
                              ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                              : reinterpret_cast<sockaddr_in&>(bound).sin_port;
  bound_port = htons(static_cast<uint16_t>(*port));
  socklen_t length = address.ai_addrlen;
  if (bind(fd, reinterpret_cast<sockaddr*>(&bound), length) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length) != 0) {
    close(fd);
    return -1;
  }
  *port = ntohs(bound_port);
  return fd;
}

}  // namespace

HeldPorts::~HeldPorts() {
  for (const int fd : fds_) close(fd);
}

absl::Status HeldPorts::Fill(ClusterConfig* config) {
  RouterSection& router = config->router;
  for (Address* address : {&router.http, &router.grpc, &router.attach, &router.admin}) {
    SLUICE_RETURN_IF_ERROR(FillOne(address, router.count, 10));
  }
  for (InstanceSection* section : {&config->prefill, &config->decode, &config->mixed}) {
    for (Address* address : {&section->admin, &section->metrics}) {
      SLUICE_RETURN_IF_ERROR(FillOne(address, section->count, 1));
    }
  }
  for (Address* address : {&config->balancer.grpc, &config->balancer.metrics}) {
    SLUICE_RETURN_IF_ERROR(FillOne(address, config->balancer.enabled ? 1 : 0, 1));
  }
  return absl::OkStatus();
}

absl::Status HeldPorts::FillOne(Address* address, int count, int stride) {
  if (count == 0) return absl::OkStatus();
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(address->host.c_str(), nullptr, &hints, &found); error != 0) {
    return absl::UnavailableError(
        absl::StrCat("the address '", address->host, "' cannot be found: ", gai_strerror(error)));
  }
  for (int i = 0; address->port != 0 && i < count; ++i) {
    int port = address->port + i * stride;
    const int fd = Bind(*found, &port);
    if (fd >= 0) {
      fds_.push_back(fd);
      continue;
    }
    const std::string reason = std::strerror(errno);
    freeaddrinfo(found);
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address->host, ":", port, ": ",
                                               reason, "; is another cluster running?"));
  }
  for (int attempt = 0; address->port == 0 && attempt < kTries; ++attempt) {
    std::vector<int> fds;
    int first = 0;
    for (int i = 0; i < count; ++i) {
      int port = i == 0 ? 0 : first + i * stride;
      const int fd = port > 65535 ? -1 : Bind(*found, &port);
      if (fd < 0) break;
      if (i == 0) first = port;
      fds.push_back(fd);
    }
    if (static_cast<int>(fds.size()) == count) {
      fds_.insert(fds_.end(), fds.begin(), fds.end());
      freeaddrinfo(found);
      address->port = first;
      return absl::OkStatus();
    }
    for (const int fd : fds) close(fd);
  }
  const std::string reason = std::strerror(errno);
  freeaddrinfo(found);
  if (address->port != 0) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("no ", count, " free ports on '", address->host, "': ", reason));
}

}  // namespace sluice::cli
