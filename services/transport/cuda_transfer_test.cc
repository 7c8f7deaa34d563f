// KV transfer between memories of GPUs. Needs one.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "kernels/cuda/cuda_backend.h"
#include "services/transport/kv_transfer_cases.h"
#include "services/transport/page_checksum.h"
#include "services/transport/socket_transport.h"

namespace sluice::transport {

// Of the common cases only what they are made of is used here.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(KvTransferTest);

namespace {

// Pages of DeepSeek-V3.
constexpr KvLayout kLayout{.layers = 8, .pages = 48, .page_rows = 64, .row_bytes = 1152};
constexpr char kChildVariable[] = "SLUICE_KV_TEST_CHILD";

using Bytes = std::vector<std::byte>;

Bytes RandomBytes(size_t size, uint64_t seed) {
  Bytes bytes(size);
  std::mt19937_64 random(seed);
  for (size_t at = 0; at < size; at += sizeof(uint64_t)) {
    const uint64_t drawn = random();
    std::memcpy(&bytes[at], &drawn, std::min(sizeof(drawn), size - at));
  }
  return bytes;
}

Backend& Gpu() {
  static const auto backend = MakeCudaBackend({});
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    std::abort();
  }
  return **backend;
}

// What one process has: a pool of random bytes on the GPU, and a transport.
struct GpuSide {
  GpuSide(uint64_t seed, uint64_t incarnation, Medium medium = Medium::kBest) {
    const Bytes bytes = Contents(seed);
    buffer = *Gpu().AllocateShareable(bytes.size(), "KV cache");
    EXPECT_NE(buffer.handle, nullptr) << "this GPU's memory cannot be handed over";
    Fill(bytes);
    memory.layout = kLayout;
    memory.handle = buffer.handle;
    for (int64_t layer = 0; layer < kLayout.layers; ++layer) {
      memory.layers.push_back(buffer.As<std::byte>() +
                              layer * kLayout.pages * kLayout.page_bytes());
    }
    auto made = MakeSocketTransport({.memory = memory,
                                     .mover = *Gpu().MakePageMover(),
                                     .incarnation = incarnation,
                                     .medium = medium});
    EXPECT_TRUE(made.ok()) << made.status();
    transport = *std::move(made);
  }
  static Bytes Contents(uint64_t seed) {
    return RandomBytes(static_cast<size_t>(kLayout.layers * kLayout.pages * kLayout.page_bytes()),
                       seed);
  }
  void Fill(const Bytes& bytes) {
    EXPECT_EQ(Gpu().CopyToDevice(buffer.memory.get(), bytes.data(), bytes.size(), {}),
              absl::OkStatus());
    EXPECT_EQ(Gpu().Sync({}), absl::OkStatus());
  }
  Bytes Copy() const {
    Bytes bytes(buffer.bytes);
    EXPECT_EQ(Gpu().CopyToHost(bytes.data(), buffer.memory.get(), bytes.size(), {}),
              absl::OkStatus());
    EXPECT_EQ(Gpu().Sync({}), absl::OkStatus());
    return bytes;
  }
  v1::Lease LeaseOfAll(uint64_t id) const {
    v1::Lease lease;
    lease.set_lease(id);
    lease.set_checksum_key(id * 0x9E3779B97F4A7C15u);
    for (int64_t page = 0; page < kLayout.pages; ++page) {
      lease.add_pages(static_cast<uint32_t>(page));
    }
    lease.set_endpoint(transport->receiver().endpoint());
    lease.set_incarnation(transport->receiver().incarnation());
    return lease;
  }
  absl::Status Open(const v1::Lease& lease, Box<LeaseResult> done) {
    return transport->receiver().Open(
        lease, kLayout.pages * kLayout.page_rows,
        [done](const LeaseResult& result) mutable { done.Put(result); });
  }
  TransferId Send(const v1::Lease& lease, Box<absl::Status> sent, StreamPoint after = {}) {
    const auto transfer = transport->sender().Begin(
        lease, kPatience,
        [sent](TransferId, const absl::Status& status) mutable { sent.Put(status); });
    std::vector<PageWrite> writes = AllWrites(kLayout, lease, kLayout.page_rows);
    for (PageWrite& write : writes) write.after = after;
    EXPECT_EQ(transport->sender().Write(*transfer, writes), absl::OkStatus());
    return *transfer;
  }

