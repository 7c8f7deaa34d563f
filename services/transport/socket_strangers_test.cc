// What the socket transport does with those it should not trust: the connection is closed and
// counted, nothing is leaked or written, and who has business there is served as before.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>

#include "services/transport/kv_message.h"
#include "services/transport/kv_transfer_cases.h"
#include "services/transport/shared_ring.h"
#include "services/transport/socket_address.h"
#include "services/transport/socket_link.h"
#include "services/transport/socket_transport.h"

namespace sluice::transport {

// Of the common cases only what they are made of is used here.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(KvTransferTest);

namespace {

constexpr KvLayout kLayout{.layers = 2, .pages = 4, .page_rows = 4, .row_bytes = 40};
constexpr uint64_t kIncarnation = 22;

class Network final : public TestNetwork {
 public:
  std::unique_ptr<KvTransport> Join(const KvMemory& memory, uint64_t incarnation) override {
    auto transport =
        MakeSocketTransport({.memory = memory, .incarnation = incarnation, .medium = medium});
    EXPECT_TRUE(transport.ok()) << transport.status();
    return *std::move(transport);
  }
  Medium medium = Medium::kBest;
};

size_t OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

// Until `holds`, or long enough.
template <typename Condition>
bool WaitUntil(const Condition& holds) {
  const absl::Time end = absl::Now() + kPatience;
  while (!holds() && absl::Now() < end) std::this_thread::yield();
  return holds();
}

template <typename T>
std::string Bytes(const T& message) {
  std::string bytes;
  AppendMessage(message, &bytes);
  return bytes;
}

Hello GoodHello(bool shares_memory) {
  return {.incarnation = kIncarnation,
          .layers = kLayout.layers,
          .page_rows = kLayout.page_rows,
          .row_bytes = kLayout.row_bytes,
          .ring_slots = shares_memory ? 2u : 0u};
}

// Somebody who has connected.
class Stranger {
 public:
  Stranger(const KvReceiver& receiver, bool shares_memory)
      : link_(Connect(receiver.endpoint(), shares_memory)) {}

  Stranger& Send(const std::string& bytes, int descriptor = -1) {
    if (descriptor >= 0) link_.QueueDescriptors({descriptor});
    link_.Queue(bytes);
    (void)link_.Flush();  // it may have been closed by now
    return *this;
  }
  // The same descriptor twice, in one message.
  void SendTwo(const std::string& bytes, int descriptor) {
    link_.QueueDescriptors({descriptor, descriptor});
    link_.Queue(bytes);
    EXPECT_EQ(link_.Flush(), absl::OkStatus());
  }
  // True once the other side has closed; what it said before is in heard().
  bool IsClosed() {
    while (true) {
      pollfd waiting = {.fd = link_.socket(), .events = POLLIN, .revents = 0};
      if (poll(&waiting, 1, static_cast<int>(absl::ToInt64Milliseconds(kPatience))) <= 0) {
        return false;
      }
      if (!Listen()) return true;
    }
  }
  bool Hears(size_t bytes) {
    return WaitUntil([&] { return !Listen() || heard_.size() >= bytes; }) && heard_.size() >= bytes;
  }
  const std::string& heard() const { return heard_; }

 private:
  static FileDescriptor Connect(const std::string& text, bool shares_memory) {
    const SocketEndpoint endpoint = *SocketEndpoint::Decode(text);
    absl::StatusOr<FileDescriptor> socket =
        ConnectTo(shares_memory ? SocketAddress::Unix(endpoint.unix_name)
                                : *SocketAddress::Ip(endpoint.host, endpoint.port));
    EXPECT_TRUE(socket.ok()) << socket.status();
    pollfd waiting = {.fd = socket->get(), .events = POLLOUT, .revents = 0};
    EXPECT_EQ(poll(&waiting, 1, 10'000), 1);
    return *std::move(socket);
  }
  // False once it is closed.
  bool Listen() {
    char room[4096];
    std::vector<FileDescriptor> unwanted;
    const absl::StatusOr<size_t> bytes = link_.Read(absl::MakeSpan(room), &unwanted);
    if (bytes.ok()) heard_.append(room, *bytes);
    return bytes.ok();
  }

  SocketLink link_;
  std::string heard_;
};

class StrangersTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    descriptors_ = OpenDescriptors();
    to_ = std::make_unique<Side>(&network_, kLayout, kIncarnation);
  }
  // Whatever was done before: a transfer over either medium works, and nothing is left behind.
  void TearDown() override {
    if (IsSkipped()) return;
    ExpectTransfers();
    EXPECT_TRUE(WaitUntil([&] { return stats().connections == 0; }));
    to_.reset();
    EXPECT_EQ(OpenDescriptors(), descriptors_);
  }

