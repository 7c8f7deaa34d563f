#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/memory_ledger.h"
#include "kernels/base/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/cuda_page_mover.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/shared_memory.h"
#include "kernels/cuda/stream_points.h"

namespace sluice {

namespace {

static_assert(CUDART_VERSION / 1000 == 13);
constexpr int kDriverMin = 580;  // the first that runs what CUDA 13 compiles

// Errors after which a process can do nothing more with the device.
bool LosesTheContext(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorContained:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorContextIsDestroyed:
      return true;
    default:
      return false;
  }
}

}  // namespace

absl::Status CudaStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message =
      absl::StrCat(what, ": CUDA says ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky
    return absl::ResourceExhaustedError(message);
  }
  if (!LosesTheContext(error)) return absl::InternalError(message);
  return absl::InternalError(absl::StrCat(
      message, "; what this process has on the GPU is lost: start it again. If that comes back, ",
      "CUDA_LAUNCH_BLOCKING=1 in the environment makes the op that fails name itself, and Xid ",
      "lines in the kernel's log tell whether the hardware is at fault"));
}

absl::StatusOr<CudaMemory> AllocateCuda(size_t bytes) {
  void* memory = nullptr;
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&memory, bytes == 0 ? 1 : bytes),
                                    absl::StrCat(bytes, " bytes for the kernels' own use")));
  CudaMemory owned(memory);
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaMemset(memory, 0, bytes), "clearing memory"));
  // The backend's stream does not wait for the one that clears.
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(nullptr), "clearing memory"));
  return owned;
}

namespace {

absl::Status OutOfMemory(const CudaContext& context, size_t bytes, const std::string& what) {
  size_t free_bytes = 0, total_bytes = 0;
  cudaMemGetInfo(&free_bytes, &total_bytes);
  return absl::ResourceExhaustedError(absl::StrCat(
      what, ": needs ", MemoryString(bytes), ", ", context.name, " has ", MemoryString(free_bytes),
      " free of ", MemoryString(total_bytes), "; this process took ", context.ledger->ToString()));
}

}  // namespace

absl::StatusOr<DeviceBuffer> AllocateCounted(const CudaContext& context, size_t bytes,
                                             const std::string& what) {
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(context.device), what));
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes == 0 ? 1 : bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky
    return OutOfMemory(context, bytes, what);
  }
  SLUICE_RETURN_IF_ERROR(CudaStatus(error, what));
  std::shared_ptr<void> owner(
      memory, [taken = MemoryLedger::Take(context.ledger, what, bytes)](void* p) { cudaFree(p); });
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(memory, 0, bytes, context.stream), what));
  return DeviceBuffer{std::move(owner), bytes};
}

absl::StatusOr<void*> CudaScratch::Reserve(size_t bytes) {
  if (memories_.empty() || bytes > bytes_) {
    SLUICE_ASSIGN_OR_RETURN(CudaMemory memory, AllocateCuda(bytes));
    memories_.push_back(std::move(memory));
    bytes_ = bytes;
  }
  return get();
}

namespace {

class CudaEvent final : public StreamEvent {
 public:
  explicit CudaEvent(cudaEvent_t event) : event_(event) {}
  ~CudaEvent() override { cudaEventDestroy(event_); }
  cudaEvent_t get() const { return event_; }

 private:
  const cudaEvent_t event_;
};

class CudaRecording final : public Recording {
 public:
  CudaRecording(cudaGraphExec_t graph, std::vector<KernelCalls::Entry> calls)
      : graph_(graph), calls_(std::move(calls)) {}
  ~CudaRecording() override { cudaGraphExecDestroy(graph_); }
  cudaGraphExec_t get() const { return graph_; }
  const std::vector<KernelCalls::Entry>& calls() const { return calls_; }

 private:
  const cudaGraphExec_t graph_;
  const std::vector<KernelCalls::Entry> calls_;  // of one replay
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(const CudaContext& context, std::unique_ptr<StreamPoints> points)
      : context_(context),
        points_(std::move(points)),
        linear_(MakeCudaLinearOps(context_)),
        elementwise_(MakeCudaElementwiseOps(context_)),
        attention_(MakeCudaAttentionOps(context_)),
        moe_(MakeCudaMoeOps(context_)),
        sampling_(MakeCudaSamplingOps(context_)) {}
  ~CudaBackend() override {
    cudaStreamSynchronize(context_.stream);
    cudaStreamDestroy(context_.stream);
    cudaFreeHost(context_.wait);
  }

  LinearOps& linear() override { return *linear_; }
  ElementwiseOps& elementwise() override { return *elementwise_; }
  AttentionOps& attention() override { return *attention_; }
  MoeOps& moe() override { return *moe_; }
  SamplingOps& sampling() override { return *sampling_; }

