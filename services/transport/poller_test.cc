#include "services/transport/poller.h"

#include <gtest/gtest.h>

#include <sys/socket.h>

namespace sluice::transport {
namespace {

// Whoever does not want to read just now would otherwise hear of the end again and again.
TEST(PollerTest, TheEndIsToldOfOnceWhereNothingIsWanted) {
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
  const FileDescriptor ours(sockets[0]);
  FileDescriptor theirs(sockets[1]);
  Poller poller;
  ASSERT_TRUE(poller.Add(ours.get(), Poller::Owner::kReceiver, 7, EPOLLIN));
  poller.Change(ours.get(), Poller::Owner::kReceiver, 7, 0);
  ASSERT_EQ(write(theirs.get(), "x", 1), 1);
  EXPECT_TRUE(poller.Wait(absl::ZeroDuration()).empty());
  theirs = FileDescriptor();
  const absl::Span<const Poller::Event> events = poller.Wait(absl::ZeroDuration());
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].id, 7u);
  EXPECT_NE(events[0].events & Poller::kMayWrite, 0u);
  EXPECT_TRUE(poller.Wait(absl::ZeroDuration()).empty());
  poller.Change(ours.get(), Poller::Owner::kReceiver, 7, EPOLLIN);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(poller.Wait(absl::ZeroDuration()).size(), 1u);
}

}  // namespace
}  // namespace sluice::transport
