// How fast a checkpoint's weights get into a GPU's memory, beside what the disk, the page cache and
// the copy engine give alone, in one run.
//
//   cuda_weights_bench DIR
//
// DIR's files are put out of the page cache first, which takes no rights (but what is not written
// out yet stays: run sync before). Rates count bytes of the files.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/base/status.h"
#include "services/base/parallel.h"
#include "services/instance/model_loading.h"
#include "services/model/checkpoint.h"
#include "tests/bench/cuda_bench.h"

namespace sluice::bench {
namespace {

constexpr size_t kPieceBytes = 4 << 20;
constexpr size_t kSomeBytes = size_t{4} << 30;  // of the files, where all of them would take long

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Piece {
  const MappedFile* file;
  size_t begin, bytes;
};

class Bench {
 public:
  explicit Bench(std::string dir) : dir_(std::move(dir)) {
    auto checkpoint = model::Checkpoint::Open(dir_);
    Check(checkpoint.status());
    files_ = checkpoint->files();
    for (const auto& file : files_) {
      const size_t size = file->bytes().size();
      total_ += size;
      for (size_t begin = 0; begin < size; begin += kPieceBytes) {
        pieces_.push_back({file.get(), begin, std::min(kPieceBytes, size - begin)});
      }
    }
  }

  void Run() {
    std::printf("%s: %.2f GB in %zu files\n", dir_.c_str(), total_ / 1e9, files_.size());
    CopyEngine();
    Forget();
    Read("disk, O_DIRECT, 1 thread", kSomeBytes / 2, 1, /*direct=*/true);
    Read("disk, O_DIRECT, 16 threads", kSomeBytes, 16, /*direct=*/true);
    Forget();
    Load("load, cold", "safetensors");
    Load("load, warm", "safetensors");
    Forget();
    Read("disk through the page cache, 16 threads", total_, 16, /*direct=*/false);
    Read("page cache, 1 thread", kSomeBytes, 1, /*direct=*/false);
    Read("page cache, 16 threads", total_, 16, /*direct=*/false);
    for (int i = 0; i < 3; ++i) Load("load, warm", "safetensors");
    FromMapping();
    for (int i = 0; i < 2; ++i) Load("random weights of the same size", "dummy");
  }

 private:
  void Forget() {
    for (const auto& file : files_) posix_fadvise(file->fd(), 0, 0, POSIX_FADV_DONTNEED);
  }

  static void Tell(const char* what, size_t bytes, double seconds) {
    std::printf("%-42s %8.2f GB %8.3f s %8.2f GB/s\n", what, bytes / 1e9, seconds,
                bytes / seconds / 1e9);
    std::fflush(stdout);
  }

  void Read(const char* what, size_t bytes_max, int threads, bool direct) {
    const size_t count = std::min(pieces_.size(), bytes_max / kPieceBytes + 1);
    size_t bytes = 0;
    for (size_t i = 0; i < count; ++i) bytes += pieces_[i].bytes;
    std::map<const MappedFile*, int> fds;
    for (const auto& file : files_) {
      fds[file.get()] = open(file->path().c_str(), O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    }
    const double seconds = Seconds([&] {
      Check(ParallelFor(threads, threads, [&](int64_t first) {
        AlignedBuffer buffer(kPieceBytes);  // room to read past a file's end, as O_DIRECT does
        for (size_t i = first; i < count; i += threads) {
          const Piece& piece = pieces_[i];
          const ssize_t got = pread(fds.at(piece.file), buffer.data(), kPieceBytes,
                                    static_cast<off_t>(piece.begin));
          if (got != static_cast<ssize_t>(piece.bytes)) {
            return absl::UnavailableError(absl::StrCat(piece.file->path(), ": pread gives ", got));
          }
        }
        return absl::OkStatus();
      }));
    });
    for (const auto& [file, fd] : fds) close(fd);
    Tell(what, bytes, seconds);
  }

  void CopyEngine() {
    auto backend = bench::MakeBackend();
    constexpr size_t kBytes = size_t{256} << 20;
    auto host = backend->AllocateHost(kBytes, "bench");
    auto device = backend->Allocate(kBytes, "bench");
    Check(host.status());
    Check(device.status());
    const auto copy = [&] {
      for (int i = 0; i < 16; ++i) {
        Check(backend->CopyToDevice(device->memory.get(), host->memory.get(), kBytes, {}));
      }
      Check(backend->Sync({}));
    };
    copy();
    Tell("pinned memory to the GPU", 16 * kBytes, Seconds(copy));
  }

  void Load(const char* what, const char* format) {
    instance::ModelSource source{.dir = dir_, .numerics = "fast", .device = "cuda"};
    source.load_format = format;
    auto backend = instance::MakeBackendOf(source);
    Check(backend.status());
    Check((*backend)->Allocate(1 << 20, "the device's start").status());
    int64_t bytes = 0;
    const double seconds = Seconds([&] {
      const auto loaded = instance::LoadModel(source, *std::move(backend), {});
      Check(loaded.status());
      bytes = loaded->weights->bytes;
    });
    Tell(what, static_cast<size_t>(bytes), seconds);
  }

  // What loading was before: copies straight from the mapping, which CUDA stages itself.
  void FromMapping() {
    auto backend = bench::MakeBackend();
    auto device = backend->Allocate(kPieceBytes, "bench");
    Check(device.status());
    const size_t count = std::min(pieces_.size(), kSomeBytes / kPieceBytes);
    Tell("mapping to the GPU, warm", count * kPieceBytes, Seconds([&] {
           for (size_t i = 0; i < count; ++i) {
             Check(backend->CopyToDevice(device->memory.get(),
                                         pieces_[i].file->bytes().data() + pieces_[i].begin,
                                         pieces_[i].bytes, {}));
           }
           Check(backend->Sync({}));
         }));
  }

  const std::string dir_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
  std::vector<Piece> pieces_;
  size_t total_ = 0;
};

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: cuda_weights_bench DIR\n");
    return 2;
  }
  int none = 1;
  const sluice::bench::CudaBench header(none, argv);
  sluice::bench::Bench(argv[1]).Run();
  return 0;
}
