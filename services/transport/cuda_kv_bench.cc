// KV between memories of GPUs: what the copying kernel does alone, and bytes a second of whole
// leases between two processes.
//   cuda_kv_bench [SENDER_GPU [RECEIVER_GPU]]     both 0 unless given
// GB are 10^9 bytes and count once; the best of the rounds is shown. Pages are DeepSeek-V3's.
#include <cuda_runtime_api.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/launch.h"
#include "services/transport/page_checksum.h"
#include "services/transport/socket_transport.h"

namespace sluice::transport {
namespace {

constexpr int64_t kPageBytes = 64 * 1152;
constexpr int64_t kLayerPages = 256;  // of 16,384 tokens
constexpr int64_t kLayers = 61;
constexpr int kRounds = 4;

// The slow way to fail: a benchmark has nobody to hand an error to.
void Require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "cuda_kv_bench: %s\n", what.c_str());
  std::exit(1);
}
void Require(const absl::Status& status) { Require(status.ok(), status.ToString()); }
void Require(cudaError_t error) { Require(error == cudaSuccess, cudaGetErrorString(error)); }
template <typename T>
T Require(absl::StatusOr<T> result) {
  Require(result.status());
  return *std::move(result);
}

std::unique_ptr<Backend> Gpu(int device) {
  return Require(MakeCudaBackend({.device = device, .numerics = Numerics::kFast}));
}

// Memory that is not all zeros.
DeviceBuffer Pool(Backend* gpu, int64_t bytes) {
  DeviceBuffer pool = Require(gpu->AllocateShareable(static_cast<size_t>(bytes), "KV cache"));
  Require(cudaMemset(pool.memory.get(), 0x5A, pool.bytes));
  return pool;
}

// --- The kernel ---

// Microseconds of one layer of 16,384 tokens; `from` and `to` hold all layers, `to` may be null.
double LayerMicroseconds(const std::byte* from, std::byte* to, int64_t layers, bool sum,
                         cudaStream_t stream) {
  const int64_t count = layers * kLayerPages;
  cuda::PageCopyJob* jobs = nullptr;
  PageSums* sums = nullptr;
  Require(cudaMallocHost(reinterpret_cast<void**>(&jobs), count * sizeof(*jobs)));
  Require(
      cudaMallocHost(reinterpret_cast<void**>(&sums), count * cuda::kPageSlices * sizeof(*sums)));
  for (int64_t page = 0; page < count; ++page) {
    jobs[page] = {.from = from + page * kPageBytes,
                  .to = to == nullptr ? nullptr : to + page * kPageBytes,
                  .bytes = kPageBytes,
                  .key = ExpandKey(7),
                  .sum = sum};
  }
  cudaEvent_t begin, end;
  Require(cudaEventCreate(&begin));
  Require(cudaEventCreate(&end));
  float best = 1e9f;
  for (int round = 0; round < kRounds; ++round) {
    Require(cudaEventRecord(begin, stream));
    for (int64_t layer = 0; layer < layers; ++layer) {
      Require(cuda::LaunchPageCopies({.jobs = jobs + layer * kLayerPages,
                                      .sums = sums + layer * kLayerPages * cuda::kPageSlices,
                                      .count = kLayerPages},
                                     stream));
    }
    Require(cudaEventRecord(end, stream));
    Require(cudaEventSynchronize(end));
    float milliseconds = 0;
    Require(cudaEventElapsedTime(&milliseconds, begin, end));
    if (round > 0) best = std::min(best, milliseconds);
  }
  Require(cudaEventDestroy(begin));
  Require(cudaEventDestroy(end));
  Require(cudaFreeHost(jobs));
  Require(cudaFreeHost(sums));
  return best * 1000.0 / static_cast<double>(layers);
}

