#include "kernels/cuda/cublas_lt.h"

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice {
namespace {

constexpr size_t kWorkspaceBytes = 32 << 20;
constexpr uint32_t kAlignment = 16;

absl::Status ToStatus(cublasStatus_t status, absl::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) {
    return absl::UnimplementedError(absl::StrCat(what, ": cuBLASLt cannot do it"));
  }
  const std::string message = absl::StrCat(what, ": cuBLASLt says ", cublasLtGetStatusName(status));
  // It also calls a GPU without room for it one that is not initialised.
  const bool no_room =
      status == CUBLAS_STATUS_ALLOC_FAILED || status == CUBLAS_STATUS_NOT_INITIALIZED;
  return no_room ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

// An object of cuBLASLt and what destroys it.
template <auto kDestroy>
struct DestroyWith {
  template <typename T>
  void operator()(T* object) const {
    kDestroy(object);
  }
};
using Operation =
    std::unique_ptr<cublasLtMatmulDescOpaque_t, DestroyWith<cublasLtMatmulDescDestroy>>;
using Layout =
    std::unique_ptr<cublasLtMatrixLayoutOpaque_t, DestroyWith<cublasLtMatrixLayoutDestroy>>;
using Preference =
    std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, DestroyWith<cublasLtMatmulPreferenceDestroy>>;

template <typename T>
absl::Status Set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute,
                 const T& value) {
  return ToStatus(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof(value)),
                  "describing a product");
}

template <typename T>
absl::Status Set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute,
                 const T& value) {
  return ToStatus(
      cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
      "describing a product");
}

absl::Status SetScales(const Operation& operation, const CublasLtProduct& p) {
  SLUICE_RETURN_IF_ERROR(Set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.w_scales));
  return Set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.x_scales);
}

// Columns in a row, as cuBLASLt counts.
absl::StatusOr<Layout> MakeLayout(cudaDataType_t type, int64_t rows, int64_t columns,
                                  int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  SLUICE_RETURN_IF_ERROR(
      ToStatus(cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(columns), stride),
               "describing a matrix"));
  return Layout(layout);
}

absl::Status SetColumns(const Layout& layout, int64_t columns) {
  const auto count = static_cast<uint64_t>(columns);
  return ToStatus(cublasLtMatrixLayoutSetAttribute(layout.get(), CUBLASLT_MATRIX_LAYOUT_COLS,
                                                   &count, sizeof(count)),
                  "describing a matrix");
}

// Rows of x for which an algorithm is chosen: prompts have any number of them.
int64_t RowsUpTo(int64_t m) {
  const int64_t step = m <= 1024 ? 128 : 1024;
  return (m + step - 1) / step * step;
}

}  // namespace

struct CublasLt::Plan {
  using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool>;
  static Shape ShapeOf(const CublasLtProduct& p) {
    return {RowsUpTo(p.m), p.n, p.k, p.w_stride, p.out_stride, p.accumulate};
  }

  Shape shape;
  Operation operation;
  Layout w, x, out;
  std::optional<cublasLtMatmulAlgo_t> algorithm;  // none: cuBLASLt cannot do it
};

CublasLt::CublasLt(const CudaContext& context) : context_(context) {}
CublasLt::~CublasLt() = default;

absl::Status CublasLt::Start() {
  if (handle_ != nullptr) return absl::OkStatus();
  cublasLtHandle_t created = nullptr;
  SLUICE_RETURN_IF_ERROR(ToStatus(cublasLtCreate(&created), "starting cuBLASLt"));
  std::unique_ptr<cublasLtContext, Destroy> handle(created);
  SLUICE_ASSIGN_OR_RETURN(workspace_, AllocateCuda(kWorkspaceBytes));
  handle_ = std::move(handle);
  return absl::OkStatus();
}

