// KV transfer between two processes of this machine: bytes a second of whole leases over pools
// larger than the caches, with checksums and without, beside what one thread copies and sums on its
// own.
//   kv_transfer_bench [--rounds N] [--pool-mib N]
// GB are 10^9 bytes; the best of the rounds is shown, since the machine may be shared.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "kernels/base/aligned_buffer.h"
#include "services/transport/page_checksum.h"
#include "services/transport/socket_transport.h"

namespace sluice::transport {
namespace {

struct Shape {
  const char* name;
  int64_t layers;
  int64_t row_bytes;
};
constexpr Shape kShapes[] = {{"tiny model, f32", 4, 160 * 4}, {"DeepSeek-V3, bf16", 61, 576 * 2}};

// The slow way to fail: a benchmark has nobody to hand an error to.
void Require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "kv_transfer_bench: %s\n", what.c_str());
  std::exit(1);
}

struct BenchPool {
  BenchPool(const Shape& shape, int64_t bytes) {
    memory.layout = {.layers = shape.layers, .page_rows = 64, .row_bytes = shape.row_bytes};
    memory.layout.pages = bytes / (shape.layers * memory.layout.page_bytes());
    const int64_t layer_bytes = memory.layout.pages * memory.layout.page_bytes();
    buffer = AlignedBuffer(static_cast<size_t>(shape.layers * layer_bytes));
    std::memset(buffer.data(), 1, buffer.size());
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      memory.layers.push_back(buffer.As<std::byte>() + layer * layer_bytes);
    }
  }
  AlignedBuffer buffer;
  KvMemory memory;
};

// Messages of a few hundred bytes to a few KiB between the two processes.
void SendText(int fd, const std::string& text) {
  const uint64_t size = text.size();
  Require(write(fd, &size, sizeof(size)) == sizeof(size), "pipe");
  Require(write(fd, text.data(), size) == static_cast<ssize_t>(size), "pipe");
}
std::string ReceiveText(int fd) {
  uint64_t size = 0;
  Require(read(fd, &size, sizeof(size)) == sizeof(size), "the other process is gone");
  std::string text(size, '\0');
  for (size_t at = 0; at < size;) {
    const ssize_t got = read(fd, text.data() + at, size - at);
    Require(got > 0, "the other process is gone");
    at += static_cast<size_t>(got);
  }
  return text;
}

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return absl::ToDoubleSeconds(absl::DurationFromTimeval(usage.ru_utime) +
                               absl::DurationFromTimeval(usage.ru_stime));
}

// Of the best round each.
struct Speed {
  double gb_per_second = 0;
  double sender_cpu = 1e9;  // seconds per GB
  double receiver_cpu = 1e9;
};

struct Run {
  Shape shape;
  Medium medium;
  bool checksums;
  int rounds;
  int64_t pool_bytes;
};

std::unique_ptr<KvTransport> Make(const Run& run, const BenchPool& pool, uint64_t incarnation) {
  auto transport = MakeSocketTransport({.memory = pool.memory,
                                        .incarnation = incarnation,
                                        .medium = run.medium,
                                        .checksums = run.checksums});
  Require(transport.ok(), transport.status().ToString());
  return *std::move(transport);
}

// Opens a lease over its whole pool for every round.
[[noreturn]] void Receive(const Run& run, int from_sender, int to_sender) {
  const BenchPool pool(run.shape, run.pool_bytes);
  const auto transport = Make(run, pool, 2);
  KvReceiver& receiver = transport->receiver();
  v1::Lease lease;
  lease.set_checksum_key(77);
  lease.set_endpoint(receiver.endpoint());
  lease.set_incarnation(receiver.incarnation());
  for (int64_t page = 0; page < pool.memory.layout.pages; ++page) {
    lease.add_pages(static_cast<uint32_t>(page));
  }
  for (int round = 0; round < run.rounds; ++round) {
    lease.set_lease(static_cast<uint64_t>(round));
    const absl::Status opened = receiver.Open(
        lease, pool.memory.layout.pages * 64,
        [](const LeaseResult& result) { Require(result.status.ok(), result.status.ToString()); });
    Require(opened.ok(), opened.ToString());
    const double cpu = CpuSeconds();
    SendText(to_sender, lease.SerializeAsString());
    ReceiveText(from_sender);
    SendText(to_sender, absl::StrCat(CpuSeconds() - cpu));
    Require(receiver.Close(lease.lease(), absl::Seconds(1)).ok(), "close");
  }
  std::_Exit(0);
}

