#include "kernels/cuda/shared_memory.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cuda/cuda_context.h"

namespace sluice {
namespace {

constexpr size_t kChunkBytesMin = size_t{1} << 30;
constexpr CUmemAllocationHandleType kDescriptor = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

// The driver's functions, looked up at run time: programs start without a driver too.
struct Driver {
  PFN_cuGetErrorName_v6000 error_name = nullptr;
  PFN_cuDeviceGetAttribute_v2000 attribute = nullptr;
  PFN_cuMemGetAllocationGranularity_v10020 granularity = nullptr;
  PFN_cuMemCreate_v10020 create = nullptr;
  PFN_cuMemRelease_v10020 release = nullptr;
  PFN_cuMemExportToShareableHandle_v10020 to_descriptor = nullptr;
  PFN_cuMemImportFromShareableHandle_v10020 from_descriptor = nullptr;
  PFN_cuMemAddressReserve_v10020 reserve = nullptr;
  PFN_cuMemAddressFree_v10020 free_addresses = nullptr;
  PFN_cuMemMap_v10020 map = nullptr;
  PFN_cuMemUnmap_v10020 unmap = nullptr;
  PFN_cuMemSetAccess_v10020 set_access = nullptr;
};

template <typename Function>
absl::Status Find(const char* name, Function* function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  SLUICE_RETURN_IF_ERROR(CudaStatus(
      cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result), name));
  if (result != cudaDriverEntryPointSuccess || found == nullptr) {
    return absl::UnimplementedError(absl::StrCat("the NVIDIA driver has no ", name));
  }
  *function = reinterpret_cast<Function>(found);
  return absl::OkStatus();
}

absl::StatusOr<Driver> FindDriver() {
  Driver driver;
  SLUICE_RETURN_IF_ERROR(Find("cuGetErrorName", &driver.error_name));
  SLUICE_RETURN_IF_ERROR(Find("cuDeviceGetAttribute", &driver.attribute));
  SLUICE_RETURN_IF_ERROR(Find("cuMemGetAllocationGranularity", &driver.granularity));
  SLUICE_RETURN_IF_ERROR(Find("cuMemCreate", &driver.create));
  SLUICE_RETURN_IF_ERROR(Find("cuMemRelease", &driver.release));
  SLUICE_RETURN_IF_ERROR(Find("cuMemExportToShareableHandle", &driver.to_descriptor));
  SLUICE_RETURN_IF_ERROR(Find("cuMemImportFromShareableHandle", &driver.from_descriptor));
  SLUICE_RETURN_IF_ERROR(Find("cuMemAddressReserve", &driver.reserve));
  SLUICE_RETURN_IF_ERROR(Find("cuMemAddressFree", &driver.free_addresses));
  SLUICE_RETURN_IF_ERROR(Find("cuMemMap", &driver.map));
  SLUICE_RETURN_IF_ERROR(Find("cuMemUnmap", &driver.unmap));
  SLUICE_RETURN_IF_ERROR(Find("cuMemSetAccess", &driver.set_access));
  return driver;
}

const absl::StatusOr<Driver>& TheDriver() {
  static const absl::StatusOr<Driver> driver = FindDriver();
  return driver;
}

absl::Status Refused(const Driver& driver, CUresult result, absl::string_view what) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  const char* name = nullptr;
  driver.error_name(result, &name);
  const std::string message =
      absl::StrCat(what, ": the NVIDIA driver says ", name == nullptr ? "nothing" : name);
  if (result == CUDA_ERROR_OUT_OF_MEMORY) return absl::ResourceExhaustedError(message);
  return absl::FailedPreconditionError(message);
}

absl::StatusOr<bool> Has(const Driver& driver, int device, CUdevice_attribute attribute) {
  int value = 0;
  SLUICE_RETURN_IF_ERROR(
      Refused(driver, driver.attribute(&value, attribute, device), "asking for the device"));
  return value != 0;
}

// A range of addresses with what is mapped there.
class Range {
 public:
  explicit Range(const Driver& driver) : driver_(driver) {}
  Range(const Range&) = delete;
  ~Range() {
    // Unmapping does not wait for who still writes there. Another process's memory is only read, by
    // copies whose end somebody has waited for.
    if (!handle.descriptors.empty()) cudaDeviceSynchronize();
    if (mapped_ > 0) driver_.unmap(base_, mapped_);
    for (CUmemGenericAllocationHandle chunk : chunks_) driver_.release(chunk);
    if (base_ != 0) driver_.free_addresses(base_, bytes_);
    for (int descriptor : handle.descriptors) close(descriptor);
  }

  absl::Status Reserve(size_t bytes) {
    bytes_ = bytes;
    return Refused(driver_, driver_.reserve(&base_, bytes, 0, 0, 0), "reserving addresses");
  }
  // Behind what is mapped; the chunk belongs to the range from now on.
  absl::Status Append(CUmemGenericAllocationHandle chunk, size_t bytes) {
    chunks_.push_back(chunk);
    SLUICE_RETURN_IF_ERROR(
        Refused(driver_, driver_.map(base_ + mapped_, bytes, 0, chunk, 0), "mapping memory"));
    mapped_ += bytes;
    return absl::OkStatus();
  }
  absl::Status Open(int device, CUmemAccess_flags access) {
    CUmemAccessDesc wanted = {};
    wanted.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
    wanted.flags = access;
    return Refused(driver_, driver_.set_access(base_, bytes_, &wanted, 1),
                   "reaching the memory from this GPU");
  }
  void* base() const { return reinterpret_cast<void*>(base_); }