  DeviceBuffer buffer;
  KvMemory memory;
  std::unique_ptr<KvTransport> transport;
};

// Every size and alignment: copied whole, and summed as the CPU does.
TEST(CudaPages, SumsAndCopiesAreTheCpus) {
  const uint64_t seed = std::random_device{}();
  std::fprintf(stderr, "seed %llu\n", static_cast<unsigned long long>(seed));
  const size_t sizes[] = {1, 7, 8, 15, 16, 17, 63, 64, 65, 1151, 1152, 16384, 73727, 73728};
  constexpr size_t kRoom = 80 << 10;
  const std::unique_ptr<PageMover> mover = *Gpu().MakePageMover();
  const DeviceBuffer from = *Gpu().Allocate(std::size(sizes) * kRoom, "from");
  const DeviceBuffer to = *Gpu().Allocate(std::size(sizes) * kRoom, "to");
  const DeviceBuffer host = *mover->AllocateStaging(std::size(sizes) * kRoom);
  const Bytes bytes = RandomBytes(from.bytes, seed);
  const Bytes poison(to.bytes, std::byte{0xA5});
  ASSERT_EQ(Gpu().CopyToDevice(from.memory.get(), bytes.data(), bytes.size(), {}),
            absl::OkStatus());
  for (const size_t from_shift : {0, 1, 8}) {
    for (const size_t to_shift : {0, 3}) {
      ASSERT_EQ(Gpu().CopyToDevice(to.memory.get(), poison.data(), poison.size(), {}),
                absl::OkStatus());
      ASSERT_EQ(Gpu().Sync({}), absl::OkStatus());
      std::memset(host.memory.get(), 0xA5, host.bytes);
      // Device to device, device to host, host to device (back into place), and sums alone.
      std::vector<PageCopy> copies, staged;
      const PageKey key = ExpandKey(seed + from_shift);
      for (size_t i = 0; i < std::size(sizes); ++i) {
        const std::byte* const source = from.As<std::byte>() + i * kRoom + from_shift;
        copies.push_back({.from = source,
                          .to = to.As<std::byte>() + i * kRoom + to_shift,
                          .bytes = sizes[i],
                          .key = key});
        copies.push_back({.from = source, .to = nullptr, .bytes = sizes[i], .key = key});
        copies.push_back({.from = source,
                          .to = host.As<std::byte>() + i * kRoom,
                          .bytes = sizes[i],
                          .key = key});
        staged.push_back({.from = host.As<std::byte>() + i * kRoom,
                          .to = from.As<std::byte>() + i * kRoom + from_shift,
                          .bytes = sizes[i],
                          .key = key});
      }
      const auto batch = *mover->Queue(copies, {});
      const auto back = *mover->Queue(staged, {});
      while (!*back->Done()) std::this_thread::yield();
      ASSERT_TRUE(*batch->Done());
      Bytes got(to.bytes);
      ASSERT_EQ(Gpu().CopyToHost(got.data(), to.memory.get(), got.size(), {}), absl::OkStatus());
      ASSERT_EQ(Gpu().Sync({}), absl::OkStatus());
      const PageSumKernel& cpu = PageSumKernels().back();
      for (size_t i = 0; i < std::size(sizes); ++i) {
        SCOPED_TRACE(sizes[i]);
        const std::byte* const source = bytes.data() + i * kRoom + from_shift;
        const std::byte* const target = got.data() + i * kRoom + to_shift;
        EXPECT_EQ(std::memcmp(target, source, sizes[i]), 0);
        EXPECT_EQ(target[sizes[i]], std::byte{0xA5}) << "written behind the end";
        EXPECT_TRUE(to_shift == 0 || target[-1] == std::byte{0xA5}) << "written before the start";
        EXPECT_EQ(std::memcmp(host.As<std::byte>() + i * kRoom, source, sizes[i]), 0);
        EXPECT_EQ(host.As<std::byte>()[i * kRoom + sizes[i]], std::byte{0xA5});
        const PageSums want = cpu.sum(key, {source, sizes[i]});
        for (const PageSums& sums :
             {batch->sums(3 * i), batch->sums(3 * i + 1), batch->sums(3 * i + 2), back->sums(i)}) {
          EXPECT_EQ(sums.first, want.first);
          EXPECT_EQ(sums.second, want.second);
        }
      }
    }
  }
}

TEST(CudaPages, MapsNothingButMemoryThatFits) {
  const std::unique_ptr<PageMover> mover = *Gpu().MakePageMover();
  const DeviceBuffer pool = *Gpu().AllocateShareable(5 << 20, "pool");
  ASSERT_NE(pool.handle, nullptr);
  EXPECT_TRUE(mover->Map(*pool.handle).ok());
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  MemoryHandle wrong_file = *pool.handle, too_large = *pool.handle, odd = *pool.handle,
               closed = *pool.handle, none = *pool.handle;
  wrong_file.descriptors = {null};
  too_large.bytes = too_large.chunk_bytes = pool.handle->bytes + (2 << 20);
  odd.bytes = odd.chunk_bytes = pool.handle->bytes - 1;
  closed.descriptors = {1 << 20};
  none.descriptors.clear();
  for (const MemoryHandle& handle : {wrong_file, too_large, odd, closed, none}) {
    EXPECT_EQ(mover->Map(handle).status().code(), absl::StatusCode::kFailedPrecondition);
  }
  close(null);
  // And all is well afterwards.
  EXPECT_TRUE(mover->Map(*pool.handle).ok());
  EXPECT_EQ(Gpu().Sync({}), absl::OkStatus());
}

// Sends pages that are not there, and says what is known of the device after that.
[[noreturn]] void SendFromNowhere() {
  const GpuSide to(1, 22);
  KvMemory nowhere = to.memory;
  nowhere.handle = nullptr;
  for (std::byte*& layer : nowhere.layers) layer = reinterpret_cast<std::byte*>(4096);
  const auto from =
      *MakeSocketTransport({.memory = nowhere, .mover = *Gpu().MakePageMover(), .incarnation = 11});
  const bool was_well = from->CheckDevice(kPatience).ok();
  const v1::Lease lease = to.LeaseOfAll(1);
  Box<absl::Status> sent;
  const auto transfer = from->sender().Begin(
      lease, kPatience,
      [sent](TransferId, const absl::Status& status) mutable { sent.Put(status); });
  const absl::Status named =
      from->sender().Write(*transfer, AllWrites(kLayout, lease, kLayout.page_rows));
  sent.Wait();
  const absl::Status status = from->CheckDevice(kPatience);
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  std::_Exit(was_well && named.ok() && absl::IsInternal(status) ? 7 : 8);
}

TEST(CudaFailureDeathTest, ADeviceThatFailsInACopyIsKnown) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  // Whichever of the mover's calls comes next after the fault tells of it.
  EXPECT_EXIT(SendFromNowhere(), testing::ExitedWithCode(7),
              "(moving KV|starting to move KV|choosing the device): CUDA says "
              "cudaErrorIllegalAddress");
}

