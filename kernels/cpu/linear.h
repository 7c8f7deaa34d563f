// Linear ops of the CPU backend: checks, and the splitting of a product into tasks.
#pragma once

#include <vector>

#include "kernels/base/aligned_buffer.h"
#include "kernels/cpu/cpu_context.h"
#include "kernels/cpu/linear_exact.h"
#include "kernels/ops/linear.h"

namespace sluice {

class CpuLinearOps final : public LinearOps {
 public:
  explicit CpuLinearOps(const CpuContext& context);

  absl::Status Linear(const LinearParams& params, StreamId stream) override;
  absl::Status GatedLinear(const GatedLinearParams& params, StreamId stream) override;
  absl::Status GroupedLinear(const GroupedLinearParams& params, StreamId stream) override;
  absl::Status GroupedGatedLinear(const GroupedGatedLinearParams& params, StreamId stream) override;

 private:
  // One dense product: some rows of x with one weight matrix, or with a gate and an up matrix.
  struct Product {
    LinearTile whole;        // all its rows and tokens
    int64_t first_task = 0;  // of RunExact
  };

  void Add(const TensorView& x, int64_t row_begin, int64_t row_end, const WeightView& w,
           const WeightView* up, const TensorView& out, bool accumulate);
  absl::Status AddGroups(const TensorView& x, const TensorView& offsets, const TensorView& out,
                         absl::Span<const WeightView> weights, absl::Span<const WeightView> ups);
  void RunExact();
  void RunExactTask(const Product& product, int64_t task, int worker);

  CpuContext context_;
  const ExactLinearKernels& exact_;
  AlignedBuffer exact_scratch_;    // kExactScratchFloats per worker
  std::vector<Product> products_;  // of the call in progress; keeps its capacity
};

}  // namespace sluice