  MemoryHandle handle;  // of what this process allocated

 private:
  const Driver& driver_;
  CUdeviceptr base_ = 0;
  size_t bytes_ = 0;
  size_t mapped_ = 0;
  std::vector<CUmemGenericAllocationHandle> chunks_;
};

DeviceBuffer BufferOf(std::shared_ptr<Range> range, size_t bytes) {
  DeviceBuffer buffer{.memory = std::shared_ptr<void>(range, range->base()), .bytes = bytes};
  if (!range->handle.descriptors.empty()) {
    buffer.handle = std::shared_ptr<const MemoryHandle>(range, &range->handle);
  }
  return buffer;
}

size_t RoundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

absl::StatusOr<DeviceBuffer> AllocateSharedCuda(int device, size_t bytes, const std::string& what) {
  SLUICE_RETURN_IF_ERROR(TheDriver().status());
  const Driver& driver = *TheDriver();
  for (const auto& [attribute, name] :
       {std::pair(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, "virtual memory"),
        std::pair(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
                  "memory as file descriptors")}) {
    SLUICE_ASSIGN_OR_RETURN(const bool has, Has(driver, device, attribute));
    if (!has) return absl::UnimplementedError(absl::StrCat("this GPU has no ", name));
  }
  SLUICE_ASSIGN_OR_RETURN(
      const bool rdma,
      Has(driver, device, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED));
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = kDescriptor;
  properties.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
  properties.allocFlags.gpuDirectRDMACapable = rdma ? 1 : 0;
  size_t unit = 0;
  SLUICE_RETURN_IF_ERROR(
      Refused(driver, driver.granularity(&unit, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
              "asking for the granularity"));

  auto range = std::make_shared<Range>(driver);
  const size_t all = RoundUp(std::max<size_t>(bytes, 1), unit);
  const size_t per_chunk = (all + MemoryHandle::kChunksMax - 1) / MemoryHandle::kChunksMax;
  range->handle.chunk_bytes = std::min(all, RoundUp(std::max(per_chunk, kChunkBytesMin), unit));
  range->handle.bytes = all;
  SLUICE_RETURN_IF_ERROR(range->Reserve(all));
  for (size_t at = 0; at < all; at += range->handle.chunk_bytes) {
    const size_t size = std::min(range->handle.chunk_bytes, all - at);
    CUmemGenericAllocationHandle chunk = 0;
    SLUICE_RETURN_IF_ERROR(Refused(driver, driver.create(&chunk, size, &properties, 0), what));
    SLUICE_RETURN_IF_ERROR(range->Append(chunk, size));
    int descriptor = -1;
    SLUICE_RETURN_IF_ERROR(Refused(driver, driver.to_descriptor(&descriptor, chunk, kDescriptor, 0),
                                   "handing memory over"));
    range->handle.descriptors.push_back(descriptor);
  }
  SLUICE_RETURN_IF_ERROR(range->Open(device, CU_MEM_ACCESS_FLAGS_PROT_READWRITE));
  return BufferOf(std::move(range), bytes);
}

absl::StatusOr<DeviceBuffer> MapSharedCuda(int device, const MemoryHandle& handle) {
  SLUICE_RETURN_IF_ERROR(TheDriver().status());
  const Driver& driver = *TheDriver();
  const size_t chunks = handle.descriptors.size();
  if (handle.bytes == 0 || handle.chunk_bytes == 0 ||
      (handle.bytes - 1) / handle.chunk_bytes + 1 != chunks) {
    return absl::FailedPreconditionError(absl::StrCat("memory of ", handle.bytes, " bytes in ",
                                                      chunks, " chunks of ", handle.chunk_bytes));
  }
  auto range = std::make_shared<Range>(driver);
  SLUICE_RETURN_IF_ERROR(range->Reserve(handle.bytes));
  for (size_t i = 0; i < chunks; ++i) {
    CUmemGenericAllocationHandle chunk = 0;
    void* const descriptor = reinterpret_cast<void*>(intptr_t{handle.descriptors[i]});
    SLUICE_RETURN_IF_ERROR(Refused(driver, driver.from_descriptor(&chunk, descriptor, kDescriptor),
                                   "taking memory over"));
    const size_t at = i * handle.chunk_bytes;
    SLUICE_RETURN_IF_ERROR(range->Append(chunk, std::min(handle.chunk_bytes, handle.bytes - at)));
  }
  // Not every driver maps for reading alone.
  if (!range->Open(device, CU_MEM_ACCESS_FLAGS_PROT_READ).ok()) {
    SLUICE_RETURN_IF_ERROR(range->Open(device, CU_MEM_ACCESS_FLAGS_PROT_READWRITE));
  }
  return BufferOf(std::move(range), handle.bytes);
}

}  // namespace sluice