class CudaTransferTest : public testing::TestWithParam<Medium> {};
INSTANTIATE_TEST_SUITE_P(Media, CudaTransferTest,
                         testing::Values(Medium::kBest, Medium::kSharedMemory, Medium::kTcp));

TEST_P(CudaTransferTest, MovesALease) {
  GpuSide from(1, 11, GetParam()), to(2, 22, GetParam());
  for (const uint64_t id : {1, 2}) {
    const v1::Lease lease = to.LeaseOfAll(id);
    Box<LeaseResult> done;
    Box<absl::Status> sent;
    ASSERT_EQ(to.Open(lease, done), absl::OkStatus());
    from.Send(lease, sent);
    EXPECT_EQ(sent.Wait(), absl::OkStatus());
    EXPECT_EQ(done.Wait().value_or(LeaseResult{.status = absl::UnknownError("")}).status,
              absl::OkStatus());
    EXPECT_TRUE(to.Copy() == GpuSide::Contents(id));
    ASSERT_EQ(to.transport->receiver().Close(id, kPatience), absl::OkStatus());
    from.Fill(GpuSide::Contents(id + 1));
  }
}

// The pages are written by work that is queued, and not done, when they are handed over.
TEST_P(CudaTransferTest, WaitsForThePoint) {
  GpuSide from(1, 11, GetParam()), to(2, 22, GetParam());
  const v1::Lease lease = to.LeaseOfAll(1);
  Box<LeaseResult> done;
  Box<absl::Status> sent;
  ASSERT_EQ(to.Open(lease, done), absl::OkStatus());
  const Bytes late = GpuSide::Contents(3);
  const DeviceBuffer pinned = *Gpu().AllocateHost(late.size(), "late");
  const DeviceBuffer scratch = *Gpu().Allocate(late.size(), "scratch");
  std::memcpy(pinned.memory.get(), late.data(), late.size());
  for (int i = 0; i < 50; ++i) {  // a millisecond each
    ASSERT_EQ(Gpu().CopyToDevice(scratch.memory.get(), pinned.memory.get(), late.size(), {}),
              absl::OkStatus());
  }
  ASSERT_EQ(Gpu().CopyToDevice(from.buffer.memory.get(), pinned.memory.get(), late.size(), {}),
            absl::OkStatus());
  from.Send(lease, sent, *Gpu().Point({}));
  EXPECT_EQ(sent.Wait(), absl::OkStatus());
  EXPECT_TRUE(to.Copy() == late);
}

