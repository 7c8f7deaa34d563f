// The expert weights of grouped products, as tables on the device.
//
// The engine hands over the same spans of views at every step. A table is made the first time a
// span is seen (that call waits for its copy), found again by the span's address, and made anew if
// the views there have changed.
// Threads: those of the ops that use it.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/launch.h"

namespace sluice {

cuda::Element ToElement(DType dtype);
cuda::Weight ToWeight(const WeightView& view);

// Whether they are the same memory, seen in the same way.
bool SameView(const WeightView& a, const WeightView& b);

template <typename Entry>
class WeightTables {
 public:
  using MakeEntry = std::function<absl::StatusOr<Entry>(const WeightView&)>;
  explicit WeightTables(MakeEntry make) : make_(std::move(make)) {}

  // On the device, one entry per view.
  absl::StatusOr<const Entry*> Get(absl::Span<const WeightView> views, cudaStream_t stream) {
    Table& table = tables_[views.data()];
    if (std::equal(table.views.begin(), table.views.end(), views.begin(), views.end(), SameView)) {
      return static_cast<const Entry*>(table.device.get());
    }
    std::vector<Entry> host;
    for (const WeightView& view : views) {
      SLUICE_ASSIGN_OR_RETURN(Entry entry, make_(view));
      host.push_back(std::move(entry));
    }
    // Steps in flight may still read the old table.
    SLUICE_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream), "waiting for the stream"));
    table.views.clear();
    SLUICE_ASSIGN_OR_RETURN(table.device, AllocateCuda(host.size() * sizeof(Entry)));
    SLUICE_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpy(table.device.get(), host.data(), host.size() * sizeof(Entry),
                              cudaMemcpyHostToDevice),
                   "copying a table of weights"));
    table.views.assign(views.begin(), views.end());
    return static_cast<const Entry*>(table.device.get());
  }

 private:
  struct Table {
    std::vector<WeightView> views;
    CudaMemory device;
  };
  MakeEntry make_;
  std::unordered_map<const void*, Table> tables_;
};

}  // namespace sluice