void PrintKernel(const char* what, double us) {
  const double bytes = kLayerPages * kPageBytes;
  std::printf("kernel, %-44s %8.1f us a layer of 16,384 tokens, %7.1f GB/s\n", what, us,
              bytes / us / 1e3);
  std::fflush(stdout);
}

void MeasureKernel(int sender, int receiver) {
  const std::unique_ptr<Backend> from_gpu = Gpu(sender), to_gpu = Gpu(receiver);
  const int64_t bytes = kLayers * kLayerPages * kPageBytes;
  constexpr int64_t kHostLayers = 16;
  Require(from_gpu->BindThread());
  const DeviceBuffer from = Pool(from_gpu.get(), bytes);
  Require(to_gpu->BindThread());
  const DeviceBuffer to = Pool(to_gpu.get(), bytes);
  const std::unique_ptr<PageMover> mover = Require(to_gpu->MakePageMover());
  Require(from.handle != nullptr, "this GPU's memory cannot be handed over");
  const DeviceBuffer mapped = Require(mover->Map(*from.handle));
  const DeviceBuffer host = Require(mover->AllocateStaging(kHostLayers * kLayerPages * kPageBytes));
  cudaStream_t stream;
  Require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto* far = mapped.As<std::byte>();
  auto* near = to.As<std::byte>();
  auto* pinned = host.As<std::byte>();
  PrintKernel("sums", LayerMicroseconds(near, nullptr, kLayers, true, stream));
  PrintKernel("copies out of mapped memory", LayerMicroseconds(far, near, kLayers, false, stream));
  PrintKernel("copies and sums out of mapped memory",
              LayerMicroseconds(far, near, kLayers, true, stream));
  PrintKernel("copies and sums to pinned memory",
              LayerMicroseconds(near, pinned, kHostLayers, true, stream));
  PrintKernel("copies and sums from pinned memory",
              LayerMicroseconds(pinned, near, kHostLayers, true, stream));
  // The copy engine beside it.
  cudaEvent_t begin, end;
  Require(cudaEventCreate(&begin));
  Require(cudaEventCreate(&end));
  for (int round = 0; round < 2; ++round) {
    Require(cudaEventRecord(begin, stream));
    Require(cudaMemcpyAsync(near, far, static_cast<size_t>(bytes), cudaMemcpyDefault, stream));
    Require(cudaEventRecord(end, stream));
    Require(cudaEventSynchronize(end));
  }
  float milliseconds = 0;
  Require(cudaEventElapsedTime(&milliseconds, begin, end));
  std::printf("copy engine, %.1f GB out of mapped memory at once %37.1f GB/s\n",
              static_cast<double>(bytes) / 1e9, static_cast<double>(bytes) / milliseconds / 1e6);
  Require(cudaStreamDestroy(stream));
}

// --- Between processes ---

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

struct Run {
  const char* name;
  Medium medium;
  bool checksums;
  int64_t pages;
};

struct Process {
  Process(int device, const Run& run, uint64_t incarnation) : gpu(Gpu(device)) {
    Require(gpu->BindThread());
    memory.layout = {
        .layers = kLayers, .pages = run.pages, .page_rows = 64, .row_bytes = kPageBytes / 64};
    const int64_t layer_bytes = run.pages * kPageBytes;
    pool = Pool(gpu.get(), kLayers * layer_bytes);
    memory.handle = pool.handle;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      memory.layers.push_back(pool.As<std::byte>() + layer * layer_bytes);
    }
    transport = Require(MakeSocketTransport({.memory = memory,
                                             .mover = Require(gpu->MakePageMover()),
                                             .incarnation = incarnation,
                                             .medium = run.medium,
                                             .checksums = run.checksums}));
  }
  std::unique_ptr<Backend> gpu;
  DeviceBuffer pool;
  KvMemory memory;
  std::unique_ptr<KvTransport> transport;
};

