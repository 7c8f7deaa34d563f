#include "services/engine/workspace.h"

#include <algorithm>

#include "kernels/base/status.h"

namespace sluice::engine {

absl::StatusOr<void*> Workspace::Bytes(const std::string& name, size_t bytes) {
  SLUICE_ASSIGN_OR_RETURN(DeviceBuffer buffer,
                          backend_->Allocate(std::max<size_t>(bytes, 1), name));
  bytes_ += bytes;
  buffers_.push_back(buffer);
  return buffers_.back().memory.get();
}

absl::StatusOr<TensorView> Workspace::Tensor(const std::string& name, DType dtype,
                                             std::initializer_list<int64_t> shape) {
  TensorView view(nullptr, dtype, shape);
  const size_t bytes = view.dims[0] * view.row_elements() * DTypeBytes(dtype);
  SLUICE_ASSIGN_OR_RETURN(view.data, Bytes(name, bytes));
  return view;
}

}  // namespace sluice::engine
