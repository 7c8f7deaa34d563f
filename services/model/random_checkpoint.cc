#include "services/model/random_checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/float_convert.h"
#include "kernels/base/status.h"
#include "services/base/json.h"
#include "services/base/mapped_file.h"
#include "services/base/parallel.h"
#include "services/base/progress.h"
#include "services/model/random_weights.h"
#include "services/model/safetensors_writer.h"

namespace sluice::model {
namespace {

// Elements that one thread makes and writes at a time.
constexpr int64_t kStripElements = 1 << 21;

// One tensor of the manifest and the stored tensors of a shard that hold it.
struct Planned {
  const TensorSpec* spec;
  size_t data = 0;
  size_t scales = 0;  // of FP8 tensors
};

struct Shard {
  std::vector<SafetensorsWriter::Tensor> tensors;
  std::vector<Planned> plan;
  int64_t bytes = 0;
};

class CheckpointMaker {
 public:
  CheckpointMaker(const ModelConfig& config, const std::string& out,
                  const RandomCheckpointOptions& options)
      : config_(config), out_(out), options_(options), specs_(ExpectedTensors(config)) {}

  absl::Status Write() {
    PlanShards();
    int64_t total = 0;
    for (const Shard& shard : shards_) total += shard.bytes;
    Progress progress("writing weights", total,
                      {.file = options_.show_progress ? stderr : nullptr});
    nlohmann::json weight_map;
    for (size_t i = 0; i < shards_.size(); ++i) {
      const std::string name = ShardName(i);
      SLUICE_RETURN_IF_ERROR(WriteShard(shards_[i], out_ + "/" + name, progress));
      for (const auto& tensor : shards_[i].tensors) weight_map[tensor.name] = name;
    }
    if (shards_.size() == 1) return absl::OkStatus();
    const nlohmann::json index = {{"metadata", {{"total_size", total}}},
                                  {"weight_map", std::move(weight_map)}};
    return WriteFile(out_ + "/model.safetensors.index.json", index.dump(2) + "\n");
  }

 private:
  bool IsF8(const TensorSpec& spec) const { return config_.fp8 && spec.quantized; }

  void PlanShards() {
    for (const TensorSpec& spec : specs_) {
      if (spec.need == TensorNeed::kTied || spec.need == TensorNeed::kMtpShared) continue;
      const DType dtype = IsF8(spec)                             ? DType::kF8E4M3
                          : spec.role == TensorRole::kRouterBias ? DType::kF32
                                                                 : DType::kBF16;
      std::vector<SafetensorsWriter::Tensor> stored = {{spec.name, dtype, spec.shape()}};
      if (IsF8(spec)) {
        stored.push_back({spec.scale_name(), DType::kF32, spec.scale_shape(config_.fp8_block)});
      }
      int64_t bytes = 0;
      for (const auto& tensor : stored) bytes += static_cast<int64_t>(tensor.bytes());
      if (shards_.empty() ||
          (shards_.back().bytes + bytes > options_.shard_bytes && shards_.back().bytes > 0)) {
        shards_.emplace_back();
      }
      Shard& shard = shards_.back();
      shard.bytes += bytes;
      shard.plan.push_back({.spec = &spec});
      for (auto& tensor : stored) shard.tensors.push_back(std::move(tensor));
    }
    for (Shard& shard : shards_) OrderTensors(shard);
  }

  // By falling element size, so that each tensor is aligned to its own.
  static void OrderTensors(Shard& shard) {
    std::stable_sort(shard.tensors.begin(), shard.tensors.end(), [](const auto& a, const auto& b) {
      return DTypeBytes(a.dtype) > DTypeBytes(b.dtype);
    });
    std::map<std::string, size_t> index;
    for (size_t i = 0; i < shard.tensors.size(); ++i) index[shard.tensors[i].name] = i;
    for (Planned& planned : shard.plan) {
      planned.data = index.at(planned.spec->name);
      const auto scales = index.find(planned.spec->scale_name());
      if (scales != index.end()) planned.scales = scales->second;
    }
  }

  std::string ShardName(size_t index) const {
    if (shards_.size() == 1) return "model.safetensors";
    return absl::StrFormat("model-%05d-of-%05d.safetensors", index + 1, shards_.size());
  }

