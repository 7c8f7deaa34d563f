#include "services/model/weights.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/model/buffer_pool.h"
#include "services/model/checkpoint_source.h"
#include "services/model/random_weights.h"
#include "services/model/tensor_manifest.h"

namespace sluice::model {
namespace {

enum class Split { kNone, kRows, kCols };

// How tensor parallelism divides a matrix: along the heads, or along an MLP's inner dimension.
Split SplitOf(TensorRole role) {
  switch (role) {
    case TensorRole::kQProj:
    case TensorRole::kQB:
    case TensorRole::kKvB:
    case TensorRole::kDenseGate:
    case TensorRole::kDenseUp:
    case TensorRole::kSharedGate:
    case TensorRole::kSharedUp:
      return Split::kRows;
    case TensorRole::kO:
    case TensorRole::kDenseDown:
    case TensorRole::kSharedDown:
      return Split::kCols;
    default:
      return Split::kNone;
  }
}

absl::Status CheckDivides(absl::string_view what, int64_t value, int64_t tp_size) {
  if (value % tp_size == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is ", value, ", wanted a multiple of tp_size, ", tp_size));
}

absl::Status CheckSlice(const ModelConfig& config, const RankSlice& slice) {
  if (slice.tp_size < 1 || slice.tp_rank < 0 || slice.tp_rank >= slice.tp_size) {
    return absl::InvalidArgumentError(absl::StrCat("tp_rank is ", slice.tp_rank, " of tp_size ",
                                                   slice.tp_size, ", wanted 0 to tp_size - 1"));
  }
  SLUICE_RETURN_IF_ERROR(
      CheckDivides("num_attention_heads", config.num_attention_heads, slice.tp_size));
  SLUICE_RETURN_IF_ERROR(
      CheckDivides("intermediate_size", config.intermediate_size, slice.tp_size));
  SLUICE_RETURN_IF_ERROR(CheckDivides("n_shared_experts * moe_intermediate_size",
                                      config.n_shared_experts * config.moe_intermediate_size,
                                      slice.tp_size));
  std::vector<bool> held(config.n_routed_experts, false);
  for (const int32_t expert : slice.experts) {
    if (expert < 0 || expert >= config.n_routed_experts || held[expert]) {
      return absl::InvalidArgumentError(absl::StrCat("the rank's experts hold ", expert,
                                                     ", wanted each of 0 to ",
                                                     config.n_routed_experts - 1, " at most once"));
    }
    held[expert] = true;
  }
  return absl::OkStatus();
}

class Assembler {
 public:
  Assembler(const ModelConfig& config, const std::vector<TensorSpec>& specs, const RankSlice& slice,
            WeightSource& source)
      : config_(config), specs_(specs), slice_(slice), source_(source) {}

  ModelWeights Assemble() {
    MakeLayers();
    for (const TensorSpec& spec : specs_) {
      // A tied head is never read, even where a checkpoint holds one.
      if (spec.need == TensorNeed::kTied || !source_.Has(spec)) continue;
      if (spec.is_vector()) {
        PlaceVector(spec);
      } else {
        PlaceMatrix(spec);
      }
    }
    if (config_.tie_word_embeddings) weights_.head = weights_.embed;
    if (weights_.mtp && !weights_.mtp->embed.present()) weights_.mtp->embed = weights_.embed;
    if (weights_.mtp && !weights_.mtp->head.present()) weights_.mtp->head = weights_.head;
    weights_.owners.assign(pool_.owners().begin(), pool_.owners().end());
    return std::move(weights_);
  }

 private:
  void MakeLayers() {
    slot_of_expert_.assign(config_.n_routed_experts, -1);
    const size_t slots = slice_.experts.empty() ? config_.n_routed_experts : slice_.experts.size();
    for (size_t slot = 0; slot < slots; ++slot) {
      const size_t expert = slice_.experts.empty() ? slot : slice_.experts[slot];
      slot_of_expert_[expert] = static_cast<int32_t>(slot);
    }
    weights_.layers.resize(config_.num_hidden_layers);
    for (int64_t i = 0; i < config_.num_hidden_layers; ++i) {
      MakeFeedForward(i, slots, weights_.layers[i]);
    }
    const bool has_mtp = std::any_of(specs_.begin(), specs_.end(), [&](const TensorSpec& spec) {
      return spec.need == TensorNeed::kMtp && source_.Has(spec);
    });
    if (!has_mtp) return;
    weights_.mtp.emplace();
    MakeFeedForward(config_.num_hidden_layers, slots, weights_.mtp->layer);
  }

  void MakeFeedForward(int64_t index, size_t slots, LayerWeights& layer) const {
    if (!config_.IsMoeLayer(index)) {
      layer.dense.emplace();
      return;
    }
    layer.moe.emplace();
    layer.moe->slot_of_expert = slot_of_expert_;
    layer.moe->experts.resize(slots);
    if (config_.n_shared_experts > 0) layer.moe->shared.emplace();
  }

  void PlaceVector(const TensorSpec& spec) {
    float* data = pool_.Allocate<float>(spec.rows);
    *VectorSlot(spec) = TensorView(data, DType::kF32, {spec.rows});
    source_.Vector(spec, data);
    weights_.bytes += spec.rows * static_cast<int64_t>(sizeof(float));
  }

  void PlaceMatrix(const TensorSpec& spec) {
    if (spec.expert >= 0 && slot_of_expert_[spec.expert] < 0) return;  // another rank's
    Region region{.rows = spec.rows, .cols = spec.cols};
    const Split split = SplitOf(spec.role);
    if (split == Split::kRows) {
      region.rows = spec.rows / slice_.tp_size;
      region.row_begin = slice_.tp_rank * region.rows;
    } else if (split == Split::kCols) {
      region.cols = spec.cols / slice_.tp_size;
      region.col_begin = slice_.tp_rank * region.cols;
    }
    const WeightView view = source_.Matrix(spec, region);
    *MatrixSlot(spec) = view;
    weights_.bytes += view.rows * view.cols * static_cast<int64_t>(DTypeBytes(view.dtype));
    if (view.scales == nullptr) return;
    const std::vector<int64_t> blocks = spec.scale_shape(view.scale_block);
    weights_.bytes += blocks[0] * blocks[1] * static_cast<int64_t>(sizeof(float));
  }

  LayerWeights& Layer(const TensorSpec& spec) {
    return spec.layer == config_.num_hidden_layers ? weights_.mtp->layer
                                                   : weights_.layers[spec.layer];
  }

  TensorView* VectorSlot(const TensorSpec& spec) {
    switch (spec.role) {
      case TensorRole::kFinalNorm:
        return &weights_.final_norm;
      case TensorRole::kMtpEmbedNorm:
        return &weights_.mtp->enorm;
      case TensorRole::kMtpHiddenNorm:
        return &weights_.mtp->hnorm;
      case TensorRole::kMtpHeadNorm:
        return &weights_.mtp->head_norm;
      case TensorRole::kInputNorm:
        return &Layer(spec).input_norm;
      case TensorRole::kQANorm:
        return &Layer(spec).q_a_norm;
      case TensorRole::kKvANorm:
        return &Layer(spec).kv_a_norm;
      case TensorRole::kPostAttentionNorm:
        return &Layer(spec).post_attention_norm;
      default:
        return &Layer(spec).moe->bias;
    }
  }

  WeightView* MatrixSlot(const TensorSpec& spec) {
    switch (spec.role) {
      case TensorRole::kEmbed:
        return &weights_.embed;
      case TensorRole::kHead:
        return &weights_.head;
      case TensorRole::kMtpEmbed:
        return &weights_.mtp->embed;
      case TensorRole::kMtpHead:
        return &weights_.mtp->head;
      case TensorRole::kMtpProj:
        return &weights_.mtp->eh_proj;
      case TensorRole::kQProj:
        return &Layer(spec).q_proj;
      case TensorRole::kQA:
        return &Layer(spec).q_a;
      case TensorRole::kQB:
        return &Layer(spec).q_b;
      case TensorRole::kKvA:
        return &Layer(spec).kv_a;
      case TensorRole::kKvB:
        return &Layer(spec).kv_b;
      case TensorRole::kO:
        return &Layer(spec).o;
      case TensorRole::kRouter:
        return &Layer(spec).moe->gate;
      default:
        return MlpSlot(spec);
    }
  }

  WeightView* MlpSlot(const TensorSpec& spec) {
    LayerWeights& layer = Layer(spec);
    MlpWeights& mlp = spec.expert >= 0 ? layer.moe->experts[slot_of_expert_[spec.expert]]
                      : layer.moe      ? *layer.moe->shared
                                       : *layer.dense;
    switch (spec.role) {
      case TensorRole::kDenseGate:
      case TensorRole::kExpertGate:
      case TensorRole::kSharedGate:
        return &mlp.gate;
      case TensorRole::kDenseUp:
      case TensorRole::kExpertUp:
      case TensorRole::kSharedUp:
        return &mlp.up;
      default:
        return &mlp.down;
    }
  }

  const ModelConfig& config_;
  const std::vector<TensorSpec>& specs_;
  const RankSlice& slice_;
  WeightSource& source_;
  std::vector<int32_t> slot_of_expert_;
  BufferPool pool_;
  ModelWeights weights_;
};

}  // namespace

absl::StatusOr<ModelWeights> LoadWeights(const std::string& dir, const ModelConfig& config,
                                         const LoadOptions& options) {
  SLUICE_RETURN_IF_ERROR(CheckSlice(config, options.slice));
  const std::vector<TensorSpec> specs = ExpectedTensors(config);
  std::unique_ptr<WeightSource> source;
  if (options.format == LoadFormat::kDummy) {
    source = MakeRandomSource(config, options.dummy_seed, options.for_device);
  } else {
    SLUICE_ASSIGN_OR_RETURN(source, OpenCheckpointSource(dir, config, specs, options.for_device));
  }
  ModelWeights weights = Assembler(config, specs, options.slice, *source).Assemble();
  SLUICE_RETURN_IF_ERROR(source->Finish(options.threads, options.progress));
  for (std::shared_ptr<const void>& owner : source->owners()) {
    weights.owners.push_back(std::move(owner));
  }
  weights.files = source->files();
  weights.random = source->random();
  return weights;
}

}  // namespace sluice::model
