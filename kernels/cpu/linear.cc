#include "kernels/cpu/linear.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice {
namespace {

// Below this many multiply-adds a product is done before other threads would have joined in.
constexpr int64_t kForkMin = 48 * 1024;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

WeightRows ToRows(const WeightView& w) {
  return {w.data,        w.dtype,     w.row_stride, w.scales, w.scale_row_stride,
          w.scale_block, w.row_begin, w.col_begin};
}

WeightRows Skip(const WeightRows& w, int64_t rows) {
  WeightRows rest = w;
  rest.data = static_cast<const char*>(w.data) + rows * w.stride * DTypeBytes(w.dtype);
  rest.row_begin += rows;
  return rest;
}

absl::Status CheckWeight(absl::string_view what, const WeightView& w, int64_t rows, int64_t cols) {
  if (w.rows != rows || w.cols != cols) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": is [", w.rows, ", ", w.cols, "], wanted [", rows, ", ", cols, "]"));
  }
  if (w.dtype != DType::kF32 && w.dtype != DType::kBF16 && w.dtype != DType::kF16 &&
      w.dtype != DType::kF8E4M3) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": is ", DTypeName(w.dtype), ", wanted F32, BF16, F16 or F8_E4M3"));
  }
  if (w.data == nullptr && rows * cols > 0) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": null data"));
  }
  if (rows > 1 && w.row_stride < cols) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": row stride ", w.row_stride, " is less than ", cols, " columns"));
  }
  if (w.scales != nullptr && (w.scale_block < 1 || w.scale_block > kScaleBlockMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": scale block ", w.scale_block, ", wanted 1 to ", kScaleBlockMax));
  }
  return absl::OkStatus();
}

absl::Status CheckGroupCount(const TensorView& offsets, size_t weights) {
  return CheckTensor("offsets", offsets, DType::kI32, {static_cast<int64_t>(weights) + 1});
}

}  // namespace

CpuLinearOps::CpuLinearOps(const CpuContext& context)
    : context_(context),
      exact_(SLUICE_CHOOSE_KERNELS(context.isa, GetExactLinearKernels)),
      exact_scratch_(context.pool.threads() * kExactScratchFloats * sizeof(float)) {}

absl::Status CpuLinearOps::Linear(const LinearParams& params, StreamId) {
  const int64_t k = params.w.cols, n = params.w.rows;
  SLUICE_RETURN_IF_ERROR(CheckTensor("x", params.x, DType::kF32, {-1, k}));
  SLUICE_RETURN_IF_ERROR(CheckWeight("w", params.w, n, k));
  SLUICE_RETURN_IF_ERROR(CheckTensor("out", params.out, DType::kF32, {params.x.rows(), n}));
  products_.clear();
  Add(params.x, 0, params.x.rows(), params.w, nullptr, params.out, params.accumulate);
  RunExact();
  return absl::OkStatus();
}

absl::Status CpuLinearOps::GatedLinear(const GatedLinearParams& params, StreamId) {
  const int64_t k = params.gate.cols, n = params.gate.rows;
  SLUICE_RETURN_IF_ERROR(CheckTensor("x", params.x, DType::kF32, {-1, k}));
  SLUICE_RETURN_IF_ERROR(CheckWeight("gate", params.gate, n, k));
  SLUICE_RETURN_IF_ERROR(CheckWeight("up", params.up, n, k));
  SLUICE_RETURN_IF_ERROR(CheckTensor("out", params.out, DType::kF32, {params.x.rows(), n}));
  products_.clear();
  Add(params.x, 0, params.x.rows(), params.gate, &params.up, params.out, false);
  RunExact();
  return absl::OkStatus();
}

absl::Status CpuLinearOps::GroupedLinear(const GroupedLinearParams& params, StreamId) {
  SLUICE_RETURN_IF_ERROR(CheckGroupCount(params.offsets, params.weights.size()));
  SLUICE_RETURN_IF_ERROR(AddGroups(params.x, params.offsets, params.out, params.weights, {}));
  RunExact();
  return absl::OkStatus();
}

absl::Status CpuLinearOps::GroupedGatedLinear(const GroupedGatedLinearParams& params, StreamId) {
  SLUICE_RETURN_IF_ERROR(CheckGroupCount(params.offsets, params.gates.size()));
  if (params.ups.size() != params.gates.size()) {
    return absl::InvalidArgumentError(absl::StrCat("ups: ", params.ups.size(), " matrices, wanted ",
                                                   params.gates.size(), " as in gates"));
  }
  SLUICE_RETURN_IF_ERROR(AddGroups(params.x, params.offsets, params.out, params.gates, params.ups));
  RunExact();
  return absl::OkStatus();
}

