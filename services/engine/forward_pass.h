// The model: from token ids to logits, over the ops of one backend.
//
// Holds the KV cache, the activations' memory and views of the weights; runs one batch at a time. A
// batch is flat: the tokens of all sequences one after the other. Written once for every backend;
// all sizes come from ModelConfig.
//
// Threads: one call at a time.
// Source: deepseek-ai/DeepSeek-V3 inference/model.py (Transformer, Block, MLA, MoE); facts that
// trap re-implementers are listed in tests/golden/README.md.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/ops/backend.h"
#include "services/engine/layer_listener.h"
#include "services/engine/step_tap.h"
#include "services/engine/workspace.h"
#include "services/model/model_config.h"
#include "services/model/weights.h"

namespace sluice::engine {

// What memory is sized for.
struct ForwardLimits {
  int64_t tokens_max = 0;     // of one step
  int64_t samples_max = 0;    // rows of logits of one step
  int64_t positions_max = 0;  // of one sequence
  int64_t num_pages = 0;
  DType kv_dtype = DType::kF32;  // as in EngineOptions
  bool even_experts = false;     // see EngineOptions
};

// A step's tokens. Tensors lie on the device; counts are known to the host.
struct ForwardBatch {
  using Prompt = PromptChunk;

  uint64_t step = 0;  // its number, for observers
  int64_t num_tokens = 0;
  // Tokens [0, num_absorbed) use absorbed attention; the prompts' tokens follow, each prompt in one
  // piece.
  int64_t num_absorbed = 0;
  absl::Span<const Prompt> prompts;
  int64_t num_samples = 0;
  bool is_padded = false;  // tokens with a negative kv_row are nobody's: no expert is theirs

  TensorView ids;             // i32 [num_tokens]; negative: see EmbedParams
  TensorView tokens_by_slot;  // i32 [slots]
  TensorView resolved_ids;    // i32 [num_tokens], written
  TensorView positions;       // i32 [num_tokens]
  TensorView kv_rows;         // i32 [num_tokens]
  TensorView seq_of_token;    // i32 [num_tokens]
  TensorView page_table;      // i32 [num_seqs, pages_per_seq_max]
  // The tokens whose logits are wanted.
  TensorView sample_rows;       // i32 [num_samples]: index of the token
  TensorView sample_positions;  // i32 [num_samples]
  TensorView sample_seqs;       // i32 [num_samples]
};

// Who is told of a pass while it runs; each may be null, and each call of the tap waits for the
// stream.
struct PassObservers {
  LayerListener* listener = nullptr;
  StepTap* tap = nullptr;  // every row is computed in every layer then
};

class ForwardPass {
 public:
  // ResourceExhausted when memory does not suffice. `backend` must outlive the object.
  static absl::StatusOr<std::unique_ptr<ForwardPass>> Create(
      const model::ModelConfig& config, std::shared_ptr<const model::ModelWeights> weights,
      Backend* backend, const ForwardLimits& limits);

  // Queues the whole pass on the stream; logits() then holds num_samples rows.
  absl::Status Run(const ForwardBatch& batch, StreamId stream, const PassObservers& observers);

  // Queues the first layer of each kind for a batch of tokens_max tokens without samples, so that
  // ops meet the largest sizes there are. Its tokens must all be padding.
  absl::Status WarmUp(const ForwardBatch& batch, StreamId stream);

  // f32 [samples_max, vocab]
  const TensorView& logits() const { return logits_; }
  // i64 [layers, experts]: tokens each logical expert was chosen for, since the start. The last
  // layer counts only rows whose logits were wanted: the others do not reach its experts.
  const TensorView& expert_load() const { return expert_load_; }
  // One for each layer: [num_pages, kPageTokens, KvRowElements].
  const std::vector<TensorView>& kv_cache() const { return kv_cache_; }
  // What all of it lies in, layer behind layer.
  const DeviceBuffer& kv_memory() const { return kv_memory_; }
  // Bytes of KV cache and of activations.
  size_t workspace_bytes() const { return kv_memory_.bytes + workspace_.bytes(); }

 private:
  // Rows of the residual stream that a layer works on, and where they stand.
  struct Rows {
    TensorView hidden;
    int64_t count = 0;
  };
  // The experts' weights of a layer, as the grouped ops want them.
  struct ExpertViews {
    std::vector<WeightView> gates, ups, downs;
    TensorView slot_of_expert;  // i32 [experts], on the device
  };

  ForwardPass(const model::ModelConfig& config, std::shared_ptr<const model::ModelWeights> weights,
              Backend* backend, const ForwardLimits& limits);
  absl::Status AllocateMemory();
  absl::Status AllocateKvCache();
  absl::Status SpreadEvenly();

  // Queries and latents of the normed rows.
  absl::Status Project(const model::LayerWeights& layer, int64_t count, StreamId stream);
  absl::Status Attend(int64_t index, const ForwardBatch& batch, bool samples_only, Rows* rows,
                      StreamId stream, LayerListener* listener);
  absl::Status AttendAll(int64_t index, const ForwardBatch& batch, StreamId stream);
  absl::Status AttendSamples(int64_t index, const ForwardBatch& batch, Rows* rows, StreamId stream);
  absl::Status DenseMlp(const model::MlpWeights& mlp, const TensorView& x, const TensorView& out,
                        bool accumulate, StreamId stream);
  absl::Status FeedForward(int64_t index, const ForwardBatch& batch, const Rows& rows,
                           StreamId stream, StepTap* tap);
  absl::Status MixtureOfExperts(int64_t index, const ForwardBatch& batch, const Rows& rows,
                                StreamId stream, StepTap* tap);

  const model::ModelConfig config_;
  const std::shared_ptr<const model::ModelWeights> weights_;
  Backend* const backend_;
  const ForwardLimits limits_;
  const MlaDims dims_;
  Workspace workspace_;
  std::vector<ExpertViews> experts_;                   // one per layer, empty for dense ones
  std::vector<std::shared_ptr<const void>> prepared_;  // of each layer's kv_b

  DeviceBuffer kv_memory_;
  std::vector<TensorView> kv_cache_;
  TensorView cos_sin_;
  TensorView expert_load_;
  // Activations, by their first dimension: tokens_max, samples_max, tokens_max * top_k.
  TensorView hidden_, normed_, q_latent_, q_, kv_latent_, attended_, mlp_, shared_;
  TensorView gate_logits_, expert_ids_, expert_weights_, pair_rows_, expert_offsets_, even_ids_;
  TensorView pair_hidden_, pair_mlp_;
  TensorView sample_hidden_, sample_q_, logits_;
};

}  // namespace sluice::engine