  KvReceiver& receiver() { return to_->transport->receiver(); }
  KvReceiverStats stats() { return receiver().receiver_stats(); }
  bool shares_memory() const { return GetParam(); }

  void ExpectTransfers() {
    for (Medium medium : {Medium::kSharedMemory, Medium::kTcp}) {
      network_.medium = medium;
      Side from(&network_, kLayout, 11);
      const v1::Lease lease = to_->MakeLease(++last_lease_, 0, {3, 1});
      Box<LeaseResult> done;
      Box<absl::Status> sent;
      ASSERT_EQ(to_->Open(lease, 7, done), absl::OkStatus());
      const TransferId transfer = from.Begin(lease, sent);
      ASSERT_EQ(from.transport->sender().Write(transfer, AllWrites(kLayout, lease, 3)),
                absl::OkStatus());
      EXPECT_EQ(sent.Wait(), absl::OkStatus());
      ExpectArrived(from, *to_, lease, 3);
      EXPECT_EQ(receiver().Close(last_lease_, kPatience), absl::OkStatus());
    }
  }
  // That so many more than before were refused, and no other.
  void ExpectRefused(int64_t more) {
    refused_ += more;
    EXPECT_TRUE(WaitUntil([&] { return stats().connections_refused >= refused_; }));
    EXPECT_EQ(stats().connections_refused, refused_);
  }
  // A sender whose hello is good.
  std::unique_ptr<Stranger> Greeted() {
    auto stranger = std::make_unique<Stranger>(receiver(), shares_memory());
    const SharedRing ring = *SharedRing::Create(kLayout);
    stranger->Send(Bytes(GoodHello(shares_memory())), shares_memory() ? ring.descriptor() : -1);
    EXPECT_TRUE(stranger->Hears(sizeof(MessageHead) + sizeof(Welcome)));
    EXPECT_EQ(stranger->heard(), Bytes(Welcome{}));
    return stranger;
  }

