#include "services/model/inspect.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kernels/base/float_convert.h"
#include "kernels/base/status.h"
#include "services/base/parallel.h"
#include "services/base/progress.h"
#include "services/model/chat_template.h"
#include "services/model/checkpoint.h"
#include "services/model/checkpoint_source.h"
#include "services/model/model_config.h"
#include "services/model/tensor_manifest.h"
#include "services/model/tokenizer.h"

namespace sluice::model {
namespace {

constexpr int64_t kPieceBytes = 8 << 20;

std::string Billions(int64_t parameters) {
  if (parameters >= 1'000'000'000) return absl::StrFormat("%.2f B", parameters / 1e9);
  return absl::StrFormat("%.2f M", parameters / 1e6);
}

// Parameters that one token of the main model passes through: the embedding counts as one row.
struct ParameterCounts {
  int64_t main = 0;
  int64_t active = 0;
  int64_t mtp = 0;
};

ParameterCounts CountParameters(const ModelConfig& config, const std::vector<TensorSpec>& specs) {
  ParameterCounts counts;
  int64_t routed = 0;
  for (const TensorSpec& spec : specs) {
    const int64_t size = spec.rows * std::max<int64_t>(spec.cols, 1);
    if (spec.need == TensorNeed::kMtp) counts.mtp += size;
    if (spec.need != TensorNeed::kRequired) continue;
    counts.main += size;
    if (spec.role == TensorRole::kEmbed && !config.tie_word_embeddings) {
      counts.active += config.hidden_size;
    } else if (spec.expert >= 0) {
      routed += size;
    } else {
      counts.active += size;
    }
  }
  if (routed > 0) {
    counts.active += routed / config.n_routed_experts * config.num_experts_per_tok;
  }
  return counts;
}

// The index of the first value that is not finite, or -1.
int64_t FirstNotFinite(DType dtype, const char* data, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    bool finite = true;
    if (dtype == DType::kF8E4M3) {
      finite = (data[i] & 0x7f) != 0x7f;
    } else if (dtype == DType::kF32) {
      uint32_t bits;
      std::memcpy(&bits, data + 4 * i, sizeof(bits));
      finite = (bits & 0x7f800000) != 0x7f800000;
    } else if (dtype == DType::kBF16 || dtype == DType::kF16) {
      uint16_t bits;
      std::memcpy(&bits, data + 2 * i, sizeof(bits));
      const uint16_t exponent = dtype == DType::kBF16 ? 0x7f80 : 0x7c00;
      finite = (bits & exponent) != exponent;
    }
    if (!finite) return i;
  }
  return -1;
}

absl::Status CheckData(const Checkpoint& checkpoint, const InspectOptions& options) {
  struct Piece {
    const StoredTensor* tensor;
    int64_t begin;  // elements
    int64_t count;
  };
  std::vector<Piece> pieces;
  int64_t total = 0;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    const int64_t size = static_cast<int64_t>(DTypeBytes(tensor.dtype));
    const int64_t elements = static_cast<int64_t>(tensor.bytes) / size;
    for (int64_t begin = 0; begin < elements; begin += kPieceBytes / size) {
      pieces.push_back({&tensor, begin, std::min(kPieceBytes / size, elements - begin)});
    }
    total += static_cast<int64_t>(tensor.bytes);
  }
  Progress progress("checking weights", total, {.file = options.show_progress ? stderr : nullptr});
  return ParallelFor(
      static_cast<int64_t>(pieces.size()), options.threads, [&](int64_t i) -> absl::Status {
        const auto& [tensor, begin, count] = pieces[i];
        const int64_t size = static_cast<int64_t>(DTypeBytes(tensor->dtype));
        const char* data = tensor->data + begin * size;
        SLUICE_RETURN_IF_ERROR(
            tensor->file->PageIn(data - tensor->file->bytes().data(), count * size));
        const int64_t found = FirstNotFinite(tensor->dtype, data, count);
        progress.Add(count * size);
        if (found < 0) return absl::OkStatus();
        return absl::InvalidArgumentError(absl::StrCat(tensor->file->path(), ": tensor ",
                                                       QuoteName(tensor->name),
                                                       " is not finite at index ", begin + found));
      });
}

class Inspector {
 public:
  Inspector(const std::string& dir, const InspectOptions& options) : dir_(dir), options_(options) {}

  Inspection Inspect() {
    const absl::StatusOr<ModelConfig> config = LoadModelConfig(dir_);
    if (config.ok()) {
      DescribeModel(*config);
    } else {
      Reason(config.status());
    }
    const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(dir_);
    if (checkpoint.ok()) {
      DescribeFiles(*checkpoint);
    } else {
      Reason(checkpoint.status());
    }
    if (config.ok() && checkpoint.ok()) Match(*config, *checkpoint);
    DescribeTokenizer();
    if (reasons_.empty()) return {text_ + "\nSluice can serve this checkpoint.\n", true};
    absl::StrAppend(&text_, "\nSluice cannot serve this checkpoint:\n");
    for (const std::string& reason : reasons_) absl::StrAppend(&text_, "  - ", reason, "\n");
    return {text_, false};
  }

 private:
  void Line(absl::string_view what, absl::string_view value) {
    absl::StrAppendFormat(&text_, "%-18s %s\n", what, value);
  }

  void Reason(const absl::Status& status) {
    for (const absl::string_view line : absl::StrSplit(status.message(), '\n')) {
      reasons_.emplace_back(line);
    }
  }

