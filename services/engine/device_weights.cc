#include "services/engine/device_weights.h"

#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/engine/weight_upload.h"

namespace sluice::engine {
namespace {

constexpr size_t kAlignment = 256;  // of every matrix, as fast kernels want it

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Calls one of the two for every view there is.
template <typename OnMatrix, typename OnVector>
void ForEachView(model::ModelWeights* weights, OnMatrix on_matrix, OnVector on_vector) {
  const auto mlp = [&](model::MlpWeights* mlp) {
    on_matrix(&mlp->gate);
    on_matrix(&mlp->up);
    on_matrix(&mlp->down);
  };
  const auto layer = [&](model::LayerWeights* layer) {
    for (WeightView* view :
         {&layer->q_proj, &layer->q_a, &layer->q_b, &layer->kv_a, &layer->kv_b, &layer->o}) {
      on_matrix(view);
    }
    for (TensorView* view :
         {&layer->input_norm, &layer->q_a_norm, &layer->kv_a_norm, &layer->post_attention_norm}) {
      on_vector(view);
    }
    if (layer->dense.has_value()) mlp(&*layer->dense);
    if (!layer->moe.has_value()) return;
    on_matrix(&layer->moe->gate);
    on_vector(&layer->moe->bias);
    for (model::MlpWeights& expert : layer->moe->experts) mlp(&expert);
    if (layer->moe->shared.has_value()) mlp(&*layer->moe->shared);
  };
  on_matrix(&weights->embed);
  on_matrix(&weights->head);
  on_vector(&weights->final_norm);
  for (model::LayerWeights& each : weights->layers) layer(&each);
  if (!weights->mtp.has_value()) return;
  on_matrix(&weights->mtp->embed);
  on_matrix(&weights->mtp->eh_proj);
  on_matrix(&weights->mtp->head);
  for (TensorView* view : {&weights->mtp->enorm, &weights->mtp->hnorm, &weights->mtp->head_norm}) {
    on_vector(view);
  }
  layer(&weights->mtp->layer);
}

// Where copies go in the one allocation. Run twice: first to add up the bytes, then to say what is
// to be copied or made where.
class Copier {
 public:
  Copier(const model::ModelWeights& weights, Backend* backend)
      : random_(weights.random), backend_(backend), upload_(backend, weights.files) {}

  size_t bytes() const { return used_; }
  void StartCopying(char* device) {
    device_ = device;
    used_ = 0;
    places_.clear();
  }
  absl::Status Finish(int threads, const ProgressOut& progress) {
    SLUICE_RETURN_IF_ERROR(upload_.Run(threads, progress));
    for (const FillRandomParams& fill : fills_) {
      SLUICE_RETURN_IF_ERROR(backend_->elementwise().FillRandom(fill, StreamId{}));
    }
    return backend_->Sync(StreamId{});
  }

  void Matrix(WeightView* view) {
    if (!view->present()) return;
    const auto random = random_.find(view->data);
    const bool is_random = random != random_.end();
    const size_t element = DTypeBytes(view->dtype);
    const size_t row_bytes = static_cast<size_t>(view->cols) * element;
    const char* data = static_cast<const char*>(view->data);
    const auto [place, is_new] = Place(data, view->rows, view->cols, view->row_stride);
    view->data = place;
    if (is_new) {
      Rows(data, view->rows, row_bytes, static_cast<size_t>(view->row_stride) * element,
           !is_random);
    }
    view->row_stride = view->cols;
    if (view->scales != nullptr) Scales(view, !is_random);
    if (!is_random || !is_new || device_ == nullptr) return;
    const model::RandomPart& part = random->second;
    fills_.push_back({.numbers = part.numbers,
                      .rows = part.rows,
                      .cols = part.cols,
                      .row_begin = part.row_begin,
                      .col_begin = part.col_begin,
                      .out = *view});
  }

