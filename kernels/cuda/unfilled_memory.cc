// Loaded in front of a GPU test: memory from cudaMalloc stays as it is.
//
// The backend fills whatever it allocates with zeros, so that initcheck would find every read in
// order. With this the first cudaMemset of a new allocation does nothing: a kernel that reads what
// no kernel and no copy wrote is reported. Small allocations are filled: flags and counters, which
// kernels want to begin at zero. All memory comes from cudaMalloc: under initcheck of CUDA 13.0
// kernels that touch memory of cuMemCreate fail. tools/sanitize_gpu uses this.
// Threads: any.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <mutex>
#include <set>
#include <string_view>

namespace {

constexpr size_t kFilledBytesMax = 4096;

template <typename Function>
Function* Real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

std::mutex& Lock() {
  static std::mutex lock;
  return lock;
}

// Where new allocations begin that nothing was asked to fill yet.
std::set<const void*>& Unfilled() {
  static std::set<const void*> unfilled;
  return unfilled;
}

bool TakeUnfilled(const void* memory) {
  const std::lock_guard<std::mutex> guard(Lock());
  return Unfilled().erase(memory) > 0;
}

}  // namespace

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  static auto* const real = Real<decltype(cudaMalloc)>("cudaMalloc");
  const cudaError_t error = real(memory, bytes);
  if (error == cudaSuccess && bytes > kFilledBytesMax) {
    const std::lock_guard<std::mutex> guard(Lock());
    Unfilled().insert(*memory);
  }
  return error;
}

cudaError_t cudaFree(void* memory) {
  static auto* const real = Real<decltype(cudaFree)>("cudaFree");
  TakeUnfilled(memory);
  return real(memory);
}

cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  static auto* const real = Real<decltype(cudaMemset)>("cudaMemset");
  return TakeUnfilled(memory) ? cudaSuccess : real(memory, value, bytes);
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  static auto* const real = Real<decltype(cudaMemsetAsync)>("cudaMemsetAsync");
  return TakeUnfilled(memory) ? cudaSuccess : real(memory, value, bytes, stream);
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* result) {
  static auto* const real =
      Real<decltype(cudaGetDriverEntryPointByVersion)>("cudaGetDriverEntryPointByVersion");
  if (std::string_view(name) != "cuMemCreate") return real(name, function, version, flags, result);
  *function = nullptr;
  *result = cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
