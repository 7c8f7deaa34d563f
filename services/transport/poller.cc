#include "services/transport/poller.h"

#include <algorithm>

namespace sluice::transport {
namespace {

constexpr int kOwnerShift = 56;

epoll_event Wanted(Poller::Owner owner, uint64_t id, uint32_t events) {
  epoll_event event = {};
  event.events = events;
  event.data.u64 = static_cast<uint64_t>(owner) << kOwnerShift | id;
  return event;
}

}  // namespace

bool Poller::Add(int descriptor, Owner owner, uint64_t id, uint32_t events) {
  epoll_event event = Wanted(owner, id, events);
  return epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, descriptor, &event) == 0;
}

void Poller::Change(int descriptor, Owner owner, uint64_t id, uint32_t events) {
  // Errors and the other side's end are told of whatever is wanted: then once is enough.
  epoll_event event = Wanted(owner, id, events == 0 ? uint32_t{EPOLLET} : events);
  (void)epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, descriptor, &event);
}

void Poller::Remove(int descriptor) {
  epoll_event unused = {};
  (void)epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, descriptor, &unused);
}

absl::Span<const Poller::Event> Poller::Wait(absl::Duration timeout) {
  epoll_event found[kEventsMax];
  const int count = epoll_wait(epoll_.get(), found, kEventsMax,
                               static_cast<int>(absl::ToInt64Milliseconds(timeout)));
  const auto size = static_cast<size_t>(std::max(count, 0));
  for (size_t i = 0; i < size; ++i) {
    const uint64_t data = found[i].data.u64;
    events_[i] = {.owner = static_cast<Owner>(data >> kOwnerShift),
                  .id = data & ((uint64_t{1} << kOwnerShift) - 1),
                  .events = found[i].events};
  }
  return absl::MakeConstSpan(events_).first(size);
}

}  // namespace sluice::transport
