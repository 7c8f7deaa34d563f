// KV transfer over sockets: the common cases over shared memory and TCP, and a process that is
// killed or stopped.
#include "services/transport/socket_transport.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>

#include "services/transport/kv_transfer_cases.h"

namespace sluice::transport {
namespace {

// With a `kind` of device memory the processor is taken not to reach the pools.
enum class Device { kNone, kMapped, kNotMapped };

class SocketNetwork final : public TestNetwork {
 public:
  explicit SocketNetwork(Medium medium, Device device = Device::kNone)
      : medium_(medium), device_(device) {
    if (device == Device::kNotMapped) faults_->RefuseMaps();
  }
  std::unique_ptr<KvTransport> Join(const KvMemory& memory, uint64_t incarnation) override {
    SocketOptions options{.memory = memory, .incarnation = incarnation, .medium = medium_};
    if (device_ != Device::kNone) options.mover = std::make_unique<MemoryMover>(faults_);
    auto transport = MakeSocketTransport(std::move(options));
    EXPECT_TRUE(transport.ok()) << transport.status();
    return *std::move(transport);
  }
  MemoryMoverFaults& faults() { return *faults_; }

 private:
  const Medium medium_;
  const Device device_;
  const std::shared_ptr<MemoryMoverFaults> faults_ = std::make_shared<MemoryMoverFaults>();
};

TestNetworkMaker Over(std::string name, Medium medium, Device device = Device::kNone) {
  return {std::move(name),
          [medium, device] { return std::make_unique<SocketNetwork>(medium, device); }};
}

INSTANTIATE_TEST_SUITE_P(
    Socket, KvTransferTest,
    testing::Values(Over("shared_memory", Medium::kSharedMemory), Over("tcp", Medium::kTcp),
                    Over("device", Medium::kBest, Device::kMapped),
                    Over("device_out_of_reach", Medium::kBest, Device::kNotMapped),
                    Over("device_staged_shared_memory", Medium::kSharedMemory, Device::kMapped),
                    Over("device_staged_tcp", Medium::kTcp, Device::kMapped)),
    NetworkName);

TEST(SocketTransport, SaysWhatIsWrongWhenItCannotStart) {
  const KvLayout layout{.layers = 1, .pages = 1, .page_rows = 4, .row_bytes = 40};
  const Pool pool(layout, 1);
  const auto no_host = MakeSocketTransport({.memory = pool.memory(), .host = "not an address"});
  EXPECT_EQ(no_host.status().code(), absl::StatusCode::kInvalidArgument);
  const auto foreign_host = MakeSocketTransport({.memory = pool.memory(), .host = "192.0.2.1"});
  EXPECT_EQ(foreign_host.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(foreign_host.status().message(), testing::HasSubstr("192.0.2.1"));
  KvMemory no_memory = pool.memory();
  no_memory.layers.clear();
  EXPECT_EQ(MakeSocketTransport({.memory = no_memory}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// --- Two processes: one that this program is as a child, and that is killed or stopped ---

// More pages than a connection holds while nobody reads.
constexpr KvLayout kLayout{.layers = 8, .pages = 32, .page_rows = 64, .row_bytes = 2048};
constexpr char kChildVariable[] = "SLUICE_KV_TEST_CHILD";  // which child to be

void WriteLease(int to, const v1::Lease& lease) {
  const std::string text = lease.SerializeAsString();
  const auto size = static_cast<uint32_t>(text.size());
  EXPECT_EQ(write(to, &size, sizeof(size)), static_cast<ssize_t>(sizeof(size)));
  EXPECT_EQ(write(to, text.data(), text.size()), static_cast<ssize_t>(text.size()));
}
v1::Lease ReadLease(int from) {
  uint32_t size = 0;
  EXPECT_EQ(read(from, &size, sizeof(size)), static_cast<ssize_t>(sizeof(size)));
  std::string text(size, '\0');
  EXPECT_EQ(read(from, text.data(), size), static_cast<ssize_t>(size));
  v1::Lease lease;
  EXPECT_TRUE(lease.ParseFromString(text));
  return lease;
}

v1::Lease LeaseOfAll(const Side& side, uint64_t id) {
  std::vector<uint32_t> pages(static_cast<size_t>(kLayout.pages));
  std::iota(pages.begin(), pages.end(), 0);
  return side.MakeLease(id, 0, pages);
}

// Leases all its pages, says so on its standard output, and waits to be killed.
void BeTheReceiver(Device device) {
  SocketNetwork network(Medium::kBest, device);
  Side side(&network, kLayout, 22);
  const v1::Lease lease = LeaseOfAll(side, 1);
  Box<LeaseResult> done;
  if (!side.Open(lease, kLayout.pages * kLayout.page_rows, done).ok()) return;
  WriteLease(STDOUT_FILENO, lease);
  while (side.transport->receiver().receiver_stats().pages_received < 1) std::this_thread::yield();
  if (write(STDOUT_FILENO, "r", 1) < 0) return;
  pause();
}

// Reads leases of all pages from its standard input and sends what they want.
void BeTheSender(Medium medium, Device device) {
  SocketNetwork network(medium, device);
  Side side(&network, kLayout, 11);
  while (true) {
    const v1::Lease lease = ReadLease(STDIN_FILENO);
    Box<absl::Status> sent;
    (void)side.transport->sender().Write(side.Begin(lease, sent),
                                         AllWrites(kLayout, lease, kLayout.page_rows));
  }
}

// The child, as its parent has it.
class Child {
 public:
  explicit Child(const char* what) {
    int in[2], out[2];
    EXPECT_EQ(pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      setenv(kChildVariable, what, 1);
      execl("/proc/self/exe", "socket_transport_test", nullptr);
      _exit(1);
    }
    EXPECT_GT(pid_, 0);
    close(in[0]);
    close(out[1]);
    in_ = in[1];
    out_ = out[0];
  }
  Child(const Child&) = delete;
  ~Child() {
    Signal(SIGKILL);
    waitpid(pid_, nullptr, 0);
    close(in_);
    close(out_);
  }
  int in() const { return in_; }
  int out() const { return out_; }
  void WaitForAPage() {
    char received = 0;
    EXPECT_EQ(read(out_, &received, 1), 1);
  }
  void Signal(int signal) { kill(pid_, signal); }

 private:
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1;
};

struct Kill {
  Medium medium;
  int signal;
  Device device = Device::kNone;
};
class KilledReceiverTest : public testing::TestWithParam<Kill> {};

TEST_P(KilledReceiverTest, IsNoticedWithinASecond) {
  const auto [medium, signal, device] = GetParam();
  Child receiver(device == Device::kNone ? "receiver" : "device receiver");
  const v1::Lease lease = ReadLease(receiver.out());
  SocketNetwork network(medium, device);
  Side from(&network, kLayout, 11);
  Box<absl::Status> sent, again;
  const TransferId transfer = from.Begin(lease, sent);
  const int64_t rows = kLayout.page_rows;
  ASSERT_EQ(from.transport->sender().Write(transfer, {{0, 0, 0, rows}}), absl::OkStatus());
  receiver.WaitForAPage();
  receiver.Signal(signal);
  const absl::Time killed = absl::Now();
  (void)from.transport->sender().Write(transfer, {{0, 1, 1, rows}});
  EXPECT_EQ(CodeOf(sent), absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - killed, absl::Seconds(3));  // 1 s, and a busy machine
  // And whoever still believes in it is told the same.
  from.Begin(lease, again);
  EXPECT_EQ(CodeOf(again), absl::StatusCode::kUnavailable);
}

// Waits until no page has left for 50 ms.
void WaitUntilFull(const KvSender& sender) {
  int64_t bytes = -1;
  absl::Time since = absl::Now();
  while (absl::Now() - since < absl::Milliseconds(50)) {
    const int64_t now = sender.sender_stats().bytes_sent;
    if (now != bytes) since = absl::Now();
    bytes = now;
    std::this_thread::yield();
  }
}

// Nothing but the peer's silence gives back pages that are on their way to it.
TEST_P(KilledReceiverTest, AnAbortedTransferGivesItsPagesBack) {
  const auto [medium, signal, device] = GetParam();
  Child receiver(device == Device::kNone ? "receiver" : "device receiver");
  const v1::Lease lease = ReadLease(receiver.out());
  SocketNetwork network(medium, device);
  Side from(&network, kLayout, 11);
  KvSender& sender = from.transport->sender();
  Box<absl::Status> sent;
  const TransferId transfer = from.Begin(lease, sent);
  std::vector<PageWrite> writes = AllWrites(kLayout, lease, kLayout.page_rows);
  ASSERT_EQ(sender.Write(transfer, {writes[0]}), absl::OkStatus());
  receiver.WaitForAPage();
  receiver.Signal(signal);
  writes.erase(writes.begin());
  const absl::Time killed = absl::Now();
  (void)sender.Write(transfer, writes);
  WaitUntilFull(sender);
  sender.Abort(transfer);
  const absl::StatusCode code = CodeOf(sent);
  // Of a killed one the connection itself may have told first.
  if (signal == SIGSTOP || code != absl::StatusCode::kUnavailable) {
    EXPECT_EQ(code, absl::StatusCode::kCancelled);
  }
  EXPECT_LT(absl::Now() - killed, absl::Seconds(3));
  EXPECT_EQ(sender.sender_stats().outstanding_bytes, 0);
}

class KilledSenderTest : public KilledReceiverTest {};

// A sender that ends or hangs in the middle of its pages holds nothing up: not the fence, not the
// pages, not other senders.
TEST_P(KilledSenderTest, HoldsNothingUp) {
  const auto [medium, signal, device] = GetParam();
  SocketNetwork network(medium, device);
  Side to(&network, kLayout, 22);
  KvReceiver& receiver = to.transport->receiver();
  Child sender(device != Device::kNone ? "device" : medium == Medium::kTcp ? "tcp" : "memory");
  const v1::Lease lease = LeaseOfAll(to, 1);
  Box<LeaseResult> done, next_done;
  ASSERT_EQ(to.Open(lease, kLayout.pages * kLayout.page_rows, done), absl::OkStatus());
  WriteLease(sender.in(), lease);
  WaitForPages(to, 5);
  sender.Signal(signal);
  EXPECT_EQ(receiver.Close(1, kPatience), absl::OkStatus());

  const v1::Lease next = LeaseOfAll(to, 2);
  ASSERT_EQ(to.Open(next, kLayout.pages * kLayout.page_rows, next_done), absl::OkStatus());
  Side other(&network, kLayout, 12);
  Box<absl::Status> sent;
  ASSERT_EQ(other.transport->sender().Write(other.Begin(next, sent),
                                            AllWrites(kLayout, next, kLayout.page_rows)),
            absl::OkStatus());
  EXPECT_EQ(sent.Wait(), absl::OkStatus());
  ExpectArrived(other, to, next, kLayout.page_rows);
  if (signal == SIGKILL) {
    const absl::Time end = absl::Now() + kPatience;
    while (receiver.receiver_stats().connections > 1 && absl::Now() < end) {
      std::this_thread::yield();
    }
    EXPECT_EQ(receiver.receiver_stats().connections, 1);
  }
  // One that goes on is told that the lease is gone; nothing of it is written.
  sender.Signal(SIGCONT);
  ExpectArrived(other, to, next, kLayout.page_rows);
  EXPECT_EQ(receiver.receiver_stats().connections_refused, 0);
}

const auto kKills = testing::Values(
    Kill{Medium::kSharedMemory, SIGKILL}, Kill{Medium::kSharedMemory, SIGSTOP},
    Kill{Medium::kTcp, SIGKILL}, Kill{Medium::kTcp, SIGSTOP},
    Kill{Medium::kBest, SIGKILL, Device::kMapped}, Kill{Medium::kBest, SIGSTOP, Device::kMapped});
INSTANTIATE_TEST_SUITE_P(Socket, KilledReceiverTest, kKills);
INSTANTIATE_TEST_SUITE_P(Socket, KilledSenderTest, kKills);

void BeTheChild(absl::string_view what) {
  if (what == "receiver") BeTheReceiver(Device::kNone);
  if (what == "device receiver") BeTheReceiver(Device::kMapped);
  if (what == "memory") BeTheSender(Medium::kSharedMemory, Device::kNone);
  if (what == "tcp") BeTheSender(Medium::kTcp, Device::kNone);
  if (what == "device") BeTheSender(Medium::kBest, Device::kMapped);
}

}  // namespace
}  // namespace sluice::transport

int main(int argc, char** argv) {
  if (const char* child = std::getenv(sluice::transport::kChildVariable)) {
    sluice::transport::BeTheChild(child);
    return 1;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
