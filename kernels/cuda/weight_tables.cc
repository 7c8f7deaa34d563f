#include "kernels/cuda/weight_tables.h"

#include <cstring>
#include <type_traits>

#include "kernels/base/status.h"
#include "kernels/cuda/cuda_context.h"

namespace sluice {

cuda::Element ToElement(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return cuda::Element::kBF16;
    case DType::kF16:
      return cuda::Element::kF16;
    case DType::kF8E4M3:
      return cuda::Element::kF8E4M3;
    default:
      return cuda::Element::kF32;
  }
}

cuda::Weight ToWeight(const WeightView& view) {
  return {view.data,
          view.scales,
          view.row_stride,
          view.scale_row_stride,
          static_cast<int32_t>(view.scale_block),
          static_cast<int32_t>(view.row_begin),
          static_cast<int32_t>(view.col_begin)};
}

WeightTables::~WeightTables() {
  for (auto& [key, table] : tables_) cudaFree(table.device);
}

absl::StatusOr<const cuda::Weight*> WeightTables::Get(absl::Span<const WeightView> views,
                                                      cudaStream_t stream) {
  std::vector<cuda::Weight> host(views.size());
  const size_t bytes = host.size() * sizeof(cuda::Weight);
  static_assert(std::has_unique_object_representations_v<cuda::Weight>);
  for (size_t i = 0; i < views.size(); ++i) host[i] = ToWeight(views[i]);
  Table& table = tables_[views.data()];
  if (table.host.size() == host.size() && std::memcmp(table.host.data(), host.data(), bytes) == 0) {
    return table.device;
  }
  // Steps in flight may still read the old table.
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream), "waiting for the stream"));
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaFree(table.device), "freeing a table of weights"));
  table.device = nullptr;
  table.host.clear();
  SLUICE_RETURN_IF_ERROR(CudaStatus(cudaMalloc(reinterpret_cast<void**>(&table.device), bytes),
                                    "memory for a table of weights"));
  SLUICE_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpy(table.device, host.data(), bytes, cudaMemcpyHostToDevice),
                 "copying a table of weights"));
  table.host = std::move(host);
  return table.device;
}

}  // namespace sluice