  void Vector(TensorView* view) {
    if (view->data == nullptr) return;
    const size_t bytes = static_cast<size_t>(view->rows()) * DTypeBytes(view->dtype);
    const char* data = static_cast<const char*>(view->data);
    const auto [place, is_new] = Place(data, 1, view->rows(), view->rows());
    view->data = const_cast<char*>(place);
    if (is_new) Rows(data, 1, bytes, bytes, /*copied=*/true);
  }

 private:
  // Device address of what begins at `data`, and whether it is new.
  std::pair<const char*, bool> Place(const void* data, int64_t rows, int64_t cols, int64_t stride) {
    const auto [it, is_new] = places_.try_emplace(std::tuple(data, rows, cols, stride), used_);
    const auto address = reinterpret_cast<uintptr_t>(device_) + it->second;
    return {reinterpret_cast<const char*>(address), is_new};
  }

  // Takes the room, and has it filled from `data` if that is to be `copied`.
  void Rows(const char* data, int64_t rows, size_t row_bytes, size_t stride_bytes, bool copied) {
    if (device_ != nullptr && copied) {
      upload_.Add(data, rows, row_bytes, stride_bytes, device_ + used_);
    }
    used_ += Aligned(static_cast<size_t>(rows) * row_bytes);
  }

  // The blocks that the view touches, in rows of their own; the view then begins in block (0, 0).
  void Scales(WeightView* view, bool copied) {
    const int64_t block = view->scale_block;
    const int64_t first_row = view->row_begin / block, first_col = view->col_begin / block;
    const int64_t rows =
        view->rows == 0 ? 0 : (view->row_begin + view->rows - 1) / block - first_row + 1;
    const int64_t cols =
        view->cols == 0 ? 0 : (view->col_begin + view->cols - 1) / block - first_col + 1;
    const float* scales = view->scales + first_row * view->scale_row_stride + first_col;
    const auto place = Place(scales, rows, cols, view->scale_row_stride);
    view->scales = reinterpret_cast<const float*>(place.first);
    if (place.second) {
      Rows(reinterpret_cast<const char*>(scales), rows, static_cast<size_t>(cols) * sizeof(float),
           static_cast<size_t>(view->scale_row_stride) * sizeof(float), copied);
    }
    view->scale_row_stride = cols;
    view->row_begin -= first_row * block;
    view->col_begin -= first_col * block;
  }

  const absl::flat_hash_map<const void*, model::RandomPart>& random_;
  Backend* const backend_;
  WeightUpload upload_;
  std::vector<FillRandomParams> fills_;
  char* device_ = nullptr;  // null while bytes are added up
  size_t used_ = 0;
  absl::flat_hash_map<std::tuple<const void*, int64_t, int64_t, int64_t>, size_t> places_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const model::ModelWeights>> CopyWeightsToDevice(
    const model::ModelWeights& weights, Backend* backend, int threads,
    const ProgressOut& progress) {
  Copier copier(weights, backend);
  const auto visit = [&](model::ModelWeights* views) {
    ForEachView(
        views, [&](WeightView* view) { copier.Matrix(view); },
        [&](TensorView* view) { copier.Vector(view); });
  };
  model::ModelWeights sizes = weights;
  visit(&sizes);
  auto allocated = backend->Allocate(copier.bytes(), "weights");
  if (absl::IsResourceExhausted(allocated.status())) {
    return absl::ResourceExhaustedError(
        absl::StrCat(allocated.status().message(),
                     ". The weights alone do not fit: take a device with more memory, or the model "
                     "in FP8"));
  }
  SLUICE_ASSIGN_OR_RETURN(const DeviceBuffer buffer, std::move(allocated));
  copier.StartCopying(buffer.As<char>());
  auto copy = std::make_shared<model::ModelWeights>(weights);
  visit(copy.get());
  SLUICE_RETURN_IF_ERROR(copier.Finish(threads, progress));
  copy->on_device = true;
  copy->owners = {buffer.memory};
  copy->files.clear();
  copy->random.clear();
  return copy;
}

}  // namespace sluice::engine
