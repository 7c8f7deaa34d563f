// KV transfer over UCX: the common cases over shared memory and TCP, and a process that is killed.
#include "services/transport/ucx.h"

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

class UcxTestNetwork final : public TestNetwork {
 public:
  explicit UcxTestNetwork(std::string transports) : transports_(std::move(transports)) {}
  std::unique_ptr<KvTransport> Join(const KvMemory& memory, uint64_t incarnation) override {
    auto transport =
        MakeUcxTransport({.memory = memory, .incarnation = incarnation, .transports = transports_});
    EXPECT_TRUE(transport.ok()) << transport.status();
    return *std::move(transport);
  }

 private:
  const std::string transports_;
};

TestNetworkMaker Over(std::string name, std::string transports) {
  return {std::move(name), [transports] { return std::make_unique<UcxTestNetwork>(transports); }};
}

INSTANTIATE_TEST_SUITE_P(Ucx, KvTransferTest,
                         testing::Values(Over("shared_memory", "posix,tcp,self"),
                                         Over("tcp", "tcp,self")),
                         NetworkName);

TEST(Ucx, SaysWhatIsWrongWhenItCannotStart) {
  const KvLayout layout{.layers = 1, .pages = 1, .page_rows = 4, .row_bytes = 40};
  const Pool pool(layout, 1);
  const auto no_transport =
      MakeUcxTransport({.memory = pool.memory(), .transports = "carrier_pigeon"});
  EXPECT_EQ(no_transport.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(no_transport.status().message(), testing::HasSubstr("carrier_pigeon"));
  const auto no_host = MakeUcxTransport({.memory = pool.memory(), .host = "not an address"});
  EXPECT_EQ(no_host.status().code(), absl::StatusCode::kInvalidArgument);
  const auto foreign_host = MakeUcxTransport({.memory = pool.memory(), .host = "192.0.2.1"});
  EXPECT_EQ(foreign_host.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(foreign_host.status().message(), testing::HasSubstr("192.0.2.1"));
  KvMemory no_memory = pool.memory();
  no_memory.layers.clear();
  EXPECT_EQ(MakeUcxTransport({.memory = no_memory}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// What this program does as the child of KilledReceiverTest: leases all its pages, says so on its
// standard output, and waits to be killed. They are more than a connection holds while nobody
// reads.
constexpr KvLayout kLayout{.layers = 8, .pages = 32, .page_rows = 64, .row_bytes = 2048};
constexpr char kChildVariable[] = "SLUICE_UCX_TEST_CHILD";

void BeTheReceiver(const std::string& transports) {
  UcxTestNetwork network(transports);
  Side side(&network, kLayout, 22);
  std::vector<uint32_t> pages(static_cast<size_t>(kLayout.pages));
  std::iota(pages.begin(), pages.end(), 0);
  const v1::Lease lease = side.MakeLease(1, 0, pages);
  Box<LeaseResult> done;
  if (!side.Open(lease, kLayout.pages * kLayout.page_rows, done).ok()) return;
  const std::string text = lease.SerializeAsString();
  const auto size = static_cast<uint32_t>(text.size());
  if (write(STDOUT_FILENO, &size, sizeof(size)) < 0) return;
  if (write(STDOUT_FILENO, text.data(), text.size()) < 0) return;
  while (side.transport->receiver().receiver_stats().pages_received < 1) std::this_thread::yield();
  if (write(STDOUT_FILENO, "r", 1) < 0) return;
  pause();
}

// The child, as its parent has it.
class Receiver {
 public:
  explicit Receiver(const char* transports) {
    int out[2];
    EXPECT_EQ(pipe(out), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(out[1], STDOUT_FILENO);
      setenv(kChildVariable, transports, 1);
      execl("/proc/self/exe", "ucx_test", nullptr);
      _exit(1);
    }
    EXPECT_GT(pid_, 0);
    close(out[1]);
    out_ = out[0];
  }
  Receiver(const Receiver&) = delete;
  ~Receiver() {
    Signal(SIGKILL);
    waitpid(pid_, nullptr, 0);
    close(out_);
  }
  v1::Lease ReadLease() {
    uint32_t size = 0;
    EXPECT_EQ(read(out_, &size, sizeof(size)), static_cast<ssize_t>(sizeof(size)));
    std::string text(size, '\0');
    EXPECT_EQ(read(out_, text.data(), size), static_cast<ssize_t>(size));
    v1::Lease lease;
    EXPECT_TRUE(lease.ParseFromString(text));
    return lease;
  }
  void WaitForAPage() {
    char received = 0;
    EXPECT_EQ(read(out_, &received, 1), 1);
  }
  void Signal(int signal) { kill(pid_, signal); }

 private:
  pid_t pid_ = -1;
  int out_ = -1;
};

class KilledReceiverTest : public testing::TestWithParam<std::pair<const char*, int>> {};

TEST_P(KilledReceiverTest, IsNoticedWithinASecond) {
  const auto [transports, signal] = GetParam();
  Receiver receiver(transports);
  const v1::Lease lease = receiver.ReadLease();
  UcxTestNetwork network(transports);
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
  const auto [transports, signal] = GetParam();
  Receiver receiver(transports);
  const v1::Lease lease = receiver.ReadLease();
  UcxTestNetwork network(transports);
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

INSTANTIATE_TEST_SUITE_P(Ucx, KilledReceiverTest,
                         testing::Values(std::pair("posix,tcp,self", SIGKILL),
                                         std::pair("posix,tcp,self", SIGSTOP),
                                         std::pair("tcp,self", SIGKILL),
                                         std::pair("tcp,self", SIGSTOP)));

}  // namespace
}  // namespace sluice::transport

// What UCX itself does not give back.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libucs\nleak:libucp\nleak:libuct\n";
}

int main(int argc, char** argv) {
  if (const char* transports = std::getenv(sluice::transport::kChildVariable)) {
    sluice::transport::BeTheReceiver(transports);
    return 1;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