  absl::Status WriteShard(const Shard& shard, const std::string& path, Progress& progress) const {
    SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                            SafetensorsWriter::Create(path, shard.tensors));
    struct Piece {
      const Planned* planned;
      int64_t row_begin;
      int64_t rows;
    };
    std::vector<Piece> pieces;
    for (const Planned& planned : shard.plan) {
      const TensorSpec& spec = *planned.spec;
      const int64_t block = config_.fp8_block;  // strips of whole blocks
      const int64_t wanted = kStripElements / std::max<int64_t>(1, spec.cols);
      const int64_t height = (wanted / block + 1) * block;
      for (int64_t row = 0; row < spec.rows; row += height) {
        pieces.push_back({&planned, row, std::min(height, spec.rows - row)});
      }
    }
    SLUICE_RETURN_IF_ERROR(ParallelFor(
        static_cast<int64_t>(pieces.size()), options_.threads, [&](int64_t i) -> absl::Status {
          const Piece& piece = pieces[i];
          SLUICE_ASSIGN_OR_RETURN(const int64_t bytes,
                                  WriteRows(*piece.planned, piece.row_begin, piece.rows, *writer));
          progress.Add(bytes);
          return absl::OkStatus();
        }));
    return writer->Finish();
  }

  // Returns the bytes written.
  absl::StatusOr<int64_t> WriteRows(const Planned& planned, int64_t row_begin, int64_t rows,
                                    SafetensorsWriter& writer) const {
    const TensorSpec& spec = *planned.spec;
    const RandomTensor tensor(spec, options_.seed);
    const auto write = [&](size_t index, int64_t offset, const auto& values) {
      return writer.Write(index, offset * sizeof(values[0]), values.data(),
                          values.size() * sizeof(values[0]));
    };
    if (spec.is_vector()) {
      std::vector<float> values(rows);
      tensor.Fill(row_begin, rows, values.data());
      if (spec.role == TensorRole::kRouterBias) {
        SLUICE_RETURN_IF_ERROR(write(planned.data, row_begin, values));
        return rows * 4;
      }
      std::vector<uint16_t> narrow(rows);
      std::transform(values.begin(), values.end(), narrow.begin(), F32ToBf16);
      SLUICE_RETURN_IF_ERROR(write(planned.data, row_begin, narrow));
      return rows * 2;
    }
    const Region region{.row_begin = row_begin, .rows = rows, .cols = spec.cols};
    if (!IsF8(spec)) {
      std::vector<uint16_t> values(rows * spec.cols);
      tensor.FillBf16(region, values.data(), spec.cols);
      SLUICE_RETURN_IF_ERROR(write(planned.data, row_begin * spec.cols, values));
      return rows * spec.cols * 2;
    }
    const int64_t block = config_.fp8_block;
    const int64_t block_cols = spec.scale_shape(block)[1];
    std::vector<uint8_t> values(rows * spec.cols);
    std::vector<float> scales((rows + block - 1) / block * block_cols);
    tensor.FillF8(region, block, values.data(), spec.cols, scales.data(), block_cols);
    SLUICE_RETURN_IF_ERROR(write(planned.data, row_begin * spec.cols, values));
    SLUICE_RETURN_IF_ERROR(write(planned.scales, row_begin / block * block_cols, scales));
    return static_cast<int64_t>(values.size() + scales.size() * sizeof(float));
  }

  const ModelConfig& config_;
  const std::string& out_;
  const RandomCheckpointOptions& options_;
  const std::vector<TensorSpec> specs_;
  std::vector<Shard> shards_;
};

absl::Status PrepareDirectory(const std::string& out) {
  std::error_code error;
  std::filesystem::create_directories(out, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat(out, ": cannot create: ", error.message()));
  }
  for (const auto& entry : std::filesystem::directory_iterator(out, error)) {
    const std::string name = entry.path().filename();
    if (name == "config.json" || absl::EndsWith(name, ".safetensors")) {
      return absl::FailedPreconditionError(
          absl::StrCat(out, ": holds ", name, " already, wanted a directory without a checkpoint"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteRandomCheckpoint(absl::string_view config_json, absl::string_view origin,
                                   const std::string& out, const RandomCheckpointOptions& options) {
  SLUICE_ASSIGN_OR_RETURN(nlohmann::json json, ParseJson(config_json, origin));
  if (json.is_object()) {
    if (!options.fp8) json.erase("quantization_config");
    if (options.fp8 && !json.contains("quantization_config")) {
      json["quantization_config"] = {{"quant_method", "fp8"},
                                     {"fmt", "e4m3"},
                                     {"activation_scheme", "dynamic"},
                                     {"weight_block_size", {128, 128}}};
    }
    if (!options.include_mtp) {
      json.erase("num_mtp_layers");
      json["num_nextn_predict_layers"] = 0;
    }
  }
  SLUICE_ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(json.dump(), origin));
  SLUICE_RETURN_IF_ERROR(PrepareDirectory(out));
  SLUICE_RETURN_IF_ERROR(CheckpointMaker(config, out, options).Write());
  return WriteFile(out + "/config.json", json.dump(2) + "\n");
}

}  // namespace sluice::model