Speed Send(const Run& run, const BenchPool& pool, int from_receiver, int to_receiver) {
  const auto transport = Make(run, pool, 1);
  const KvLayout& layout = pool.memory.layout;
  Speed best;
  for (int round = 0; round < run.rounds; ++round) {
    v1::Lease lease;
    Require(lease.ParseFromString(ReceiveText(from_receiver)), "lease");
    absl::Notification sent;
    const double cpu = CpuSeconds();
    const absl::Time start = absl::Now();
    const auto transfer = transport->sender().Begin(lease, absl::Minutes(1),
                                                    [&](TransferId, const absl::Status& status) {
                                                      Require(status.ok(), status.ToString());
                                                      sent.Notify();
                                                    });
    Require(transfer.ok(), transfer.status().ToString());
    std::vector<PageWrite> writes(static_cast<size_t>(layout.pages));
    for (int64_t layer = 0; layer < layout.layers; ++layer) {
      for (int64_t page = 0; page < layout.pages; ++page) {
        writes[static_cast<size_t>(page)] = {
            .layer = layer, .index = page, .page = page, .rows = layout.page_rows};
      }
      Require(transport->sender().Write(*transfer, writes).ok(), "write");
    }
    sent.WaitForNotification();
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    const double sender_cpu = CpuSeconds() - cpu;
    SendText(to_receiver, "next");
    const double receiver_cpu = std::atof(ReceiveText(from_receiver).c_str());
    if (round == 0) continue;  // connects, and touches memory for the first time
    const double gb = static_cast<double>(layout.layers * layout.pages * layout.page_bytes()) / 1e9;
    best.gb_per_second = std::max(best.gb_per_second, gb / seconds);
    best.sender_cpu = std::min(best.sender_cpu, sender_cpu / gb);
    best.receiver_cpu = std::min(best.receiver_cpu, receiver_cpu / gb);
  }
  return best;
}

Speed Measure(const Run& run, const BenchPool& pool) {
  int to_receiver[2], to_sender[2];
  Require(pipe(to_receiver) == 0 && pipe(to_sender) == 0, "pipe");
  const pid_t child = fork();
  Require(child >= 0, "fork");
  if (child == 0) {
    close(to_receiver[1]);
    close(to_sender[0]);
    Receive(run, to_receiver[0], to_sender[1]);
  }
  close(to_receiver[0]);
  close(to_sender[1]);
  const Speed speed = Send(run, pool, to_sender[0], to_receiver[1]);
  close(to_receiver[1]);
  close(to_sender[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return speed;
}

// One thread, page by page, no transport.
void MeasureAlone(const Shape& shape, const BenchPool& pool, int rounds, double* copy,
                  double* sum) {
  const BenchPool target(shape, static_cast<int64_t>(pool.buffer.size()));
  const auto page_bytes = static_cast<size_t>(pool.memory.layout.page_bytes());
  const double bytes = static_cast<double>(pool.buffer.size());
  for (int round = 0; round < rounds; ++round) {
    absl::Time start = absl::Now();
    for (size_t at = 0; at < pool.buffer.size(); at += page_bytes) {
      std::memcpy(target.buffer.As<std::byte>() + at, pool.buffer.As<std::byte>() + at, page_bytes);
    }
    *copy = std::max(*copy, bytes / absl::ToDoubleSeconds(absl::Now() - start) / 1e9);
    start = absl::Now();
    uint64_t all = 0;
    for (size_t at = 0; at < pool.buffer.size(); at += page_bytes) {
      all ^= PageChecksum(1, {}, {pool.buffer.As<std::byte>() + at, page_bytes});
    }
    Require(all != 1, "checksum");
    *sum = std::max(*sum, bytes / absl::ToDoubleSeconds(absl::Now() - start) / 1e9);
  }
}

void Main(int rounds, int64_t pool_bytes) {
  std::printf("%-18s %-14s %-9s %10s %22s\n", "shape", "over", "checksums", "GB/s",
              "CPU s/GB send, receive");
  for (const Shape& shape : kShapes) {
    const BenchPool pool(shape, pool_bytes);
    double copy = 0, sum = 0;
    MeasureAlone(shape, pool, rounds, &copy, &sum);
    std::printf("%-18s one thread: copy %.2f GB/s, sum %.2f GB/s\n", shape.name, copy, sum);
    for (const auto& [name, medium] : {std::pair("shared memory", Medium::kSharedMemory),
                                       std::pair("TCP loopback", Medium::kTcp)}) {
      for (bool checksums : {true, false}) {
        const Speed speed = Measure({shape, medium, checksums, rounds + 1, pool_bytes}, pool);
        std::printf("%-18s %-14s %-9s %10.2f %12.3f %9.3f\n", shape.name, name,
                    checksums ? "yes" : "no", speed.gb_per_second, speed.sender_cpu,
                    speed.receiver_cpu);
        std::fflush(stdout);
      }
    }
  }
}

}  // namespace
}  // namespace sluice::transport

int main(int argc, char** argv) {
  int rounds = 5;
  int64_t pool_mib = 512;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--rounds") == 0) rounds = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--pool-mib") == 0) pool_mib = std::atoi(argv[i + 1]);
  }
  sluice::transport::Main(rounds, pool_mib << 20);
  return 0;
}
