// The weights of one rank, ready for the engine: views into mapped or generated memory.
//
// Threads: immutable after loading; share freely. Views live as long as the ModelWeights.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "kernels/base/random_numbers.h"
#include "kernels/base/tensor_view.h"
#include "services/base/mapped_file.h"
#include "services/base/progress.h"
#include "services/model/model_config.h"

namespace sluice::model {

struct MlpWeights {
  WeightView gate;  // [intermediate, hidden]
  WeightView up;    // [intermediate, hidden]
  WeightView down;  // [hidden, intermediate]
};

struct LayerWeights {
  TensorView input_norm;  // f32 [hidden]
  // Either q_proj, or q_a, q_a_norm and q_b.
  WeightView q_proj;               // [heads * qk_head_dim, hidden]
  WeightView q_a;                  // [q_lora_rank, hidden]
  TensorView q_a_norm;             // f32 [q_lora_rank]
  WeightView q_b;                  // [heads * qk_head_dim, q_lora_rank]
  WeightView kv_a;                 // [kv_lora_rank + rope, hidden]
  TensorView kv_a_norm;            // f32 [kv_lora_rank]
  WeightView kv_b;                 // [heads * (nope + v), kv_lora_rank]
  WeightView o;                    // [hidden, heads * v]
  TensorView post_attention_norm;  // f32 [hidden]

  std::optional<MlpWeights> dense;  // exactly one of dense and moe
  struct Moe {
    WeightView gate;  // [n_routed_experts, hidden]
    TensorView bias;  // f32 [n_routed_experts], no data without e_score_correction_bias
    std::vector<int32_t> slot_of_expert;  // [n_routed_experts]: index into experts, or -1
    std::vector<MlpWeights> experts;      // one per slot of this rank
    std::optional<MlpWeights> shared;
  };
  std::optional<Moe> moe;
};

// One multi-token-prediction module (layer index num_hidden_layers).
struct MtpWeights {
  WeightView embed;    // the main embedding when the checkpoint leaves it out
  TensorView enorm;    // f32 [hidden]
  TensorView hnorm;    // f32 [hidden]
  WeightView eh_proj;  // [hidden, 2 * hidden]: embedding first
  LayerWeights layer;
  TensorView head_norm;  // f32 [hidden] (shared_head.norm)
  WeightView head;       // the main head when left out
};

// A part of a whole matrix [rows, cols] of random numbers, from (row_begin, col_begin) on.
struct RandomPart {
  RandomNumbers numbers;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_begin = 0;
  int64_t col_begin = 0;
};

struct ModelWeights {
  WeightView embed;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  TensorView final_norm;  // f32 [hidden]
  WeightView head;        // [vocab, hidden]
  std::optional<MtpWeights> mtp;
  int64_t bytes = 0;       // of all tensors this rank uses
  bool on_device = false;  // the views point into memory of the backend that will compute
  std::vector<std::shared_ptr<const void>> owners;  // mappings and buffers the views point into
  std::vector<std::shared_ptr<const MappedFile>> files;  // those of them that are files
  // Of LoadOptions::for_device: matrices, by WeightView::data, whose memory holds nothing: whoever
  // copies them makes them.
  absl::flat_hash_map<const void*, RandomPart> random;
};

// Which part of a model one rank holds. Attention heads and the inner rows of dense MLPs and shared
// experts are split tp ways; routed experts, the router, embedding and head go to ranks whole. The
// default is everything.
struct RankSlice {
  int64_t tp_rank = 0;
  int64_t tp_size = 1;
  // Logical experts this rank holds, in order of slot, the same for each layer; empty: all of them.
  std::vector<int32_t> experts;
};

enum class LoadFormat {
  kSafetensors,  // DIR's *.safetensors
  kDummy,        // config.json alone: seeded normal weights (services/model/random_weights.h)
};

struct LoadOptions {
  LoadFormat format = LoadFormat::kSafetensors;
  RankSlice slice;
  uint64_t dummy_seed = 0;
  ProgressOut progress;
  int threads = 0;  // 0: one per core
  // The views are only to be copied to a device: matrices are not read yet, nor made.
  bool for_device = false;
};

// Errors (InvalidArgument, NotFound) name file, tensor, expected and found.
absl::StatusOr<ModelWeights> LoadWeights(const std::string& dir, const ModelConfig& config,
                                         const LoadOptions& options);

}  // namespace sluice::model
