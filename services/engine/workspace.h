// Hands out named device tensors that live as long as it does.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops/backend.h"

namespace sluice::engine {

class Workspace {
 public:
  explicit Workspace(Backend* backend) : backend_(backend) {}

  // A zero-filled tensor; ResourceExhausted names it when the device has no room.
  absl::StatusOr<TensorView> Tensor(const std::string& name, DType dtype,
                                    std::initializer_list<int64_t> shape);
  // Zero-filled bytes for anything that is not a tensor.
  absl::StatusOr<void*> Bytes(const std::string& name, size_t bytes);

  size_t bytes() const { return bytes_; }

 private:
  Backend* backend_;
  std::vector<DeviceBuffer> buffers_;
  size_t bytes_ = 0;
};

}  // namespace sluice::engine
