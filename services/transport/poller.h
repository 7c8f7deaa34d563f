// Waits for many sockets at once: epoll with names for those who wait.
//
// Threads: one at a time.
#pragma once

#include <sys/epoll.h>

#include <array>
#include <cstdint>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "services/transport/file_descriptor.h"

namespace sluice::transport {

class Poller {
 public:
  enum class Owner : uint32_t { kTransport, kReceiver, kSender };
  struct Event {
    Owner owner = Owner::kTransport;
    uint64_t id = 0;  // below 2^56, the owner's
    uint32_t events = 0;
  };
  // What the system says of a socket that is of no more use, or that may be written to.
  static constexpr uint32_t kMayWrite = EPOLLOUT | EPOLLERR | EPOLLHUP;

  bool valid() const { return epoll_.valid(); }

  // False: the system refuses.
  bool Add(int descriptor, Owner owner, uint64_t id, uint32_t events);
  // No events: what the system tells of anyhow (kMayWrite without EPOLLOUT) is told of once.
  void Change(int descriptor, Owner owner, uint64_t id, uint32_t events);
  // Before the descriptor is closed.
  void Remove(int descriptor);

  // What has happened, until the next call; after `timeout` nothing. Events may come for what was
  // removed since the call.
  absl::Span<const Event> Wait(absl::Duration timeout);

 private:
  static constexpr size_t kEventsMax = 64;

  const FileDescriptor epoll_{epoll_create1(EPOLL_CLOEXEC)};
  std::array<Event, kEventsMax> events_;
};

}  // namespace sluice::transport
