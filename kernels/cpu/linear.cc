#include "kernels/cpu/linear.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/cpu/fork.h"
#include "kernels/cpu/linear_exact.h"
#include "kernels/cpu/linear_fast.h"
#include "kernels/ops/checks.h"

namespace sluice {
namespace {

// Below this many multiply-adds a product is done before other threads would have joined in.
constexpr int64_t kForkMin = 48 * 1024;
// And below this many elements x is packed by the caller alone.
constexpr int64_t kPackForkMin = 64 * 1024;
// Tasks per thread to aim for, so that threads finish together.
constexpr int64_t kTasksPerThread = 16;
// From this many tokens on it pays to widen weights, or to round them, for bf16 arithmetic.
constexpr int64_t kWidenTokensMin = 5;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

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

absl::Status CheckScaleBlock(absl::string_view what, const WeightView& w) {
  if (w.scales != nullptr && (w.scale_block < 1 || w.scale_block > kScaleBlockMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": scale block ", w.scale_block, ", wanted 1 to ", kScaleBlockMax));
  }
  return absl::OkStatus();
}

// Whether x packed for one is packed for the other.
bool SameChunks(const WeightRows& a, const WeightRows& b) {
  if (a.scales == nullptr || b.scales == nullptr) return a.scales == b.scales;
  return a.scale_block == b.scale_block && (a.col_begin - b.col_begin) % a.scale_block == 0;
}

// The element of `items` (sorted by item.*first, beginning with 0) that index belongs to.
template <typename Item>
const Item& Owner(const std::vector<Item>& items, int64_t index, int64_t Item::*first) {
  const auto after =
      std::upper_bound(items.begin(), items.end(), index,
                       [&](int64_t wanted, const Item& item) { return wanted < item.*first; });
  return *(after - 1);
}

}  // namespace

CpuLinearOps::CpuLinearOps(const CpuContext& context)
    : context_(context),
      exact_(context.isa >= CpuIsa::kAvx512Bf16
                 ? simd_avx512::GetGfniExactLinearKernels()
                 : SLUICE_CHOOSE_KERNELS(context.isa, GetExactLinearKernels)),
      scratch_bytes_(exact_.scratch_bytes) {
  if (context.numerics == Numerics::kFast && context.isa >= CpuIsa::kAvx512Bf16) {
    scratch_bytes_ = std::max(scratch_bytes_, GetBf16LinearKernels().scratch_bytes);
    if (context.isa >= CpuIsa::kAmx) {
      scratch_bytes_ = std::max(scratch_bytes_, GetAmxLinearKernels().scratch_bytes);
    }
  }
  scratch_bytes_ = RoundUp(scratch_bytes_, AlignedBuffer::kAlignment);
  scratch_ = AlignedBuffer(context.pool.threads() * scratch_bytes_);
}

absl::Status CpuLinearOps::Linear(const LinearParams& params, StreamId) {
  SLUICE_RETURN_IF_ERROR(CheckLinear(params));
  SLUICE_RETURN_IF_ERROR(CheckScaleBlock("w", params.w));
  products_.clear();
  Add(params.x, 0, params.x.rows(), params.w, nullptr, params.out, params.accumulate,
      params.precision);
  CountCalls("linear");
  Run();
  return absl::OkStatus();
}

absl::Status CpuLinearOps::MultiLinear(const MultiLinearParams& params, StreamId) {
  SLUICE_RETURN_IF_ERROR(CheckMultiLinear(params));
  products_.clear();
  for (size_t i = 0; i < params.weights.size(); ++i) {
    SLUICE_RETURN_IF_ERROR(CheckScaleBlock(absl::StrCat("weights[", i, "]"), params.weights[i]));
    Add(params.x, 0, params.x.rows(), params.weights[i], nullptr, params.outs[i], false,
        Precision::kBackend);
  }
  CountCalls("multi_linear");
  Run();
  return absl::OkStatus();
}

absl::Status CpuLinearOps::GatedLinear(const GatedLinearParams& params, StreamId) {
  SLUICE_RETURN_IF_ERROR(CheckGatedLinear(params));
  SLUICE_RETURN_IF_ERROR(CheckScaleBlock("gate", params.gate));
  SLUICE_RETURN_IF_ERROR(CheckScaleBlock("up", params.up));
  products_.clear();
  Add(params.x, 0, params.x.rows(), params.gate, &params.up, params.out, false,
      Precision::kBackend);
  CountCalls("gated_linear");
  Run();
  return absl::OkStatus();
}

absl::Status CpuLinearOps::GroupedLinear(const GroupedLinearParams& params, StreamId) {
  SLUICE_RETURN_IF_ERROR(CheckGroupedLinear(params));
  SLUICE_RETURN_IF_ERROR(AddGroups(params.x, params.offsets, params.out, params.weights, {}));
  CountCalls("grouped_linear");
  Run();
  return absl::OkStatus();
}