TEST_P(CudaTransferTest, ADamagedPageIsRefused) {
  GpuSide from(1, 11, GetParam()), to(2, 22, GetParam());
  const v1::Lease lease = to.LeaseOfAll(1);
  v1::Lease changed = lease;  // the same as damaged bytes, seen from the receiver
  changed.set_checksum_key(lease.checksum_key() ^ 1);
  Box<LeaseResult> done;
  Box<absl::Status> sent;
  ASSERT_EQ(to.Open(lease, done), absl::OkStatus());
  from.Send(changed, sent);
  const auto result = done.Wait();
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(CodeOf(sent), absl::StatusCode::kDataLoss);
  EXPECT_EQ(to.transport->receiver().Close(1, kPatience), absl::OkStatus());
}

// --- Two processes on one GPU ---

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

// Leases all its pages and says so on its standard output; says when all have come.
void BeTheReceiver() {
  GpuSide side(2, 22);
  for (uint64_t id = 1;; ++id) {
    const v1::Lease lease = side.LeaseOfAll(id);
    Box<LeaseResult> done;
    if (!side.Open(lease, done).ok()) return;
    WriteLease(STDOUT_FILENO, lease);
    const auto result = done.Wait();
    const bool good = result.has_value() && result->status.ok() &&
                      side.transport->receiver().Close(id, kPatience).ok();
    if (!good || write(STDOUT_FILENO, "r", 1) != 1) return;
  }
}

// Reads leases of all pages from its standard input and sends what they want.
void BeTheSender() {
  GpuSide side(1, 11);
  while (true) {
    const v1::Lease lease = ReadLease(STDIN_FILENO);
    Box<absl::Status> sent;
    side.Send(lease, sent);
  }
}

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
      execl("/proc/self/exe", "cuda_transfer_test", nullptr);
      _exit(1);
    }
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
  void Signal(int signal) { kill(pid_, signal); }

 private:
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1;
};

class CudaKillTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Signals, CudaKillTest, testing::Values(SIGKILL, SIGSTOP));

TEST_P(CudaKillTest, AReceiverThatDiesIsNoticedAndAnotherOneServes) {
  GpuSide from(1, 11);
  {
    Child receiver("receiver");
    char said = 0;
    Box<absl::Status> first, second;
    from.Send(ReadLease(receiver.out()), first);
    EXPECT_EQ(first.Wait(), absl::OkStatus());
    ASSERT_EQ(read(receiver.out(), &said, 1), 1);
    const v1::Lease lease = ReadLease(receiver.out());
    from.Send(lease, second);  // it is under way when the receiver ends
    receiver.Signal(GetParam());
    const absl::Time killed = absl::Now();
    const absl::StatusCode code = CodeOf(second);
    EXPECT_TRUE(code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kOk) << code;
    EXPECT_LT(absl::Now() - killed, absl::Seconds(3));
    EXPECT_EQ(from.transport->sender().sender_stats().outstanding_bytes, 0);
    Box<absl::Status> again;
    from.Send(lease, again);
    EXPECT_EQ(CodeOf(again), absl::StatusCode::kUnavailable);
  }
  Child receiver("receiver");
  char said = 0;
  Box<absl::Status> sent;
  from.Send(ReadLease(receiver.out()), sent);
  EXPECT_EQ(sent.Wait(), absl::OkStatus());
  EXPECT_EQ(read(receiver.out(), &said, 1), 1);
}

TEST_P(CudaKillTest, ASenderThatDiesHoldsNothingUp) {
  GpuSide to(2, 22);
  KvReceiver& receiver = to.transport->receiver();
  Child sender("sender");
  const v1::Lease lease = to.LeaseOfAll(1);
  Box<LeaseResult> done, next_done;
  ASSERT_EQ(to.Open(lease, done), absl::OkStatus());
  WriteLease(sender.in(), lease);
  const absl::Time end = absl::Now() + kPatience;
  while (receiver.receiver_stats().pages_received < 1 && absl::Now() < end) {
    std::this_thread::yield();
  }
  sender.Signal(GetParam());
  EXPECT_EQ(receiver.Close(1, kPatience), absl::OkStatus());
  const Bytes fenced = to.Copy();

  const v1::Lease next = to.LeaseOfAll(2);
  to.Fill(GpuSide::Contents(9));
  GpuSide other(3, 12);
  Box<absl::Status> sent;
  ASSERT_EQ(to.Open(next, next_done), absl::OkStatus());
  other.Send(next, sent);
  EXPECT_EQ(sent.Wait(), absl::OkStatus());
  sender.Signal(SIGCONT);
  EXPECT_TRUE(to.Copy() == GpuSide::Contents(3));
}

}  // namespace

void BeTheChild(absl::string_view what) { what == "sender" ? BeTheSender() : BeTheReceiver(); }

}  // namespace sluice::transport

int main(int argc, char** argv) {
  if (const char* child = std::getenv(sluice::transport::kChildVariable)) {
    sluice::transport::BeTheChild(child);
    return 1;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
