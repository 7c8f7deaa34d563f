#include "kernels/cuda/cublas.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice {
namespace {

constexpr size_t kWorkspaceBytes = 32 << 20;

absl::Status ToStatus(cublasStatus_t status, absl::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": cuBLAS says ", cublasGetStatusName(status));
  // It also calls a GPU without room for it one that is not initialised.
  const bool no_room =
      status == CUBLAS_STATUS_ALLOC_FAILED || status == CUBLAS_STATUS_NOT_INITIALIZED;
  return no_room ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

}  // namespace

absl::Status Cublas::Start() {
  cublasHandle_t created = nullptr;
  SLUICE_RETURN_IF_ERROR(ToStatus(cublasCreate(&created), "starting cuBLAS"));
  std::unique_ptr<cublasContext, Destroy> handle(created);
  SLUICE_RETURN_IF_ERROR(
      ToStatus(cublasSetStream(created, context_.stream), "giving cuBLAS a stream"));
  SLUICE_ASSIGN_OR_RETURN(workspace_, AllocateCuda(kWorkspaceBytes));
  SLUICE_RETURN_IF_ERROR(ToStatus(cublasSetWorkspace(created, workspace_.get(), kWorkspaceBytes),
                                  "giving cuBLAS memory"));
  handle_ = std::move(handle);
  return absl::OkStatus();
}

absl::Status Cublas::Multiply(absl::string_view what, int64_t m, int64_t n, int64_t k,
                              const CublasMatrix& a, const CublasMatrix& b, bool b_transposed,
                              const CublasMatrix& c, int64_t count, bool accumulate) {
  if (m == 0 || n == 0 || count == 0) return absl::OkStatus();
  if (handle_ == nullptr) SLUICE_RETURN_IF_ERROR(Start());
  // cuBLAS counts by columns: it sees the transposes, so this is c^T = b^T a^T.
  const float one = 1, beta = accumulate ? 1 : 0;
  return ToStatus(
      cublasGemmStridedBatchedEx(
          handle_.get(), b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_OP_N, static_cast<int>(n),
          static_cast<int>(m), static_cast<int>(k), &one, b.data, b.type,
          static_cast<int>(b.row_stride), b.stride, a.data, a.type, static_cast<int>(a.row_stride),
          a.stride, &beta, const_cast<void*>(c.data), c.type, static_cast<int>(c.row_stride),
          c.stride, static_cast<int>(count), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      what);
}

}  // namespace sluice