  Network network_;
  std::unique_ptr<Side> to_;
  uint64_t last_lease_ = 100;
  int64_t refused_ = 0;
  size_t descriptors_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Socket, StrangersTest, testing::Values(false, true),
                         [](const auto& info) { return info.param ? "shared_memory" : "tcp"; });

// What makes sense over one of the two.
class TcpStrangersTest : public StrangersTest {};
class MemoryStrangersTest : public StrangersTest {};
INSTANTIATE_TEST_SUITE_P(Socket, TcpStrangersTest, testing::Values(false));
INSTANTIATE_TEST_SUITE_P(Socket, MemoryStrangersTest, testing::Values(true));

TEST_P(StrangersTest, RandomBytes) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (size_t size : {8, 17, 56, 1000, 100'000}) {
    std::string bytes(size, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    EXPECT_TRUE(Stranger(receiver(), shares_memory()).Send(bytes).IsClosed()) << size << " bytes";
    ExpectRefused(1);
  }
}

TEST_P(StrangersTest, EveryTruncatedHello) {
  const std::string hello = Bytes(GoodHello(shares_memory()));
  const SharedRing ring = *SharedRing::Create(kLayout);
  for (size_t size = 0; size < hello.size(); ++size) {
    const int passed = shares_memory() && size > 0 ? ring.descriptor() : -1;
    Stranger(receiver(), shares_memory()).Send(hello.substr(0, size), passed);
  }
  ExpectRefused(static_cast<int64_t>(hello.size()));
}

TEST_P(StrangersTest, MessagesThatAreOutOfOrder) {
  const uint64_t page_bytes = kLayout.page_bytes();
  std::string unknown_type = Bytes(Ping{});
  unknown_type[4] = 99;
  const struct {
    const char* name;
    std::string bytes;
  } cases[] = {{"garbage", std::string(100, 'x')},
               {"a second hello", Bytes(GoodHello(shares_memory()))},
               {"a receiver's message", Bytes(Welcome{})},
               {"another receiver's message", Bytes(Consumed{})},
               {"an unknown type", unknown_type},
               {"a page a byte too long", Bytes(PageMessage{.bytes = page_bytes + 1})},
               {"a page without end", Bytes(PageMessage{.bytes = UINT64_MAX})}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    EXPECT_TRUE(Greeted()->Send(c.bytes).IsClosed());
    ExpectRefused(1);
    EXPECT_TRUE(Stranger(receiver(), shares_memory()).Send(Bytes(Ping{}) + c.bytes).IsClosed())
        << "without hello";
    ExpectRefused(1);
  }
}

TEST_P(StrangersTest, HellosThatDoNotFit) {
  const Hello good = GoodHello(shares_memory());
  Hello life = good, layers = good, rows = good, row = good;
  life.incarnation += 1;
  layers.layers = INT64_MAX;
  rows.page_rows = -1;
  row.row_bytes = 0;
  const std::pair<Hello, Verdict> cases[] = {{life, Verdict::kOtherIncarnation},
                                             {layers, Verdict::kOtherLayout},
                                             {rows, Verdict::kOtherLayout},
                                             {row, Verdict::kOtherLayout}};
  for (const auto& [hello, verdict] : cases) {
    Stranger stranger(receiver(), shares_memory());
    stranger.Send(Bytes(hello));
    const std::string answer = Bytes(Welcome{.verdict = verdict});
    EXPECT_TRUE(stranger.Hears(answer.size()));
    EXPECT_EQ(stranger.heard(), answer);
    EXPECT_TRUE(stranger.Send(Bytes(PageMessage{})).IsClosed()) << "it goes on all the same";
    ExpectRefused(1);
  }
}

TEST_P(StrangersTest, WhoDawdlesIsClosed) {
  const absl::Time start = absl::Now();
  Stranger silent(receiver(), shares_memory()), slow(receiver(), shares_memory());
  slow.Send(Bytes(GoodHello(false)).substr(0, 20));
  EXPECT_TRUE(silent.IsClosed());
  EXPECT_TRUE(slow.IsClosed());
  EXPECT_GE(absl::Now() - start, absl::Seconds(1.9));
  ExpectRefused(2);
}

TEST_P(StrangersTest, AThousandConnections) {
  rlimit files = {};
  getrlimit(RLIMIT_NOFILE, &files);
  if (files.rlim_max < 1200) GTEST_SKIP() << "no more than " << files.rlim_max << " open files";
  const rlimit before = files;
  files.rlim_cur = std::max<rlim_t>(files.rlim_cur, 1200);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
  const std::unique_ptr<Stranger> sender = Greeted();
  std::vector<std::unique_ptr<Stranger>> strangers;
  for (int i = 0; i < 1000; ++i) {
    strangers.push_back(std::make_unique<Stranger>(receiver(), shares_memory()));
  }
  // The last 64 may wait for their two seconds; who said hello stays.
  EXPECT_TRUE(WaitUntil([&] { return stats().connections_refused >= 936; }));
  EXPECT_LE(stats().connections, 65);
  EXPECT_TRUE(strangers.front()->IsClosed());
  ExpectTransfers();
  sender->Send(Bytes(Ping{}));
  EXPECT_TRUE(sender->Hears(sizeof(MessageHead) * 2 + sizeof(Welcome) + sizeof(Pong)));
  strangers.clear();
  // What the listener did not come to take in is gone too.
  EXPECT_TRUE(WaitUntil([&] { return stats().connections_refused == 1000; }));
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

TEST_P(StrangersTest, NoDescriptorsLeft) {
  const std::unique_ptr<Stranger> stays = Greeted();  // who says nothing is let go after a while
  EXPECT_TRUE(WaitUntil([&] { return stats().connections == 1; }));
  rlimit files = {};
  getrlimit(RLIMIT_NOFILE, &files);
  const rlimit before = files;
  const SocketEndpoint endpoint = *SocketEndpoint::Decode(receiver().endpoint());
  const SocketAddress address = shares_memory() ? SocketAddress::Unix(endpoint.unix_name)
                                                : *SocketAddress::Ip(endpoint.host, endpoint.port);
  const FileDescriptor waiting(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  // No descriptor above is to be free, and none below: accept holds one for a moment.
  std::vector<FileDescriptor> below;
  do {
    below.emplace_back(dup(waiting.get()));
  } while (below.back().get() < waiting.get());
  files.rlim_cur = static_cast<rlim_t>(below.back().get());
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
  ASSERT_EQ(connect(waiting.get(), address.data(), address.size()), 0);
  EXPECT_TRUE(WaitUntil([&] { return stats().connections_refused >= 2; }));
  // It is tried again each 20 ms, not all the time.
  const int64_t refused = stats().connections_refused;
  const absl::Time start = absl::Now();
  EXPECT_TRUE(WaitUntil([&] { return absl::Now() - start > absl::Milliseconds(200); }));
  EXPECT_LE(stats().connections_refused - refused, 15);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(WaitUntil([&] { return stats().connections == 2; }));
}

TEST_P(TcpStrangersTest, APageThatStallsHoldsNoFenceUp) {
  const std::string before = to_->pool.Copy();
  Box<LeaseResult> done;
  ASSERT_EQ(to_->Open(to_->MakeLease(1, 0, {2}), 4, done), absl::OkStatus());
  const std::unique_ptr<Stranger> sender = Greeted();
  const auto page_bytes = static_cast<size_t>(kLayout.page_bytes());
  const PageMessage page{.header = {.incarnation = kIncarnation, .lease = 1, .transfer = 9},
                         .bytes = page_bytes};
  sender->Send(Bytes(Ping{}) + Bytes(page) + std::string(page_bytes - 1, 'x'));
  const size_t pong = sizeof(MessageHead) * 2 + sizeof(Welcome) + sizeof(Pong);
  EXPECT_TRUE(sender->Hears(pong));  // what is behind it has been read too, or is about to be
  EXPECT_EQ(receiver().Close(1, absl::ZeroDuration()), absl::OkStatus());
  sender->Send("x");
  const std::string answer = Bytes(AnswerMessage{.transfer = 9, .answer = Answer::kUnknownLease});
  EXPECT_TRUE(sender->Hears(pong + answer.size()));
  EXPECT_THAT(sender->heard(), testing::EndsWith(answer));
  EXPECT_TRUE(before == to_->pool.Copy());
}

TEST_P(MemoryStrangersTest, RingsThatAreNotToBeTrusted) {
  const auto memory = [](int64_t bytes, int seals) {
    FileDescriptor made(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    EXPECT_EQ(ftruncate(made.get(), bytes), 0);
    EXPECT_EQ(fcntl(made.get(), F_ADD_SEALS, seals), 0);
    return made;
  };
  const int64_t slot = 192;  // a page of 160 bytes, rounded up
  const FileDescriptor good = memory(2 * slot, F_SEAL_SHRINK), open = memory(2 * slot, F_SEAL_GROW),
                       small = memory(2 * slot - 1, F_SEAL_SHRINK),
                       empty = memory(0, F_SEAL_SHRINK),
                       no_memory(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const Hello hello = GoodHello(true);
  Hello no_slots = hello, many_slots = hello;
  no_slots.ring_slots = 0;
  many_slots.ring_slots = UINT64_MAX;
  const struct {
    const char* name;
    Hello hello;
    int descriptor;
    bool taken;
  } cases[] = {{"a good one", hello, good.get(), true},
               {"none", hello, -1, false},
               {"one that may shrink", hello, open.get(), false},
               {"a byte short", hello, small.get(), false},
               {"empty", hello, empty.get(), false},
               {"no memory", hello, no_memory.get(), false},
               {"no slots", no_slots, good.get(), false},
               {"more slots than there are numbers", many_slots, good.get(), false}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    Stranger stranger(receiver(), true);
    stranger.Send(Bytes(c.hello), c.descriptor);
    if (c.taken) {
      EXPECT_TRUE(stranger.Hears(sizeof(MessageHead) + sizeof(Welcome)));
      EXPECT_EQ(stranger.heard(), Bytes(Welcome{}));
      stranger.Send(Bytes(Ping{}), c.descriptor);  // a second one
    }
    EXPECT_TRUE(stranger.IsClosed());
    ExpectRefused(1);
  }
  // Two in one message, where a ring is one.
  {
    Stranger stranger(receiver(), true);
    stranger.SendTwo(Bytes(hello), good.get());
    EXPECT_TRUE(stranger.IsClosed());
    ExpectRefused(1);
  }
  Stranger stranger(receiver(), true);
  stranger.Send(Bytes(hello).substr(0, 1), good.get());
  stranger.Send(Bytes(hello).substr(1), good.get());
  EXPECT_TRUE(stranger.IsClosed());
  ExpectRefused(1);
}

TEST_P(MemoryStrangersTest, OtherUsers) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can be somebody else";
  const auto become = [](uid_t user) {  // of this thread alone
    return syscall(SYS_setresuid, -1, user, -1);
  };
  ASSERT_EQ(become(65534), 0);
  Stranger stranger(receiver(), true);
  ASSERT_EQ(become(0), 0);
  EXPECT_TRUE(stranger.IsClosed());
  ExpectRefused(1);
}

// The other way round: what a sender is told by who answers in a receiver's place.
TEST(StrangeReceiver, IsAnError) {
  const std::string welcome = Bytes(Welcome{});
  const struct {
    const char* name;
    std::string says;
  } cases[] = {{"garbage", std::string(100, 'x')},
               {"nothing", ""},
               {"a hello", Bytes(GoodHello(false))},
               {"an answer before the welcome", Bytes(AnswerMessage{.transfer = 1})},
               {"a verdict that there is not", Bytes(Welcome{.verdict = static_cast<Verdict>(7)})},
               {"slots over TCP", welcome + Bytes(Consumed{.pages = 1})},
               {"a second welcome", welcome + welcome}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const FileDescriptor listener = *ListenAt(*SocketAddress::Ip("127.0.0.1", "0"));
    Network network;
    Side from(&network, kLayout, 11);
    v1::Lease lease = from.MakeLease(1, 0, {1});
    lease.set_incarnation(kIncarnation);
    lease.set_endpoint(SocketEndpoint{.incarnation = kIncarnation,
                                      .unix_name = MakeUnixName(),
                                      .host = "127.0.0.1",
                                      .port = absl::StrCat(PortOf(listener.get()))}
                           .Encode());
    Box<absl::Status> sent;
    const TransferId transfer = from.Begin(lease, sent);
    (void)from.transport->sender().Write(transfer, AllWrites(kLayout, lease, 4));
    FileDescriptor socket;
    ASSERT_TRUE(WaitUntil([&] {
      if (!socket.valid()) socket = FileDescriptor(accept(listener.get(), nullptr, nullptr));
      return socket.valid();
    }));
    SocketLink link(std::move(socket));
    link.Queue(c.says);
    EXPECT_EQ(link.Flush(), absl::OkStatus());
    EXPECT_EQ(CodeOf(sent), absl::StatusCode::kUnavailable);
    EXPECT_EQ(from.transport->sender().sender_stats().peers, 0);
  }
}

TEST(SocketEndpoint, TakesNothingButItsOwn) {
  const SocketEndpoint good{.incarnation = 0x3A3A3A3A3A3A3A3A,  // colons
                            .unix_name = MakeUnixName(),
                            .host = "::1",
                            .port = "4711"};
  const std::string text = good.Encode();
  const absl::StatusOr<SocketEndpoint> decoded = SocketEndpoint::Decode(text);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->incarnation, good.incarnation);
  EXPECT_EQ(decoded->unix_name, good.unix_name);
  EXPECT_EQ(decoded->host, "::1");
  EXPECT_EQ(decoded->port, "4711");
  EXPECT_NE(MakeUnixName(), good.unix_name);
  for (size_t size = 0; size < text.size() - 4; ++size) {
    EXPECT_EQ(SocketEndpoint::Decode(text.substr(0, size)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << size << " bytes";
  }
  std::string old = text;
  old[10] = '1';
  EXPECT_FALSE(SocketEndpoint::Decode(old).ok());
  SocketEndpoint name = good;
  name.host = "localhost";
  EXPECT_FALSE(SocketEndpoint::Decode(name.Encode()).ok());
}

TEST(SocketTransport, WorksOverIpv6) {
  const Pool pool(kLayout, 1), other(kLayout, 2);
  auto to = MakeSocketTransport({.memory = pool.memory(), .incarnation = 1, .host = "::1"});
  if (absl::IsUnavailable(to.status())) GTEST_SKIP() << to.status();
  auto from = MakeSocketTransport(
      {.memory = other.memory(), .incarnation = 2, .host = "::1", .medium = Medium::kTcp});
  ASSERT_TRUE(to.ok() && from.ok()) << to.status() << from.status();
  v1::Lease lease;
  lease.set_lease(1);
  lease.add_pages(3);
  lease.set_endpoint((*to)->receiver().endpoint());
  lease.set_incarnation(1);
  ASSERT_EQ((*to)->receiver().Open(lease, 4, [](const LeaseResult&) {}), absl::OkStatus());
  Box<absl::Status> sent;
  const auto transfer = (*from)->sender().Begin(
      lease, kPatience, [&](TransferId, const absl::Status& status) { sent.Put(status); });
  ASSERT_TRUE(transfer.ok()) << transfer.status();
  ASSERT_EQ((*from)->sender().Write(*transfer, AllWrites(kLayout, lease, 4)), absl::OkStatus());
  EXPECT_EQ(sent.Wait(), absl::OkStatus());
}

}  // namespace
}  // namespace sluice::transport
