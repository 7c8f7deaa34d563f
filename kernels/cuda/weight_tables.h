// The expert weights of grouped products, as tables on the device.
//
// The engine hands over the same spans of views at every step. A table is made the first time a
// span is seen (that call waits for its copy), found again by the span's address, and made anew if
// the views there have changed.
// Threads: those of the ops that use it.
#pragma once

#include <cuda_runtime_api.h>

#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/base/tensor_view.h"
#include "kernels/cuda/launch.h"

namespace sluice {

cuda::Element ToElement(DType dtype);
cuda::Weight ToWeight(const WeightView& view);

class WeightTables {
 public:
  WeightTables() = default;
  WeightTables(const WeightTables&) = delete;
  WeightTables& operator=(const WeightTables&) = delete;
  ~WeightTables();

  // On the device, one entry per view.
  absl::StatusOr<const cuda::Weight*> Get(absl::Span<const WeightView> views, cudaStream_t stream);

 private:
  struct Table {
    std::vector<cuda::Weight> host;
    cuda::Weight* device = nullptr;
  };
  std::unordered_map<const void*, Table> tables_;
};

}  // namespace sluice