absl::StatusOr<CublasLt::Plan*> CublasLt::PlanFor(const CublasLtProduct& p) {
  const auto known = std::find_if(
      plans_.begin(), plans_.end(),
      [&](const std::unique_ptr<Plan>& plan) { return plan->shape == Plan::ShapeOf(p); });
  if (known != plans_.end()) {
    plans_.splice(plans_.begin(), plans_, known);
    return plans_.front().get();
  }
  auto plan = std::make_unique<Plan>();
  plan->shape = Plan::ShapeOf(p);
  cublasLtMatmulDesc_t operation = nullptr;
  SLUICE_RETURN_IF_ERROR(
      ToStatus(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "describing a product"));
  plan->operation.reset(operation);
  // cuBLASLt counts by columns: it sees the transposes, so this is out^T = w x^T.
  SLUICE_RETURN_IF_ERROR(Set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
  SLUICE_RETURN_IF_ERROR(Set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N));
  SLUICE_RETURN_IF_ERROR(Set(plan->operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
                             CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F));
  SLUICE_RETURN_IF_ERROR(Set(plan->operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
                             CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F));
  // An algorithm is only found when there are scales.
  SLUICE_RETURN_IF_ERROR(SetScales(plan->operation, p));
  SLUICE_ASSIGN_OR_RETURN(plan->w, MakeLayout(CUDA_R_8F_E4M3, p.k, p.n, p.w_stride));
  const int64_t rows = RowsUpTo(p.m);
  SLUICE_ASSIGN_OR_RETURN(plan->x, MakeLayout(CUDA_R_8F_E4M3, p.k, rows, p.k));
  SLUICE_ASSIGN_OR_RETURN(plan->out, MakeLayout(CUDA_R_32F, p.n, rows, p.out_stride));

  cublasLtMatmulPreference_t created = nullptr;
  SLUICE_RETURN_IF_ERROR(
      ToStatus(cublasLtMatmulPreferenceCreate(&created), "describing a product"));
  const Preference preference(created);
  SLUICE_RETURN_IF_ERROR(
      Set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes));
  for (const auto matrix :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    SLUICE_RETURN_IF_ERROR(Set(preference, matrix, kAlignment));
  }
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  const absl::Status status =
      ToStatus(cublasLtMatmulAlgoGetHeuristic(handle_.get(), plan->operation.get(), plan->w.get(),
                                              plan->x.get(), plan->out.get(), plan->out.get(),
                                              preference.get(), 1, &found, &count),
               absl::StrCat("choosing an algorithm for ", rows, " x ", p.n, " x ", p.k));
  if (!status.ok() && !absl::IsUnimplemented(status)) return status;
  if (status.ok() && count > 0) plan->algorithm = found.algo;
  if (plans_.size() == kPlansMax) plans_.pop_back();
  plans_.push_front(std::move(plan));
  return plans_.front().get();
}

absl::StatusOr<bool> CublasLt::Takes(const CublasLtProduct& p) {
  SLUICE_RETURN_IF_ERROR(Start());
  SLUICE_ASSIGN_OR_RETURN(const Plan* const plan, PlanFor(p));
  return plan->algorithm.has_value();
}

absl::Status CublasLt::Multiply(const CublasLtProduct& p) {
  if (p.m == 0 || p.n == 0) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(Start());
  SLUICE_ASSIGN_OR_RETURN(Plan* const plan, PlanFor(p));
  if (!plan->algorithm.has_value()) {
    return absl::UnimplementedError(absl::StrCat("cuBLASLt has no algorithm for an FP8 product of ",
                                                 p.m, " x ", p.n, " x ", p.k));
  }
  SLUICE_RETURN_IF_ERROR(SetColumns(plan->x, p.m));
  SLUICE_RETURN_IF_ERROR(SetColumns(plan->out, p.m));
  SLUICE_RETURN_IF_ERROR(SetScales(plan->operation, p));
  const float one = 1, beta = p.accumulate ? 1 : 0;
  const absl::Status status = ToStatus(
      cublasLtMatmul(handle_.get(), plan->operation.get(), &one, p.w, plan->w.get(), p.x,
                     plan->x.get(), &beta, p.out, plan->out.get(), p.out, plan->out.get(),
                     &*plan->algorithm, workspace_.get(), kWorkspaceBytes, context_.stream),
      "FP8 matrix product");
  if (absl::IsUnimplemented(status)) plan->algorithm.reset();  // what is found may not run
  return status;
}

}  // namespace sluice
