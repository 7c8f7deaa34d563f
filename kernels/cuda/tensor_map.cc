#include "kernels/cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cuda/cuda_context.h"

namespace sluice {
namespace {

absl::StatusOr<PFN_cuTensorMapEncodeTiled_v12000> FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                  cudaEnableDefault, &found),
                 "asking the driver for cuTensorMapEncodeTiled"));
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    return absl::FailedPreconditionError(
        "the NVIDIA driver has no cuTensorMapEncodeTiled; install one for CUDA 12 or later");
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

}  // namespace

absl::StatusOr<CUtensorMap> MakeByteMap(const void* data, int64_t rows, int64_t cols,
                                        int64_t row_stride, int box_rows) {
  static const absl::StatusOr<PFN_cuTensorMapEncodeTiled_v12000> encode = FindEncode();
  if (!encode.ok()) return encode.status();
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0 || row_stride % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("matrix: starts at a multiple of ", reinterpret_cast<uintptr_t>(data) % 16,
                     " and has a row every ", row_stride, " bytes, wanted multiples of 16"));
  }
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(row_stride)};
  const cuuint32_t box[] = {128, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  CUtensorMap map;
  const CUresult result =
      (*encode)(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(data), sizes, strides,
                box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return absl::InternalError(absl::StrCat("the NVIDIA driver refuses to describe a matrix of ",
                                            rows, " x ", cols, " bytes: CUresult ",
                                            static_cast<int>(result)));
  }
  return map;
}

}  // namespace sluice