  void DescribeModel(const ModelConfig& c) {
    Line("family", c.family == Family::kDeepseekV3 ? "deepseek_v3" : "deepseek_v2");
    Line("layers",
         absl::StrCat(c.num_hidden_layers, c.num_nextn_predict_layers > 0 ? " + 1 MTP" : "", ", ",
                      NumDense(c), " dense"));
    Line("hidden", absl::StrCat(c.hidden_size));
    Line("attention",
         absl::StrCat(c.num_attention_heads, " heads of ", c.qk_nope_head_dim, " + ",
                      c.qk_rope_head_dim, " (value ", c.v_head_dim, "), latent ", c.kv_lora_rank,
                      c.q_lora_rank > 0 ? absl::StrCat(", query latent ", c.q_lora_rank) : ""));
    Line("MLP", absl::StrCat("dense ", c.intermediate_size));
    if (c.n_routed_experts > 0) {
      Line("experts",
           absl::StrCat(c.num_experts_per_tok, " of ", c.n_routed_experts, " + ",
                        c.n_shared_experts, " shared, each ", c.moe_intermediate_size, "; ",
                        c.scoring == Scoring::kSigmoid ? "sigmoid" : "softmax",
                        c.topk_method == TopkMethod::kGreedy
                            ? ""
                            : absl::StrCat(", ", c.topk_group, " of ", c.n_group, " groups")));
    }
    Line("vocabulary",
         absl::StrCat(c.vocab_size, c.tie_word_embeddings ? ", tied embeddings" : ""));
    Line("context",
         absl::StrCat(c.max_position_embeddings,
                      c.yarn ? absl::StrFormat(", YaRN factor %g over %d", c.yarn->factor,
                                               c.yarn->original_max_position_embeddings)
                             : ""));
    Line("quantisation",
         c.fp8 ? absl::StrFormat("FP8 e4m3 in blocks of %d x %d", c.fp8_block, c.fp8_block)
               : "none");
    const ParameterCounts counts = CountParameters(c, ExpectedTensors(c));
    Line("parameters",
         absl::StrCat(Billions(counts.main), ", ", Billions(counts.active), " active per token",
                      counts.mtp > 0 ? "; MTP " + Billions(counts.mtp) : ""));
    const int64_t elements = c.kv_dim() * c.num_hidden_layers;
    Line("KV per token", absl::StrCat(elements * 2, " bytes in bf16, ", elements * 4, " in f32"));
  }

  static int64_t NumDense(const ModelConfig& config) {
    int64_t dense = 0;
    for (int64_t i = 0; i < config.num_hidden_layers; ++i) dense += !config.IsMoeLayer(i);
    return dense;
  }

  void DescribeFiles(const Checkpoint& checkpoint) {
    struct Sum {
      int64_t tensors = 0;
      int64_t bytes = 0;
    };
    std::map<std::string, Sum> by_type;
    int64_t bytes = 0;
    for (const StoredTensor& tensor : checkpoint.tensors()) {
      Sum& sum = by_type[std::string(DTypeName(tensor.dtype))];
      ++sum.tensors;
      sum.bytes += static_cast<int64_t>(tensor.bytes);
      bytes += static_cast<int64_t>(tensor.bytes);
    }
    Line("files", absl::StrCat(checkpoint.files().size(), ", ", checkpoint.tensors().size(),
                               " tensors, ", HumanBytes(bytes)));
    for (const auto& [type, sum] : by_type) {
      Line("  " + type, absl::StrCat(sum.tensors, " tensors, ", HumanBytes(sum.bytes)));
    }
  }

  void Match(const ModelConfig& config, const Checkpoint& checkpoint) {
    const std::vector<TensorSpec> specs = ExpectedTensors(config);
    const auto matches = MatchTensors(config, specs, checkpoint);
    if (!matches.ok()) return Reason(matches.status());
    bool mtp = false;
    for (const MatchedTensor& match : *matches) {
      mtp |= match.spec->need == TensorNeed::kMtp && match.stored != nullptr;
      if (match.scales == nullptr) continue;
      const absl::Status status = CheckScales(*match.scales);
      if (!status.ok()) return Reason(status);
    }
    Line("MTP module", mtp ? "present" : "absent");
    if (!options_.check_data) return;
    const absl::Status status = CheckData(checkpoint, options_);
    if (!status.ok()) return Reason(status);
    Line("weights", "all finite");
  }

  void DescribeTokenizer() {
    std::error_code ignored;
    const bool present = std::filesystem::exists(dir_ + "/tokenizer.json", ignored);
    Line("tokenizer", present ? "tokenizer.json" : "none: token ids only, no text");
    if (!present) return;
    const auto tokenizer = Tokenizer::Load(dir_);
    if (!tokenizer.ok()) return Reason(tokenizer.status());
    const auto chat_template = ChatTemplate::Create(**tokenizer, "");
    Line("chat template", chat_template.ok()
                              ? chat_template->name()
                              : absl::StrCat("chats are off: ", chat_template.status().message(),
                                             "; chat_template in the cluster file sets one"));
  }

  const std::string& dir_;
  const InspectOptions& options_;
  std::string text_;
  std::vector<std::string> reasons_;
};

}  // namespace

Inspection InspectCheckpoint(const std::string& dir, const InspectOptions& options) {
  return Inspector(dir, options).Inspect();
}

}  // namespace sluice::model
