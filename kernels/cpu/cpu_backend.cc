#include "kernels/cpu/cpu_backend.h"

#include <unistd.h>

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/cpu/cpu_context.h"

namespace sluice {
namespace {

const char* IsaName(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kGeneric:
      return "generic";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Bf16:
      return "avx512-bf16";
    case CpuIsa::kAmx:
      return "amx-bf16";
  }
  return "?";
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, CpuIsa isa, Numerics numerics)
      : pool_(threads),
        context_{.pool = pool_, .isa = isa, .numerics = numerics},
        linear_(MakeCpuLinearOps(context_)),
        elementwise_(MakeCpuElementwiseOps(context_)),
        attention_(MakeCpuAttentionOps(context_)),
        moe_(MakeCpuMoeOps(context_)),
        sampling_(MakeCpuSamplingOps(context_)) {}

  LinearOps& linear() override { return *linear_; }
  ElementwiseOps& elementwise() override { return *elementwise_; }
  AttentionOps& attention() override { return *attention_; }
  MoeOps& moe() override { return *moe_; }
  SamplingOps& sampling() override { return *sampling_; }

  bool reads_host_memory() const override { return true; }

  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes, const std::string& what) override {
    const size_t machine_bytes =
        static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
    if (bytes > machine_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat(what, ": needs ", bytes, " bytes, this machine has ", machine_bytes));
    }
    try {
      auto owner = std::make_shared<AlignedBuffer>(bytes);
      return DeviceBuffer{std::shared_ptr<void>(owner, owner->data()), bytes};
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError(
          absl::StrCat(what, ": needs ", bytes, " bytes, and this process cannot get them"));
    }
  }

  absl::Status CopyToDevice(void* device, const void* host, size_t bytes, StreamId) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
    return absl::OkStatus();
  }
  absl::Status CopyToHost(void* host, const void* device, size_t bytes, StreamId) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
    return absl::OkStatus();
  }
  absl::Status Sync(StreamId) override { return absl::OkStatus(); }

  const KernelCalls* kernel_calls() const override { return context_.calls.get(); }

  std::string Describe() const override {
    return absl::StrCat("CPU, ", IsaName(context_.isa), ", ", pool_.threads(),
                        " threads, numerics ",
                        context_.numerics == Numerics::kExact ? "exact" : "fast");
  }

 private:
  ThreadPool pool_;
  CpuContext context_;
  std::unique_ptr<LinearOps> linear_;
  std::unique_ptr<ElementwiseOps> elementwise_;
  std::unique_ptr<AttentionOps> attention_;
  std::unique_ptr<MoeOps> moe_;
  std::unique_ptr<SamplingOps> sampling_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuBackendOptions& options) {
  constexpr int kThreadsMax = 1024;
  if (options.threads < 0 || options.threads > kThreadsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads: is ", options.threads, ", wanted 0 to ", kThreadsMax));
  }
  if (options.isa > DetectCpuIsa()) {
    return absl::InvalidArgumentError(absl::StrCat("isa: ", IsaName(options.isa),
                                                   " was asked for, this machine has ",
                                                   IsaName(DetectCpuIsa())));
  }
  const int threads = options.threads == 0 ? UsableCores() : options.threads;
  return std::make_unique<CpuBackend>(threads, options.isa, options.numerics);
}

}  // namespace sluice