  absl::Status BindThread() override {
    return CudaStatus(cudaSetDevice(context_.device), "choosing the device");
  }
  bool reads_host_memory() const override { return false; }

  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes, const std::string& what) override {
    return AllocateCounted(context_, bytes, what);
  }

  absl::StatusOr<DeviceBuffer> AllocateShareable(size_t bytes, const std::string& what) override {
    SLUICE_RETURN_IF_ERROR(BindThread());
    absl::StatusOr<DeviceBuffer> buffer = AllocateSharedCuda(context_.device, bytes, what);
    if (absl::IsResourceExhausted(buffer.status())) return OutOfMemory(context_, bytes, what);
    // What cannot be handed over serves as well: KV is staged through the host then.
    if (!buffer.ok()) {
      SLUICE_ASSIGN_OR_RETURN(DeviceBuffer private_buffer, Allocate(bytes, what));
      private_buffer.why_no_handle = std::string(buffer.status().message());
      return private_buffer;
    }
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaMemsetAsync(buffer->memory.get(), 0, bytes, context_.stream), what));
    buffer->memory = std::shared_ptr<void>(
        buffer->memory.get(), [memory = buffer->memory,
                               taken = MemoryLedger::Take(context_.ledger, what, bytes)](void*) {});
    return buffer;
  }
  absl::StatusOr<std::unique_ptr<PageMover>> MakePageMover() override {
    return MakeCudaPageMover(context_.device, points_.get());
  }
  absl::StatusOr<StreamPoint> Point(StreamId) override { return points_->Record(context_.stream); }

  absl::Status CopyToDevice(void* device, const void* host, size_t bytes, StreamId) override {
    return CudaStatus(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, context_.stream),
                      "copying to the GPU");
  }
  absl::Status CopyToHost(void* host, const void* device, size_t bytes, StreamId) override {
    return CudaStatus(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, context_.stream),
                      "copying from the GPU");
  }
  absl::Status Sync(StreamId) override {
    return StepStatus(cudaStreamSynchronize(context_.stream));
  }
  void StopWaiting() override {
    std::atomic_ref<uint32_t>(context_.wait->stop).store(1, std::memory_order_relaxed);
  }

  absl::StatusOr<DeviceBuffer> AllocateHost(size_t bytes, const std::string& what) override {
    SLUICE_RETURN_IF_ERROR(BindThread());
    void* memory = nullptr;
    SLUICE_RETURN_IF_ERROR(CudaStatus(cudaMallocHost(&memory, bytes == 0 ? 1 : bytes),
                                      absl::StrCat(what, ": ", bytes, " bytes of pinned memory")));
    std::memset(memory, 0, bytes);
    return DeviceBuffer{std::shared_ptr<void>(memory, [](void* p) { cudaFreeHost(p); }), bytes};
  }

  absl::StatusOr<std::unique_ptr<StreamEvent>> MakeEvent() override {
    SLUICE_RETURN_IF_ERROR(BindThread());
    cudaEvent_t event = nullptr;
    // Whoever waits sleeps: a spinning thread would take a core from the step's own.
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync),
                   "making an event"));
    return std::make_unique<CudaEvent>(event);
  }
  absl::Status Mark(StreamEvent* event, StreamId) override {
    return CudaStatus(cudaEventRecord(static_cast<CudaEvent*>(event)->get(), context_.stream),
                      "marking the end of a step on the GPU");
  }
  absl::Status Wait(const StreamEvent& event) override {
    return StepStatus(cudaEventSynchronize(static_cast<const CudaEvent&>(event).get()));
  }

  bool records() const override { return true; }
  absl::StatusOr<std::unique_ptr<Recording>> Record(absl::FunctionRef<absl::Status()> queue,
                                                    StreamId) override {
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaStreamBeginCapture(context_.stream, cudaStreamCaptureModeThreadLocal),
                   "starting to record"));
    const std::vector<KernelCalls::Entry> before = context_.calls->Snapshot();
    const absl::Status queued = queue();
    std::vector<KernelCalls::Entry> calls = context_.calls->Snapshot();
    for (size_t i = 0; i < calls.size(); ++i) {
      calls[i].calls -= i < before.size() ? before[i].calls : 0;
      context_.calls->Count(calls[i].op, calls[i].kernel, -calls[i].calls);  // it has not run yet
    }
    cudaGraph_t graph = nullptr;
    const absl::Status ended =
        CudaStatus(cudaStreamEndCapture(context_.stream, &graph), "ending a recording");
    const std::unique_ptr<CUgraph_st, decltype(&cudaGraphDestroy)> owned(graph, cudaGraphDestroy);
    SLUICE_RETURN_IF_ERROR(queued);
    SLUICE_RETURN_IF_ERROR(ended);
    cudaGraphExec_t executable = nullptr;
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaGraphInstantiate(&executable, graph, 0), "preparing a recording"));
    auto recording = std::make_unique<CudaRecording>(executable, std::move(calls));
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaGraphUpload(executable, context_.stream), "uploading a recording"));
    return recording;
  }
  absl::Status Replay(const Recording& recording, StreamId) override {
    const auto& ours = static_cast<const CudaRecording&>(recording);
    for (const KernelCalls::Entry& entry : ours.calls()) {
      if (entry.calls != 0) context_.calls->Count(entry.op, entry.kernel, entry.calls);
    }
    return CudaStatus(cudaGraphLaunch(ours.get(), context_.stream), "starting a recorded step");
  }

  cudaStream_t stream() const { return context_.stream; }
  cuda::WaitState* wait() const { return context_.wait; }

  const KernelCalls* kernel_calls() const override { return context_.calls.get(); }
  DeviceMemory memory() const override {
    size_t free_bytes = 0, total_bytes = 0;
    cudaSetDevice(context_.device);  // whatever thread asks
    cudaMemGetInfo(&free_bytes, &total_bytes);
    return {context_.ledger->bytes(), free_bytes, total_bytes};
  }

  std::string Describe() const override {
    return absl::StrCat("CUDA, ", context_.name, ", ",
                        context_.numerics == Numerics::kFast ? "fast" : "exact");
  }

 private:
  absl::Status StepStatus(cudaError_t error) const {
    const uint32_t gave_up =
        std::atomic_ref<uint32_t>(context_.wait->gave_up).load(std::memory_order_relaxed);
    return CudaStatus(error, error == cudaSuccess || gave_up == cuda::kHasNot ? "a step on the GPU"
                             : gave_up == cuda::kWasStopped
                                 ? "a step on the GPU that was told to end"
                                 : absl::StrCat("a step on the GPU whose blocks waited ",
                                                context_.wait->limit_ms, " ms for each other"));
  }

  const CudaContext context_;
  const std::unique_ptr<StreamPoints> points_;
  std::unique_ptr<LinearOps> linear_;
  std::unique_ptr<ElementwiseOps> elementwise_;
  std::unique_ptr<AttentionOps> attention_;
  std::unique_ptr<MoeOps> moe_;
  std::unique_ptr<SamplingOps> sampling_;
};

}  // namespace