absl::Status CpuLinearOps::GroupedGatedLinear(const GroupedGatedLinearParams& params, StreamId) {
  SLUICE_RETURN_IF_ERROR(CheckGroupedGatedLinear(params));
  TensorView x = params.x;
  if (params.pair_rows.data != nullptr && !params.gates.empty()) {
    SLUICE_ASSIGN_OR_RETURN(x, Gather(params));
  }
  SLUICE_RETURN_IF_ERROR(AddGroups(x, params.offsets, params.out, params.gates, params.ups));
  CountCalls("grouped_gated_linear");
  Run();
  return absl::OkStatus();
}

absl::StatusOr<TensorView> CpuLinearOps::Gather(const GroupedGatedLinearParams& params) {
  const int64_t rows = params.out.rows(), columns = params.x.dims[1];
  const int64_t pairs = params.pair_rows.dims[1];
  const size_t bytes = static_cast<size_t>(rows * columns) * sizeof(float);
  if (gathered_.size() < bytes) gathered_ = AlignedBuffer(bytes);
  TensorView gathered(gathered_.As<float>(), DType::kF32, {rows, columns});
  for (int64_t token = 0; token < params.x.rows(); ++token) {
    for (int64_t p = 0; p < pairs; ++p) {
      const int32_t row = params.pair_rows.Row<int32_t>(token)[p];
      if (row < -1 || row >= rows) {
        return absl::InvalidArgumentError(
            absl::StrCat("pair_rows[", token, ", ", p, "]: is ", row, ", out has ", rows, " rows"));
      }
    }
  }
  ForkIfWorth(context_.pool, params.x.rows(), columns / 8 * pairs, [&](int64_t token) {
    for (int64_t p = 0; p < pairs; ++p) {
      const int32_t row = params.pair_rows.Row<int32_t>(token)[p];
      if (row < 0) continue;
      std::memcpy(gathered.Row<float>(row), params.x.Row<float>(token),
                  static_cast<size_t>(columns) * sizeof(float));
    }
  });
  return gathered;
}

absl::Status CpuLinearOps::AddGroups(const TensorView& x, const TensorView& offsets,
                                     const TensorView& out, absl::Span<const WeightView> weights,
                                     absl::Span<const WeightView> ups) {
  products_.clear();
  if (weights.empty()) return absl::OkStatus();
  const int64_t k = weights[0].cols, n = weights[0].rows;
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
    const std::string name = absl::StrCat("weights[", g, "]");
    SLUICE_RETURN_IF_ERROR(CheckWeight(name, weights[g], n, k));
    SLUICE_RETURN_IF_ERROR(CheckScaleBlock(name, weights[g]));
    if (!ups.empty()) {
      const std::string up_name = absl::StrCat("ups[", g, "]");
      SLUICE_RETURN_IF_ERROR(CheckWeight(up_name, ups[g], n, k));
      SLUICE_RETURN_IF_ERROR(CheckScaleBlock(up_name, ups[g]));
    }
    Add(x, begin[g], begin[g + 1], weights[g], ups.empty() ? nullptr : &ups[g], out, false,
        Precision::kBackend);
  }
  return absl::OkStatus();
}

void CpuLinearOps::Add(const TensorView& x, int64_t row_begin, int64_t row_end, const WeightView& w,
                       const WeightView* up, const TensorView& out, bool accumulate,
                       Precision precision) {
  if (row_begin == row_end || w.rows == 0) return;
  Product product{};
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
  product.gated = up != nullptr;
  product.kernels = &ChooseKernels(whole, product.gated, precision);
  products_.push_back(product);
}

const LinearKernels& CpuLinearOps::ChooseKernels(const LinearTile& whole, bool gated,
                                                 Precision precision) const {
  if (precision == Precision::kF32 || context_.numerics == Numerics::kExact ||
      context_.isa < CpuIsa::kAvx512Bf16) {
    return exact_;
  }
  const bool is_bf16 = whole.w.dtype == DType::kBF16;
  if (context_.isa >= CpuIsa::kAmx && (!gated || SameChunks(whole.w, whole.up))) {
    if (whole.tokens >= (is_bf16 ? 2 : kWidenTokensMin)) return GetAmxLinearKernels();
    // For a single token f32 arithmetic is faster, unless weights are bf16 pairs as they lie.
    const bool is_f8 = whole.w.dtype == DType::kF8E4M3;
    return is_bf16 || (is_f8 && whole.tokens > 1) ? GetBf16LinearKernels() : exact_;
  }
  const bool few = whole.tokens < kWidenTokensMin;
  const bool rounds_weights = whole.w.dtype == DType::kF32 || whole.w.dtype == DType::kF16;
  return few && rounds_weights ? exact_ : GetBf16LinearKernels();
}

void CpuLinearOps::CountCalls(const char* op) {
  const LinearKernels* last = nullptr;  // a group's products mostly have the same
  for (const Product& product : products_) {
    if (product.kernels == last) continue;
    last = product.kernels;
    context_.calls->Count(op, last == &exact_                   ? "f32"
                              : last == &GetBf16LinearKernels() ? "bf16_dot"
                                                                : "amx");
  }
}

