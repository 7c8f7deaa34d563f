#include "services/transport/shared_ring.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice::transport {
namespace {

// Enough that a receiver which had to wait for its processor still finds something to do.
constexpr int64_t kBytes = 4 << 20;
constexpr int64_t kSlotsMin = 2;
constexpr int64_t kSlotsMax = 1024;
constexpr int64_t kAlignment = 64;

int64_t SlotBytes(const KvLayout& layout) {
  return (layout.page_bytes() + kAlignment - 1) / kAlignment * kAlignment;
}

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", absl::ErrnoToStatus(errno, "").message()));
}

}  // namespace

SharedRing::SharedRing(FileDescriptor memory, uint64_t slots, size_t slot_bytes)
    : memory_(std::move(memory)), slots_(slots), slot_bytes_(slot_bytes) {}

SharedRing::SharedRing(SharedRing&& other) noexcept
    : memory_(std::move(other.memory_)),
      slots_(other.slots_),
      slot_bytes_(other.slot_bytes_),
      base_(std::exchange(other.base_, nullptr)) {}

SharedRing::~SharedRing() {
  if (base_ != nullptr) munmap(base_, slots_ * slot_bytes_);
}

absl::Status SharedRing::Map(int protection) {
  void* const at =
      mmap(nullptr, slots_ * slot_bytes_, protection, MAP_SHARED | MAP_POPULATE, memory_.get(), 0);
  if (at == MAP_FAILED) return SystemError("shared memory for KV pages cannot be mapped");
  base_ = static_cast<std::byte*>(at);
  return absl::OkStatus();
}

absl::StatusOr<SharedRing> SharedRing::Create(const KvLayout& layout) {
  const int64_t slot_bytes = SlotBytes(layout);
  const int64_t slots = std::clamp(kBytes / slot_bytes, kSlotsMin, kSlotsMax);
  FileDescriptor memory(memfd_create("sluice-kv", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.valid() || ftruncate(memory.get(), slots * slot_bytes) != 0 ||
      fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return SystemError("shared memory for KV pages cannot be made");
  }
  SharedRing ring(std::move(memory), static_cast<uint64_t>(slots), static_cast<size_t>(slot_bytes));
  SLUICE_RETURN_IF_ERROR(ring.Map(PROT_READ | PROT_WRITE));
  return ring;
}

absl::StatusOr<SharedRing> SharedRing::Open(FileDescriptor memory, const KvLayout& layout,
                                            uint64_t slots) {
  if (slots == 0 || slots > kSlotsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a ring of ", slots, " slots, wanted 1 to ", kSlotsMax));
  }
  // What was cut off while it is read ends the process with SIGBUS, as does a hole in huge pages
  // when none is left.
  const int seals = fcntl(memory.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return absl::InvalidArgumentError("a ring that could shrink");
  }
  struct statfs system = {};
  if (fstatfs(memory.get(), &system) != 0 || system.f_type != TMPFS_MAGIC) {
    return absl::InvalidArgumentError("a ring that is no plain memory");
  }
  const int64_t slot_bytes = SlotBytes(layout);
  struct stat status = {};
  if (fstat(memory.get(), &status) != 0 ||
      status.st_size / slot_bytes < static_cast<int64_t>(slots)) {
    return absl::InvalidArgumentError(absl::StrCat("a ring of ", status.st_size, " bytes, wanted ",
                                                   slots, " slots of ", slot_bytes));
  }
  SharedRing ring(std::move(memory), slots, static_cast<size_t>(slot_bytes));
  SLUICE_RETURN_IF_ERROR(ring.Map(PROT_READ));
  return ring;
}

}  // namespace sluice::transport