// Opens a lease over its whole pool for every round.
void Receive(int device, const Run& run, int from_sender, int to_sender) {
  Process process(device, run, 2);
  KvReceiver& receiver = process.transport->receiver();
  v1::Lease lease;
  lease.set_checksum_key(77);
  lease.set_endpoint(receiver.endpoint());
  lease.set_incarnation(receiver.incarnation());
  for (int64_t page = 0; page < run.pages; ++page) lease.add_pages(static_cast<uint32_t>(page));
  for (int round = 0; round < kRounds; ++round) {
    lease.set_lease(static_cast<uint64_t>(round));
    Require(receiver.Open(lease, run.pages * 64,
                          [](const LeaseResult& result) { Require(result.status); }));
    SendText(to_sender, lease.SerializeAsString());
    ReceiveText(from_sender);
    Require(receiver.Close(lease.lease(), absl::Seconds(1)));
  }
}

void Send(int device, const Run& run, int from_receiver, int to_receiver) {
  Process process(device, run, 1);
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    v1::Lease lease;
    Require(lease.ParseFromString(ReceiveText(from_receiver)), "lease");
    absl::Notification sent;
    const absl::Time start = absl::Now();
    const TransferId transfer = Require(process.transport->sender().Begin(
        lease, absl::Minutes(1), [&](TransferId, const absl::Status& status) {
          Require(status);
          sent.Notify();
        }));
    std::vector<PageWrite> writes(static_cast<size_t>(run.pages));
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      for (int64_t page = 0; page < run.pages; ++page) {
        writes[static_cast<size_t>(page)] = {
            .layer = layer, .index = page, .page = page, .rows = 64};
      }
      Require(process.transport->sender().Write(transfer, writes));
    }
    sent.WaitForNotification();
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    SendText(to_receiver, "next");
    if (round == 0) continue;  // connects
    best = std::max(best, static_cast<double>(process.pool.bytes) / seconds / 1e9);
  }
  std::printf("processes, %-26s checksums %-3s %6.2f GB a lease %14.1f GB/s\n", run.name,
              run.checksums ? "yes" : "no", static_cast<double>(process.pool.bytes) / 1e9, best);
  std::fflush(stdout);
}

// Each in a process of its own, and this one without CUDA: its children could not use it else.
template <typename F>
pid_t Fork(F run) {
  const pid_t child = fork();
  Require(child >= 0, "fork");
  if (child != 0) return child;
  run();
  std::fflush(stdout);
  std::_Exit(0);
}
void Wait(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  Require(status == 0, "a process failed");
}

void Main(int sender, int receiver) {
  std::printf("from GPU %d to GPU %d\n", sender, receiver);
  std::fflush(stdout);
  Wait(Fork([&] { MeasureKernel(sender, receiver); }));
  for (const Run& run : {Run{"mapped memory", Medium::kBest, true, 512},
                         Run{"mapped memory", Medium::kBest, false, 512},
                         Run{"staged, shared memory", Medium::kSharedMemory, true, 128},
                         Run{"staged, TCP loopback", Medium::kTcp, true, 128}}) {
    int to_receiver[2], to_sender[2];
    Require(pipe(to_receiver) == 0 && pipe(to_sender) == 0, "pipe");
    const pid_t taker = Fork([&] {
      close(to_receiver[1]);
      close(to_sender[0]);
      Receive(receiver, run, to_receiver[0], to_sender[1]);
    });
    const pid_t giver = Fork([&] {
      close(to_receiver[0]);
      close(to_sender[1]);
      Send(sender, run, to_sender[0], to_receiver[1]);
    });
    for (int end : {to_receiver[0], to_receiver[1], to_sender[0], to_sender[1]}) close(end);
    Wait(giver);
    Wait(taker);
  }
}

}  // namespace
}  // namespace sluice::transport

int main(int argc, char** argv) {
  const int sender = argc > 1 ? std::atoi(argv[1]) : 0;
  sluice::transport::Main(sender, argc > 2 ? std::atoi(argv[2]) : sender);
  return 0;
}