absl::Status CpuLinearOps::AddGroups(const TensorView& x, const TensorView& offsets,
                                     const TensorView& out, absl::Span<const WeightView> weights,
                                     absl::Span<const WeightView> ups) {
  products_.clear();
  if (weights.empty()) return absl::OkStatus();
  const int64_t k = weights[0].cols, n = weights[0].rows;
  SLUICE_RETURN_IF_ERROR(CheckTensor("x", x, DType::kF32, {-1, k}));
  SLUICE_RETURN_IF_ERROR(CheckTensor("out", out, DType::kF32, {x.rows(), n}));
  const int32_t* const begin = offsets.As<int32_t>();
  if (begin[0] != 0) {
    return absl::InvalidArgumentError(absl::StrCat("offsets[0]: is ", begin[0], ", wanted 0"));
  }
  for (size_t g = 0; g < weights.size(); ++g) {
    if (begin[g + 1] < begin[g] || begin[g + 1] > x.rows()) {
      return absl::InvalidArgumentError(absl::StrCat("offsets[", g + 1, "]: is ", begin[g + 1],
                                                     ", wanted ", begin[g], " to ", x.rows()));
    }
    if (begin[g + 1] == begin[g]) continue;
    SLUICE_RETURN_IF_ERROR(CheckWeight(absl::StrCat("weights[", g, "]"), weights[g], n, k));
    if (!ups.empty())
      SLUICE_RETURN_IF_ERROR(CheckWeight(absl::StrCat("ups[", g, "]"), ups[g], n, k));
    Add(x, begin[g], begin[g + 1], weights[g], ups.empty() ? nullptr : &ups[g], out, false);
  }
  return absl::OkStatus();
}

void CpuLinearOps::Add(const TensorView& x, int64_t row_begin, int64_t row_end, const WeightView& w,
                       const WeightView* up, const TensorView& out, bool accumulate) {
  if (row_begin == row_end || w.rows == 0) return;
  Product product;
  LinearTile& whole = product.whole;
  whole.x = x.Row<const float>(row_begin);
  whole.x_stride = x.row_stride;
  whole.tokens = row_end - row_begin;
  whole.k = w.cols;
  whole.w = ToRows(w);
  if (up != nullptr) whole.up = ToRows(*up);
  whole.rows = w.rows;
  whole.out = out.Row<float>(row_begin);
  whole.out_stride = out.row_stride;
  whole.accumulate = accumulate;
  products_.push_back(product);
}

void CpuLinearOps::RunExact() {
  int64_t tasks = 0, work = 0;
  for (Product& product : products_) {
    const LinearTile& whole = product.whole;
    product.first_task = tasks;
    tasks += CeilDiv(whole.rows, kExactTileRows) * CeilDiv(whole.tokens, kExactTileTokens);
    work += whole.rows * whole.tokens * whole.k;
  }
  if (work < kForkMin) {
    for (const Product& product : products_) {
      const int64_t end = &product == &products_.back() ? tasks : (&product + 1)->first_task;
      for (int64_t task = product.first_task; task < end; ++task) RunExactTask(product, task, 0);
    }
    return;
  }
  context_.pool.ParallelFor(tasks, [&](int64_t task, int worker) {
    const auto after = std::upper_bound(
        products_.begin(), products_.end(), task,
        [](int64_t wanted, const Product& product) { return wanted < product.first_task; });
    RunExactTask(*(after - 1), task, worker);
  });
}

void CpuLinearOps::RunExactTask(const Product& product, int64_t task, int worker) {
  const LinearTile& whole = product.whole;
  const int64_t row_tiles = CeilDiv(whole.rows, kExactTileRows);
  const int64_t index = task - product.first_task;
  const int64_t row = index % row_tiles * kExactTileRows;
  const int64_t token = index / row_tiles * kExactTileTokens;
  LinearTile tile = whole;
  tile.rows = std::min<int64_t>(kExactTileRows, whole.rows - row);
  tile.tokens = std::min<int64_t>(kExactTileTokens, whole.tokens - token);
  tile.x += token * whole.x_stride;
  tile.out += token * whole.out_stride + row;
  tile.w = Skip(whole.w, row);
  const bool gated = whole.up.data != nullptr;
  if (gated) tile.up = Skip(whole.up, row);
  float* scratch = exact_scratch_.As<float>() + worker * kExactScratchFloats;
  (gated ? exact_.gated : exact_.linear)(tile, scratch);
}

std::unique_ptr<LinearOps> MakeCpuLinearOps(const CpuContext& context) {
  return std::make_unique<CpuLinearOps>(context);
}

}  // namespace sluice
