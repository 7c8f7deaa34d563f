#include "tests/bench/emit_table.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace sluice::bench {
namespace {

constexpr size_t kBytes = kEmitRows * kEmitColumns * sizeof(int64_t);

}  // namespace

int64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

absl::StatusOr<EmitTable> EmitTable::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat(path, ": cannot be opened"));
  void* cells = MAP_FAILED;
  if (ftruncate(fd, static_cast<off_t>(kBytes)) == 0) {
    cells = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  const int error = errno;
  close(fd);
  if (cells == MAP_FAILED) {
    return absl::ErrnoToStatus(error, absl::StrCat(path, ": cannot map ", kBytes, " bytes"));
  }
  return EmitTable(static_cast<int64_t*>(cells));
}

EmitTable::EmitTable(EmitTable&& other) noexcept : cells_(std::exchange(other.cells_, nullptr)) {}

EmitTable::~EmitTable() {
  if (cells_ != nullptr) munmap(cells_, kBytes);
}

}  // namespace sluice::bench