void CpuLinearOps::Run() {
  int64_t work = 0;
  for (const Product& product : products_) {
    work += product.whole.rows * product.whole.tokens * product.whole.k;
  }
  const bool fork = work >= kForkMin;
  PackAll(fork);
  const int64_t tasks = CutIntoTasks();
  const auto run = [&](int64_t task, int worker) {
    RunTask(Owner(products_, task, &Product::first_task), task, worker);
  };
  if (fork) return context_.pool.ParallelFor(tasks, run);
  for (int64_t task = 0; task < tasks; ++task) run(task, 0);
}

void CpuLinearOps::PackAll(bool fork) {
  int64_t groups = 0, bytes = 0, elements = 0;
  for (Product& product : products_) {
    product.first_pack = groups;
    product.packed_at = bytes;
    const LinearKernels& kernels = *product.kernels;
    if (kernels.pack_tokens == 0) continue;
    LinearTile& whole = product.whole;
    whole.packed_group_bytes = kernels.packed_bytes(whole);
    const int64_t own_groups = CeilDiv(whole.tokens, kernels.pack_tokens);
    groups += own_groups;
    bytes += RoundUp(own_groups * whole.packed_group_bytes, AlignedBuffer::kAlignment);
    elements += whole.tokens * whole.k;
  }
  if (static_cast<size_t>(bytes) > packed_.size()) packed_ = AlignedBuffer(bytes + bytes / 2);
  for (Product& product : products_) {
    product.whole.packed_x = packed_.As<char>() + product.packed_at;
  }
  const auto pack = [&](int64_t group) {
    const Product& product = Owner(products_, group, &Product::first_pack);
    const int64_t index = group - product.first_pack;
    product.kernels->pack(
        product.whole, index,
        packed_.As<char>() + product.packed_at + index * product.whole.packed_group_bytes);
  };
  if (fork && elements >= kPackForkMin) return context_.pool.ParallelFor(groups, pack);
  for (int64_t group = 0; group < groups; ++group) pack(group);
}

// Sets what a task of each product is, and returns how many there are.
int64_t CpuLinearOps::CutIntoTasks() {
  const int64_t wanted = kTasksPerThread * context_.pool.threads();
  int64_t tasks = 0;
  for (int64_t shrink = 1;; shrink *= 2) {
    bool can_shrink = false;
    tasks = 0;
    for (Product& product : products_) {
      const LinearKernels& kernels = *product.kernels;
      const LinearTile& whole = product.whole;
      product.rows_per_task = std::max(kernels.rows_min, kernels.rows_max / shrink);
      can_shrink |= product.rows_per_task > kernels.rows_min;
      int64_t tokens_max = kernels.tokens_max;
      if (kernels.packed_bytes_max != 0 && whole.packed_group_bytes != 0) {
        const int64_t groups = kernels.packed_bytes_max / whole.packed_group_bytes;
        tokens_max = std::clamp(groups * kernels.pack_tokens, 2 * kernels.pack_tokens, tokens_max);
      }
      const int64_t token_blocks = CeilDiv(whole.tokens, tokens_max);
      product.tokens_per_task =
          RoundUp(CeilDiv(whole.tokens, token_blocks), std::max<int64_t>(1, kernels.pack_tokens));
      product.first_task = tasks;
      tasks += CeilDiv(whole.rows, product.rows_per_task) *
               CeilDiv(whole.tokens, product.tokens_per_task);
    }
    if (tasks >= wanted || !can_shrink) return tasks;
  }
}

void CpuLinearOps::RunTask(const Product& product, int64_t task, int worker) {
  const LinearTile& whole = product.whole;
  const LinearKernels& kernels = *product.kernels;
  const int64_t row_blocks = CeilDiv(whole.rows, product.rows_per_task);
  const int64_t index = task - product.first_task;
  const int64_t row = index % row_blocks * product.rows_per_task;
  const int64_t token = index / row_blocks * product.tokens_per_task;
  LinearTile tile = whole;
  tile.rows = std::min(product.rows_per_task, whole.rows - row);
  tile.tokens = std::min(product.tokens_per_task, whole.tokens - token);
  tile.x += token * whole.x_stride;
  if (kernels.pack_tokens != 0) {
    tile.packed_x += token / kernels.pack_tokens * whole.packed_group_bytes;
  }
  tile.out += token * whole.out_stride + row;
  tile.w = Skip(whole.w, row);
  if (product.gated) tile.up = Skip(whole.up, row);
  (product.gated ? kernels.gated : kernels.linear)(tile,
                                                   scratch_.As<char>() + worker * scratch_bytes_);
}

std::unique_ptr<LinearOps> MakeCpuLinearOps(const CpuContext& context) {
  return std::make_unique<CpuLinearOps>(context);
}

}  // namespace sluice
