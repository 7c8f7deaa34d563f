// Linear ops of the CPU backend: checks, and the splitting of a product into tasks.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/cpu/cpu_context.h"
#include "kernels/cpu/linear_tile.h"
#include "kernels/ops/linear.h"

namespace sluice {

class CpuLinearOps final : public LinearOps {
 public:
  explicit CpuLinearOps(const CpuContext& context);

  absl::Status Linear(const LinearParams& params, StreamId stream) override;
  absl::Status MultiLinear(const MultiLinearParams& params, StreamId stream) override;
  absl::Status GatedLinear(const GatedLinearParams& params, StreamId stream) override;
  absl::Status GroupedLinear(const GroupedLinearParams& params, StreamId stream) override;
  absl::Status GroupedGatedLinear(const GroupedGatedLinearParams& params, StreamId stream) override;

 private:
  // Some rows of x times one weight matrix, or a gate and an up matrix.
  struct Product {
    LinearTile whole;  // all its rows and tokens
    const LinearKernels* kernels;
    bool gated;
    int64_t rows_per_task;
    int64_t tokens_per_task;
    int64_t first_task;
    int64_t first_pack;  // among the groups of tokens to be packed
    int64_t packed_at;   // bytes into packed_
  };

  void Add(const TensorView& x, int64_t row_begin, int64_t row_end, const WeightView& w,
           const WeightView* up, const TensorView& out, bool accumulate, Precision precision);
  absl::Status AddGroups(const TensorView& x, const TensorView& offsets, const TensorView& out,
                         absl::Span<const WeightView> weights, absl::Span<const WeightView> ups);
  // The rows that x stands for.
  absl::StatusOr<TensorView> Gather(const GroupedGatedLinearParams& params);
  const LinearKernels& ChooseKernels(const LinearTile& whole, bool gated,
                                     Precision precision) const;
  void CountCalls(const char* op);
  // Computes products_.
  void Run();
  void PackAll(bool fork);
  int64_t CutIntoTasks();
  void RunTask(const Product& product, int64_t task, int worker);

  CpuContext context_;
  const LinearKernels& exact_;
  int64_t scratch_bytes_;  // per worker
  AlignedBuffer scratch_;
  AlignedBuffer packed_;           // grows only
  AlignedBuffer gathered_;         // grows only
  std::vector<Product> products_;  // of the call in progress; keeps its capacity
};

}  // namespace sluice
