#include "kernels/cuda/cuda_page_mover.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/shared_memory.h"

namespace sluice {
namespace {

constexpr size_t kBatchesMax = 32;

absl::StatusOr<DeviceBuffer> AllocatePinned(size_t bytes) {
  void* memory = nullptr;
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaMallocHost(&memory, bytes == 0 ? 1 : bytes),
                                    absl::StrCat(bytes, " bytes of pinned memory for KV")));
  std::memset(memory, 0, bytes);
  return DeviceBuffer{std::shared_ptr<void>(memory, [](void* p) { cudaFreeHost(p); }), bytes};
}

// What a batch needs, used again when it is gone.
struct Slot {
  Slot() = default;
  Slot(const Slot&) = delete;
  ~Slot() {
    if (event != nullptr) cudaEventDestroy(event);
  }
  DeviceBuffer memory;  // pinned: the kernel reads its work from there and leaves the sums
  cuda::PageCopyJob* jobs = nullptr;
  PageSums* sums = nullptr;
  cudaEvent_t event = nullptr;
};
using FreeSlots = std::vector<std::unique_ptr<Slot>>;

class CudaPageBatch final : public PageBatch {
 public:
  CudaPageBatch(std::unique_ptr<Slot> slot, FreeSlots* home)
      : slot_(std::move(slot)), home_(home) {}
  ~CudaPageBatch() override {
    if (!done_) cudaEventSynchronize(slot_->event);
    home_->push_back(std::move(slot_));
  }

  absl::StatusOr<bool> Done() override {
    if (done_) return true;
    const cudaError_t state = cudaEventQuery(slot_->event);
    if (state == cudaErrorNotReady) return false;
    SLUICE_RETURN_IF_ERROR(CudaStatus(state, "moving KV"));
    done_ = true;
    return true;
  }

  PageSums sums(size_t i) const override {
    PageSums all;
    for (int slice = 0; slice < cuda::kPageSlices; ++slice) {
      const PageSums& part = slot_->sums[i * cuda::kPageSlices + slice];
      all.first += part.first;
      all.second += part.second;
    }
    return all;
  }

 private:
  std::unique_ptr<Slot> slot_;
  FreeSlots* const home_;
  bool done_ = false;
};

class CudaPageMover final : public PageMover {
 public:
  CudaPageMover(int device, const StreamPoints* points) : device_(device), points_(*points) {}
  ~CudaPageMover() override {
    if (stream_ == nullptr) return;
    cudaStreamSynchronize(stream_);  // also for calls of wake
    cudaStreamDestroy(stream_);
  }

  absl::Status Start() {
    SLUICE_RETURN_IF_ERROR(Bind());
    // Its kernels are short, and somebody waits for them.
    int lowest = 0, highest = 0;
    SLUICE_RETURN_IF_ERROR(CudaStatus(cudaDeviceGetStreamPriorityRange(&lowest, &highest),
                                      "asking for priorities of streams"));
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest),
                   "making a stream for KV"));
    for (size_t i = 0; i < kBatchesMax; ++i) {
      auto slot = std::make_unique<Slot>();
      const size_t job_bytes = kCopiesMax * sizeof(cuda::PageCopyJob);
      SLUICE_ASSIGN_OR_RETURN(
          slot->memory,
          AllocatePinned(job_bytes + kCopiesMax * cuda::kPageSlices * sizeof(PageSums)));
      slot->jobs = slot->memory.As<cuda::PageCopyJob>();
      slot->sums = reinterpret_cast<PageSums*>(slot->memory.As<std::byte>() + job_bytes);
      SLUICE_RETURN_IF_ERROR(CudaStatus(
          cudaEventCreateWithFlags(&slot->event, cudaEventDisableTiming | cudaEventBlockingSync),
          "making an event"));
      free_.push_back(std::move(slot));
    }
    return absl::OkStatus();
  }

  void SetWake(std::function<void()> wake) override { wake_ = std::move(wake); }

  absl::StatusOr<DeviceBuffer> AllocateStaging(size_t bytes) override {
    SLUICE_RETURN_IF_ERROR(Bind());
    return OrWhy(AllocatePinned(bytes));
  }
  absl::StatusOr<DeviceBuffer> Map(const MemoryHandle& handle) override {
    SLUICE_RETURN_IF_ERROR(Bind());
    return OrWhy(MapSharedCuda(device_, handle));
  }

  bool HasRoom() const override { return !free_.empty(); }

  absl::StatusOr<std::unique_ptr<PageBatch>> Queue(absl::Span<const PageCopy> copies,
                                                   StreamPoint after) override {
    SLUICE_RETURN_IF_ERROR(Bind());
    SLUICE_RETURN_IF_ERROR(points_.Wait(after, stream_));
    Slot& slot = *free_.back();
    for (size_t i = 0; i < copies.size(); ++i) {
      const PageCopy& copy = copies[i];
      slot.jobs[i] = {
          .from = copy.from, .to = copy.to, .bytes = copy.bytes, .key = copy.key, .sum = copy.sum};
    }
    SLUICE_RETURN_IF_ERROR(CudaStatus(
        cuda::LaunchPageCopies(
            {.jobs = slot.jobs, .sums = slot.sums, .count = static_cast<int32_t>(copies.size())},
            stream_),
        "starting to move KV"));
    if (absl::Status status = CudaStatus(cudaEventRecord(slot.event, stream_), "moving KV");
        !status.ok()) {
      cudaStreamSynchronize(stream_);  // nothing else tells when the copies have ended
      return status;
    }
    auto batch = std::make_unique<CudaPageBatch>(std::move(free_.back()), &free_);
    free_.pop_back();
    if (wake_ != nullptr) {
      SLUICE_RETURN_IF_ERROR(CudaStatus(
          cudaLaunchHostFunc(
              stream_, [](void* self) { static_cast<CudaPageMover*>(self)->wake_(); }, this),
          "moving KV"));
    }
    return batch;
  }

 private:
  // What cannot be had from a device that has failed is the device's failure.
  absl::StatusOr<DeviceBuffer> OrWhy(absl::StatusOr<DeviceBuffer> memory) const {
    if (memory.ok()) return memory;
    const cudaError_t state = cudaStreamQuery(stream_);
    if (state == cudaSuccess || state == cudaErrorNotReady) return memory;
    return CudaStatus(state, memory.status().message());
  }

  absl::Status Bind() const { return CudaStatus(cudaSetDevice(device_), "choosing the device"); }

  const int device_;
  const StreamPoints& points_;
  std::function<void()> wake_;
  cudaStream_t stream_ = nullptr;
  FreeSlots free_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PageMover>> MakeCudaPageMover(int device,
                                                             const StreamPoints* points) {
  auto mover = std::make_unique<CudaPageMover>(device, points);
  SLUICE_RETURN_IF_ERROR(mover->Start());
  return mover;
}

}  // namespace sluice
