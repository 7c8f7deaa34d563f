#include "services/engine/forward_pass.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/engine/device_weights.h"
#include "services/model/rope.h"

namespace sluice::engine {
namespace {

// The norms of the q and kv latents: DeepSeek's code never hands them config.rms_norm_eps.
constexpr float kLatentNormEps = 1e-6f;

GateScoring GateScoringOf(const model::ModelConfig& config) {
  return config.scoring == model::Scoring::kSigmoid ? GateScoring::kSigmoid : GateScoring::kSoftmax;
}

GroupScore GroupScoreOf(const model::ModelConfig& config) {
  switch (config.topk_method) {
    case model::TopkMethod::kGreedy:
      return GroupScore::kNone;
    case model::TopkMethod::kGroupLimitedGreedy:
      return GroupScore::kMax;
    case model::TopkMethod::kNoAuxTc:
      return GroupScore::kTop2Sum;
  }
  return GroupScore::kNone;
}

}  // namespace

ForwardPass::ForwardPass(const model::ModelConfig& config,
                         std::shared_ptr<const model::ModelWeights> weights, Backend* backend,
                         const ForwardLimits& limits)
    : config_(config),
      weights_(std::move(weights)),
      backend_(backend),
      limits_(limits),
      dims_{.num_heads = static_cast<int>(weights_->layers.at(0).o.cols / config.v_head_dim),
            .nope_dim = static_cast<int>(config.qk_nope_head_dim),
            .rope_dim = static_cast<int>(config.qk_rope_head_dim),
            .v_dim = static_cast<int>(config.v_head_dim),
            .kv_lora_rank = static_cast<int>(config.kv_lora_rank)},
      workspace_(backend) {}

absl::StatusOr<std::unique_ptr<ForwardPass>> ForwardPass::Create(
    const model::ModelConfig& config, std::shared_ptr<const model::ModelWeights> weights,
    Backend* backend, const ForwardLimits& limits) {
  if (!backend->reads_host_memory() && !weights->on_device) {
    SLUICE_ASSIGN_OR_RETURN(weights, CopyWeightsToDevice(*weights, backend));
  }
  std::unique_ptr<ForwardPass> pass(new ForwardPass(config, std::move(weights), backend, limits));
  SLUICE_RETURN_IF_ERROR(pass->AllocateMemory());
  return pass;
}

absl::Status ForwardPass::AllocateKvCache() {
  const TensorView layer(
      nullptr, limits_.kv_dtype,
      {limits_.num_pages, kPageTokens,
       KvRowElements(config_.kv_lora_rank, config_.qk_rope_head_dim, limits_.kv_dtype)});
  const size_t layer_bytes = layer.dims[0] * layer.row_elements() * DTypeBytes(layer.dtype);
  const size_t layers = weights_->layers.size();
  SLUICE_ASSIGN_OR_RETURN(kv_memory_,
                          backend_->AllocateShareable(layers * layer_bytes, "KV cache"));
  for (size_t i = 0; i < layers; ++i) {
    kv_cache_.push_back(layer);
    kv_cache_.back().data = kv_memory_.As<std::byte>() + i * layer_bytes;
  }
  return absl::OkStatus();
}

absl::Status ForwardPass::AllocateMemory() {
  const int64_t tokens = limits_.tokens_max;
  const int64_t samples = limits_.samples_max;
  const int64_t hidden = config_.hidden_size;
  const int64_t q_width = dims_.num_heads * config_.qk_head_dim();
  const auto f32 = [&](const char* name, std::initializer_list<int64_t> shape) {
    return workspace_.Tensor(name, DType::kF32, shape);
  };
  const auto i32 = [&](const char* name, std::initializer_list<int64_t> shape) {
    return workspace_.Tensor(name, DType::kI32, shape);
  };

  for (const model::LayerWeights& layer : weights_->layers) {
    SLUICE_ASSIGN_OR_RETURN(
        prepared_.emplace_back(),
        backend_->attention().Prepare(
            {.dims = dims_, .kv_b = layer.kv_b, .cache = limits_.kv_dtype}, StreamId{}));
  }
  SLUICE_RETURN_IF_ERROR(AllocateKvCache());
  const std::vector<float> table = model::MakeCosSinTable(config_, limits_.positions_max);
  SLUICE_ASSIGN_OR_RETURN(cos_sin_,
                          f32("rotary angles", {limits_.positions_max, config_.qk_rope_head_dim}));
  SLUICE_RETURN_IF_ERROR(backend_->CopyToDevice(cos_sin_.data, table.data(),
                                                table.size() * sizeof(float), StreamId{}));

  int64_t mlp_width = 0;
  experts_.resize(weights_->layers.size());
  for (size_t index = 0; index < weights_->layers.size(); ++index) {
    const model::LayerWeights& layer = weights_->layers[index];
    if (layer.dense.has_value()) mlp_width = std::max(mlp_width, layer.dense->gate.rows);
    if (!layer.moe.has_value()) continue;
    if (layer.moe->shared.has_value())
      mlp_width = std::max(mlp_width, layer.moe->shared->gate.rows);
    ExpertViews& views = experts_[index];
    for (const model::MlpWeights& expert : layer.moe->experts) {
      views.gates.push_back(expert.gate);
      views.ups.push_back(expert.up);
      views.downs.push_back(expert.down);
    }
    SLUICE_ASSIGN_OR_RETURN(views.slot_of_expert,
                            i32("expert placement", {config_.n_routed_experts}));
    SLUICE_RETURN_IF_ERROR(
        backend_->CopyToDevice(views.slot_of_expert.data, layer.moe->slot_of_expert.data(),
                               layer.moe->slot_of_expert.size() * sizeof(int32_t), StreamId{}));
  }

  SLUICE_ASSIGN_OR_RETURN(hidden_, f32("residual stream", {tokens, hidden}));
  SLUICE_ASSIGN_OR_RETURN(normed_, f32("normed activations", {tokens, hidden}));
  SLUICE_ASSIGN_OR_RETURN(
      q_latent_, f32("query latents", {tokens, std::max<int64_t>(config_.q_lora_rank, 1)}));
  SLUICE_ASSIGN_OR_RETURN(q_, f32("queries", {tokens, q_width}));
  SLUICE_ASSIGN_OR_RETURN(kv_latent_, f32("kv latents", {tokens, config_.kv_dim()}));
  SLUICE_ASSIGN_OR_RETURN(attended_,
                          f32("attention outputs", {tokens, dims_.num_heads * config_.v_head_dim}));
  SLUICE_ASSIGN_OR_RETURN(mlp_, f32("mlp activations", {tokens, std::max<int64_t>(mlp_width, 1)}));
  if (config_.n_routed_experts > 0) {
    const int64_t top_k = config_.num_experts_per_tok;
    const int64_t experts = config_.n_routed_experts;
    SLUICE_ASSIGN_OR_RETURN(shared_, f32("shared expert outputs", {tokens, hidden}));
    SLUICE_ASSIGN_OR_RETURN(gate_logits_, f32("gate logits", {tokens, experts}));
    SLUICE_ASSIGN_OR_RETURN(expert_ids_, i32("expert choices", {tokens, top_k}));
    SLUICE_ASSIGN_OR_RETURN(expert_weights_, f32("expert weights", {tokens, top_k}));
    SLUICE_ASSIGN_OR_RETURN(pair_rows_, i32("expert rows", {tokens, top_k}));
    SLUICE_ASSIGN_OR_RETURN(expert_offsets_, i32("expert offsets", {experts + 1}));
    SLUICE_ASSIGN_OR_RETURN(pair_hidden_, f32("expert inputs", {tokens * top_k, hidden}));
    SLUICE_ASSIGN_OR_RETURN(
        pair_mlp_, f32("expert activations", {tokens * top_k, config_.moe_intermediate_size}));
    SLUICE_ASSIGN_OR_RETURN(expert_load_, workspace_.Tensor("expert load", DType::kI64,
                                                            {config_.num_hidden_layers, experts}));
  }
  if (limits_.even_experts) SLUICE_RETURN_IF_ERROR(SpreadEvenly());
  SLUICE_ASSIGN_OR_RETURN(sample_hidden_, f32("sampled rows", {samples, hidden}));
  SLUICE_ASSIGN_OR_RETURN(sample_q_, f32("queries of sampled rows", {samples, q_width}));
  SLUICE_ASSIGN_OR_RETURN(logits_, f32("logits", {samples, config_.vocab_size}));
  return backend_->Sync(StreamId{});
}

absl::Status ForwardPass::SpreadEvenly() {
  const auto moe = std::find_if(weights_->layers.begin(), weights_->layers.end(),
                                [](const auto& layer) { return layer.moe.has_value(); });
  if (moe == weights_->layers.end()) return absl::OkStatus();
  std::vector<int32_t> expert_of_slot(moe->moe->experts.size());
  for (size_t expert = 0; expert < moe->moe->slot_of_expert.size(); ++expert) {
    const int32_t slot = moe->moe->slot_of_expert[expert];
    if (slot >= 0) expert_of_slot[slot] = static_cast<int32_t>(expert);
  }
  std::vector<int32_t> ids(limits_.tokens_max * config_.num_experts_per_tok);
  for (size_t pair = 0; pair < ids.size(); ++pair) {
    ids[pair] = expert_of_slot[pair % expert_of_slot.size()];
  }
  SLUICE_ASSIGN_OR_RETURN(even_ids_,
                          workspace_.Tensor("even choices", DType::kI32,
                                            {limits_.tokens_max, config_.num_experts_per_tok}));
  SLUICE_RETURN_IF_ERROR(
      backend_->CopyToDevice(even_ids_.data, ids.data(), ids.size() * sizeof(int32_t), StreamId{}));
  return backend_->Sync(StreamId{});
}

absl::Status ForwardPass::Run(const ForwardBatch& batch, StreamId stream,
                              const PassObservers& observers) {
  StepTap* const tap = observers.tap;
  Rows rows{hidden_.Prefix(batch.num_tokens), batch.num_tokens};
  SLUICE_RETURN_IF_ERROR(backend_->elementwise().Embed({.ids = batch.ids,
                                                        .tokens_by_slot = batch.tokens_by_slot,
                                                        .table = weights_->embed,
                                                        .out = rows.hidden,
                                                        .resolved_ids = batch.resolved_ids},
                                                       stream));
  if (tap != nullptr) {
    SLUICE_RETURN_IF_ERROR(backend_->Sync(stream));
    tap->OnHidden(-1, rows.hidden);
  }

  const int64_t last = static_cast<int64_t>(weights_->layers.size()) - 1;
  for (int64_t index = 0; index <= last; ++index) {
    // After the last layer's cache write nothing but the sampled rows matters.
    const bool samples_only =
        index == last && tap == nullptr && batch.num_samples < batch.num_tokens;
    SLUICE_RETURN_IF_ERROR(Attend(index, batch, samples_only, &rows, stream, observers.listener));
    if (rows.count == 0) return absl::OkStatus();

    SLUICE_RETURN_IF_ERROR(FeedForward(index, batch, rows, stream, tap));
    if (tap != nullptr) {
      SLUICE_RETURN_IF_ERROR(backend_->Sync(stream));
      tap->OnHidden(index, rows.hidden);
    }
  }
  if (batch.num_samples == 0) return absl::OkStatus();

  if (rows.count != batch.num_samples) {
    const TensorView sampled = sample_hidden_.Prefix(batch.num_samples);
    SLUICE_RETURN_IF_ERROR(backend_->elementwise().GatherRows(
        {.x = rows.hidden, .rows = batch.sample_rows, .out = sampled}, stream));
    rows = {sampled, batch.num_samples};
  }
  const TensorView x = normed_.Prefix(rows.count);
  SLUICE_RETURN_IF_ERROR(
      backend_->elementwise().RmsNorm({.x = rows.hidden,
                                       .weight = weights_->final_norm,
                                       .eps = static_cast<float>(config_.rms_norm_eps),
                                       .out = x},
                                      stream));
  SLUICE_RETURN_IF_ERROR(backend_->linear().Linear(
      {.x = x, .w = weights_->head, .out = logits_.Prefix(rows.count)}, stream));
  if (tap != nullptr) {
    SLUICE_RETURN_IF_ERROR(backend_->Sync(stream));
    tap->OnLogits(logits_.Prefix(rows.count));
  }
  return absl::OkStatus();
}

absl::Status ForwardPass::WarmUp(const ForwardBatch& batch, StreamId stream) {
  bool is_done[2] = {};
  for (size_t index = 0; index < weights_->layers.size(); ++index) {
    bool& done = is_done[weights_->layers[index].moe.has_value()];
    if (std::exchange(done, true)) continue;
    Rows rows{hidden_.Prefix(batch.num_tokens), batch.num_tokens};
    const int64_t layer = static_cast<int64_t>(index);
    SLUICE_RETURN_IF_ERROR(Attend(layer, batch, /*samples_only=*/false, &rows, stream, nullptr));
    SLUICE_RETURN_IF_ERROR(FeedForward(layer, batch, rows, stream, nullptr));
  }
  return absl::OkStatus();
}

absl::Status ForwardPass::Project(const model::LayerWeights& layer, int64_t count,
                                  StreamId stream) {
  const bool direct = layer.q_proj.present();
  const TensorView q = q_.Prefix(count), latent = q_latent_.Prefix(count);
  const WeightView weights[] = {direct ? layer.q_proj : layer.q_a, layer.kv_a};
  const TensorView outs[] = {direct ? q : latent, kv_latent_.Prefix(count)};
  SLUICE_RETURN_IF_ERROR(backend_->linear().MultiLinear(
      {.x = normed_.Prefix(count), .weights = weights, .outs = outs}, stream));
  if (direct) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(backend_->elementwise().RmsNorm(
      {.x = latent, .weight = layer.q_a_norm, .eps = kLatentNormEps, .out = latent}, stream));
  return backend_->linear().Linear({.x = latent, .w = layer.q_b, .out = q}, stream);
}

absl::Status ForwardPass::Attend(int64_t index, const ForwardBatch& batch, bool samples_only,
                                 Rows* rows, StreamId stream, LayerListener* listener) {
  const model::LayerWeights& layer = weights_->layers[index];
  const TensorView x = normed_.Prefix(rows->count);
  SLUICE_RETURN_IF_ERROR(
      backend_->elementwise().RmsNorm({.x = rows->hidden,
                                       .weight = layer.input_norm,
                                       .eps = static_cast<float>(config_.rms_norm_eps),
                                       .out = x},
                                      stream));
  SLUICE_RETURN_IF_ERROR(Project(layer, rows->count, stream));
  SLUICE_RETURN_IF_ERROR(
      backend_->attention().MlaCacheWrite({.dims = dims_,
                                           .q = q_.Prefix(rows->count),
                                           .kv_a = kv_latent_.Prefix(rows->count),
                                           .kv_norm = layer.kv_a_norm,
                                           .eps = kLatentNormEps,
                                           .cos_sin = cos_sin_,
                                           .positions = batch.positions,
                                           .kv_rows = batch.kv_rows,
                                           .cache = kv_cache_[index]},
                                          stream));
  if (listener != nullptr) {
    SLUICE_ASSIGN_OR_RETURN(const StreamPoint written, backend_->Point(stream));
    listener->OnKvWritten(batch.step, index, written);
  }
  SLUICE_RETURN_IF_ERROR(samples_only ? AttendSamples(index, batch, rows, stream)
                                      : AttendAll(index, batch, stream));
  if (rows->count == 0) return absl::OkStatus();
  return backend_->linear().Linear(
      {.x = attended_.Prefix(rows->count), .w = layer.o, .out = rows->hidden, .accumulate = true},
      stream);
}

absl::Status ForwardPass::AttendAll(int64_t index, const ForwardBatch& batch, StreamId stream) {
  const model::LayerWeights& layer = weights_->layers[index];
  const float scale = static_cast<float>(config_.SoftmaxScale());
  if (batch.num_absorbed > 0) {
    SLUICE_RETURN_IF_ERROR(backend_->attention().MlaAbsorbed(
        {.dims = dims_,
         .q = q_.Prefix(batch.num_absorbed),
         .kv_b = layer.kv_b,
         .cache = kv_cache_[index],
         .page_table = batch.page_table,
         .seq_of_token = batch.seq_of_token.Prefix(batch.num_absorbed),
         .positions = batch.positions.Prefix(batch.num_absorbed),
         .scale = scale,
         .out = attended_.Prefix(batch.num_absorbed)},
        stream));
  }
  if (batch.prompts.empty()) return absl::OkStatus();
  return backend_->attention().MlaPrompt({.dims = dims_,
                                          .q = q_.Prefix(batch.num_tokens),
                                          .kv_b = layer.kv_b,
                                          .cache = kv_cache_[index],
                                          .page_table = batch.page_table,
                                          .chunks = batch.prompts,
                                          .scale = scale,
                                          .out = attended_.Prefix(batch.num_tokens)},
                                         stream);
}

absl::Status ForwardPass::AttendSamples(int64_t index, const ForwardBatch& batch, Rows* rows,
                                        StreamId stream) {
  const TensorView hidden = sample_hidden_.Prefix(batch.num_samples);
  const TensorView q = sample_q_.Prefix(batch.num_samples);
  if (batch.num_samples > 0) {
    SLUICE_RETURN_IF_ERROR(backend_->elementwise().GatherRows(
        {.x = rows->hidden, .rows = batch.sample_rows, .out = hidden}, stream));
    SLUICE_RETURN_IF_ERROR(backend_->elementwise().GatherRows(
        {.x = q_.Prefix(rows->count), .rows = batch.sample_rows, .out = q}, stream));
    SLUICE_RETURN_IF_ERROR(
        backend_->attention().MlaAbsorbed({.dims = dims_,
                                           .q = q,
                                           .kv_b = weights_->layers[index].kv_b,
                                           .cache = kv_cache_[index],
                                           .page_table = batch.page_table,
                                           .seq_of_token = batch.sample_seqs,
                                           .positions = batch.sample_positions,
                                           .scale = static_cast<float>(config_.SoftmaxScale()),
                                           .out = attended_.Prefix(batch.num_samples)},
                                          stream));
  }
  *rows = {hidden, batch.num_samples};
  return absl::OkStatus();
}

absl::Status ForwardPass::DenseMlp(const model::MlpWeights& mlp, const TensorView& x,
                                   const TensorView& out, bool accumulate, StreamId stream) {
  TensorView inner(mlp_.data, DType::kF32, {x.rows(), mlp.gate.rows});
  SLUICE_RETURN_IF_ERROR(backend_->linear().GatedLinear(
      {.x = x, .gate = mlp.gate, .up = mlp.up, .out = inner}, stream));
  return backend_->linear().Linear(
      {.x = inner, .w = mlp.down, .out = out, .accumulate = accumulate}, stream);
}

absl::Status ForwardPass::FeedForward(int64_t index, const ForwardBatch& batch, const Rows& rows,
                                      StreamId stream, StepTap* tap) {
  const model::LayerWeights& layer = weights_->layers[index];
  const TensorView x = normed_.Prefix(rows.count);
  SLUICE_RETURN_IF_ERROR(
      backend_->elementwise().RmsNorm({.x = rows.hidden,
                                       .weight = layer.post_attention_norm,
                                       .eps = static_cast<float>(config_.rms_norm_eps),
                                       .out = x},
                                      stream));
  return layer.dense.has_value()
             ? DenseMlp(*layer.dense, x, rows.hidden, /*accumulate=*/true, stream)
             : MixtureOfExperts(index, batch, rows, stream, tap);
}

absl::Status ForwardPass::MixtureOfExperts(int64_t index, const ForwardBatch& batch,
                                           const Rows& rows, StreamId stream, StepTap* tap) {
  const model::LayerWeights::Moe& moe = *weights_->layers[index].moe;
  const ExpertViews& views = experts_[index];
  const TensorView x = normed_.Prefix(rows.count);
  const TensorView logits = gate_logits_.Prefix(rows.count);
  const TensorView ids = expert_ids_.Prefix(rows.count);
  const TensorView weights = expert_weights_.Prefix(rows.count);
  const TensorView pair_rows = pair_rows_.Prefix(rows.count);

  SLUICE_RETURN_IF_ERROR(backend_->linear().Linear(
      {.x = x, .w = moe.gate, .out = logits, .precision = Precision::kF32}, stream));
  const TensorView load = expert_load_.Slice(index, 1);
  SLUICE_RETURN_IF_ERROR(backend_->moe().Gate(
      {.logits = logits,
       .bias = moe.bias,
       .live = batch.is_padded ? batch.kv_rows.Prefix(rows.count) : TensorView(),
       .scoring = GateScoringOf(config_),
       .group_score = GroupScoreOf(config_),
       .num_groups = static_cast<int>(config_.n_group),
       .topk_groups = static_cast<int>(config_.topk_group),
       .normalize = config_.norm_topk_prob,
       .scaling = static_cast<float>(config_.routed_scaling_factor),
       .expert_ids = ids,
       .expert_weights = weights,
       .expert_load = TensorView(load.data, DType::kI64, {config_.n_routed_experts})},
      stream));
  if (tap != nullptr) {
    SLUICE_RETURN_IF_ERROR(backend_->Sync(stream));
    tap->OnExperts(index, ids, weights);
  }

  const TensorView placed = limits_.even_experts ? even_ids_.Prefix(rows.count) : ids;
  const int64_t slots = static_cast<int64_t>(views.gates.size());
  const TensorView offsets = expert_offsets_.Prefix(slots + 1);
  const TensorView pairs = pair_hidden_.Prefix(rows.count * config_.num_experts_per_tok);
  const TensorView inner = pair_mlp_.Prefix(rows.count * config_.num_experts_per_tok);
  SLUICE_RETURN_IF_ERROR(backend_->moe().Permute({.expert_ids = placed,
                                                  .slot_of_expert = views.slot_of_expert,
                                                  .offsets = offsets,
                                                  .pair_rows = pair_rows},
                                                 stream));
  SLUICE_RETURN_IF_ERROR(backend_->linear().GroupedGatedLinear({.x = x,
                                                                .gates = views.gates,
                                                                .ups = views.ups,
                                                                .offsets = offsets,
                                                                .out = inner,
                                                                .pair_rows = pair_rows},
                                                               stream));
  SLUICE_RETURN_IF_ERROR(backend_->linear().GroupedLinear(
      {.x = inner, .weights = views.downs, .offsets = offsets, .out = pairs}, stream));

  TensorView shared(nullptr, DType::kF32, {0, config_.hidden_size});
  if (moe.shared.has_value()) {
    shared = shared_.Prefix(rows.count);
    SLUICE_RETURN_IF_ERROR(DenseMlp(*moe.shared, x, shared, /*accumulate=*/false, stream));
  }
  return backend_->moe().Combine({.rows = pairs,
                                  .pair_rows = pair_rows,
                                  .expert_weights = weights,
                                  .shared = shared,
                                  .out = rows.hidden},
                                 stream);
}

}  // namespace sluice::engine