cudaStream_t StreamOf(Backend& backend) { return dynamic_cast<CudaBackend&>(backend).stream(); }
cuda::WaitState* WaitStateOf(Backend& backend) {
  return dynamic_cast<CudaBackend&>(backend).wait();
}

namespace {

// CUDA has one error for a driver that is not there and for one that is too old.
std::string WhyNoDevice(cudaError_t error) {
  int driver = 0;
  if (error != cudaErrorInsufficientDriver || cudaDriverGetVersion(&driver) != cudaSuccess) {
    return cudaGetErrorString(error);
  }
  if (driver == 0)
    return "no NVIDIA driver is loaded (in a container: pass the GPUs in, such as --gpus all)";
  return absl::StrCat("the driver is for CUDA ", driver / 1000, ".", driver % 1000 / 10,
                      ", wanted ", CUDART_VERSION / 1000, ".0 (driver ", kDriverMin, " or later)");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("no CUDA device can be used: ", WhyNoDevice(error)));
  }
  if (options.device < 0 || options.device >= count) {
    return absl::FailedPreconditionError(
        absl::StrCat("device ", options.device, " was asked for, this machine has ", count));
  }
  cudaDeviceProp properties;
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaGetDeviceProperties(&properties, options.device), "asking for the device"));
  if (properties.major != 9 || properties.minor != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(properties.name, " has compute capability ", properties.major, ".",
                     properties.minor, ", the kernels were compiled for 9.0 (Hopper)"));
  }
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(options.device), "choosing the device"));
  CudaContext context{.device = options.device,
                      .numerics = options.numerics,
                      .multiprocessors = properties.multiProcessorCount,
                      .name = absl::StrCat(properties.name, " ", options.device)};
  SLUICE_RETURN_IF_ERROR(CudaStatus(
      cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking), "making a stream"));
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaMallocHost(reinterpret_cast<void**>(&context.wait), sizeof(cuda::WaitState)),
                 "pinned memory"));
  *context.wait = {.stop = 0, .limit_ms = cuda::kWaitLimitMs, .gave_up = cuda::kHasNot};
  SLUICE_ASSIGN_OR_RETURN(std::unique_ptr<StreamPoints> points, StreamPoints::Create());
  return std::make_unique<CudaBackend>(context, std::move(points));
}

}  // namespace sluice
