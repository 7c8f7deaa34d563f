#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status.h"
#include "services/model/checkpoint_source.h"

namespace sluice::model {
namespace {

constexpr size_t kMaxNamed = 5;

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

absl::Status CheckStored(const StoredTensor& stored, bool right_type, absl::string_view types,
                         const std::vector<int64_t>& shape, absl::string_view hint = "") {
  if (right_type && stored.shape == shape) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(stored.file->path(), ": tensor ", QuoteName(stored.name), " is ",
                   DTypeName(stored.dtype), " ", ShapeString(stored.shape), ", wanted ", types, " ",
                   ShapeString(shape), right_type ? "" : hint));
}

class Matcher {
 public:
  Matcher(const ModelConfig& config, const Checkpoint& checkpoint)
      : config_(config), checkpoint_(checkpoint) {}

  absl::StatusOr<std::vector<MatchedTensor>> Match(const std::vector<TensorSpec>& specs) {
    const bool has_mtp = std::any_of(specs.begin(), specs.end(), [&](const TensorSpec& spec) {
      return (spec.need == TensorNeed::kMtp || spec.need == TensorNeed::kMtpShared) &&
             checkpoint_.Find(spec.name) != nullptr;
    });
    std::vector<MatchedTensor> matches;
    matches.reserve(specs.size());
    for (const TensorSpec& spec : specs) {
      const bool required =
          spec.need == TensorNeed::kRequired || (spec.need == TensorNeed::kMtp && has_mtp);
      SLUICE_ASSIGN_OR_RETURN(const MatchedTensor match, MatchOne(spec, required));
      matches.push_back(match);
    }
    FindUnexpected();
    if (missing_.empty() && unexpected_.empty()) return matches;
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint_.files().front()->path(),
        checkpoint_.files().size() > 1
            ? absl::StrCat(" and ", checkpoint_.files().size() - 1, " more files")
            : "",
        ": ", List(missing_, "missing"), missing_.empty() || unexpected_.empty() ? "" : "; ",
        List(unexpected_, "unexpected")));
  }

 private:
  absl::StatusOr<MatchedTensor> MatchOne(const TensorSpec& spec, bool required) {
    MatchedTensor match{.spec = &spec, .stored = Find(spec.name, required)};
    const bool fp8 = config_.fp8 && spec.quantized;
    if (match.stored != nullptr) {
      const DType dtype = match.stored->dtype;
      SLUICE_RETURN_IF_ERROR(
          CheckStored(*match.stored, fp8 ? dtype == DType::kF8E4M3 : IsFloat(dtype),
                      fp8 ? "F8_E4M3" : "BF16, F16 or F32", spec.shape(),
                      config_.fp8 == fp8 ? (fp8 ? " (config.json has an fp8 quantization_config)"
                                                : " (config.json has no quantization_config)")
                                         : ""));
    }
    if (!fp8) return match;
    match.scales = Find(spec.scale_name(), required || match.stored != nullptr);
    if (match.scales != nullptr) {
      SLUICE_RETURN_IF_ERROR(CheckStored(*match.scales, match.scales->dtype == DType::kF32, "F32",
                                         spec.scale_shape(config_.fp8_block)));
    }
    return match;
  }

  const StoredTensor* Find(const std::string& name, bool required) {
    const StoredTensor* stored = checkpoint_.Find(name);
    if (stored == nullptr && required) missing_.push_back(name);
    if (stored != nullptr) known_.insert(name);
    return stored;
  }

  void FindUnexpected() {
    for (const StoredTensor& tensor : checkpoint_.tensors()) {
      if (absl::EndsWith(tensor.name, ".rotary_emb.inv_freq")) continue;
      if (!known_.contains(tensor.name)) unexpected_.push_back(tensor.name);
    }
  }

  // "3 tensors missing: "a", "b", "c"".
  static std::string List(std::vector<std::string> names, absl::string_view what) {
    if (names.empty()) return "";
    std::sort(names.begin(), names.end());
    const size_t count = names.size();
    if (count > kMaxNamed) names.resize(kMaxNamed);
    return absl::StrCat(count, count == 1 ? " tensor " : " tensors ", what, ": ",
                        absl::StrJoin(names, ", ",
                                      [](std::string* out, const std::string& name) {
                                        out->append(QuoteName(name));
                                      }),
                        count > kMaxNamed ? ", ..." : "");
  }

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  absl::flat_hash_set<std::string> known_;
  std::vector<std::string> missing_;
  std::vector<std::string> unexpected_;
};

}  // namespace

absl::StatusOr<std::vector<MatchedTensor>> MatchTensors(const ModelConfig& config,
                                                        const std::vector<TensorSpec>& specs,
                                                        const Checkpoint& checkpoint) {
  return Matcher(config, checkpoint).Match(specs);
}

}  // namespace sluice::model
