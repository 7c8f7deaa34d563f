// Device memory that other processes of the host map: CUDA's virtual memory, whose pieces are
// handed over as POSIX file descriptors.
//
// Threads: any.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/ops/device_buffer.h"

namespace sluice {

// One range of addresses, mapped in chunks, readable by RDMA devices where the GPU allows it. Not
// cleared. Unimplemented: this GPU or driver has no such memory, or does not hand it over.
// ResourceExhausted: no room.
absl::StatusOr<DeviceBuffer> AllocateSharedCuda(int device, size_t bytes, const std::string& what);

// What another process allocated so, on this GPU or one that this reaches, for reading; where the
// driver has no such mapping, for writing too, which nobody is to do.
// FailedPrecondition, with the driver's reason: it is something else, or out of reach. The memory
// stays as long as it is mapped, also when the process that allocated it has ended.
absl::StatusOr<DeviceBuffer> MapSharedCuda(int device, const MemoryHandle& handle);

}  // namespace sluice
