#include "services/model/checkpoint_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/float_convert.h"
#include "kernels/base/status.h"
#include "services/base/parallel.h"
#include "services/base/progress.h"
#include "services/model/buffer_pool.h"

namespace sluice::model {
namespace {

// Pieces of this size are read by one thread at a time; gaps shorter than the other number are read
// too, as the disk would anyway.
constexpr size_t kPieceBytes = 8 << 20;
constexpr size_t kMaxGapBytes = 16 << 10;

bool Aligned(const void* data, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % DTypeBytes(dtype) == 0;
}

// Element `index` of possibly unaligned data of one of the float types.
float ElementAt(const char* data, DType dtype, int64_t index) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, data + index * 4, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, data + index * 2, sizeof(bits));
  return dtype == DType::kBF16 ? Bf16ToF32(bits) : F16ToF32(bits);
}

struct FileRange {
  const MappedFile* file;
  size_t begin;
  size_t end;
};

// Sorted, joined where they touch or nearly so, cut into pieces.
std::vector<FileRange> Pieces(std::vector<FileRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const FileRange& a, const FileRange& b) {
    return std::tie(a.file, a.begin) < std::tie(b.file, b.begin);
  });
  std::vector<FileRange> joined;
  for (const FileRange& range : ranges) {
    if (!joined.empty() && joined.back().file == range.file &&
        range.begin <= joined.back().end + kMaxGapBytes) {
      joined.back().end = std::max(joined.back().end, range.end);
    } else {
      joined.push_back(range);
    }
  }
  std::vector<FileRange> pieces;
  for (const FileRange& range : joined) {
    for (size_t begin = range.begin; begin < range.end; begin += kPieceBytes) {
      pieces.push_back({range.file, begin, std::min(begin + kPieceBytes, range.end)});
    }
  }
  return pieces;
}

class CheckpointSource final : public WeightSource {
 public:
  CheckpointSource(Checkpoint checkpoint, int64_t block, bool for_device)
      : checkpoint_(std::move(checkpoint)), block_(block), for_device_(for_device) {}

  const Checkpoint& checkpoint() const { return checkpoint_; }
  void SetMatches(const std::vector<MatchedTensor>& matches) {
    for (const MatchedTensor& match : matches) matches_[match.spec->name] = match;
  }

  bool Has(const TensorSpec& spec) const override {
    return matches_.at(spec.name).stored != nullptr;
  }

  WeightView Matrix(const TensorSpec& spec, const Region& region) override {
    const MatchedTensor& match = matches_.at(spec.name);
    const StoredTensor& stored = *match.stored;
    WeightView view{.data = stored.data,
                    .dtype = stored.dtype,
                    .rows = spec.rows,
                    .cols = spec.cols,
                    .row_stride = spec.cols,
                    .scale_block = block_};
    if (match.scales != nullptr) {
      view.scales = Scales(*match.scales);
      view.scale_row_stride = match.scales->shape[1];
    }
    view = view.RowSlice(region.row_begin, region.rows).ColSlice(region.col_begin, region.cols);
    if (for_device_) return view;  // a copy lies where it must
    NeedRows(stored, view);
    if (!Aligned(view.data, view.dtype)) CopyLater(view);
    return view;
  }

  void Vector(const TensorSpec& spec, float* out) override {
    const StoredTensor& stored = *matches_.at(spec.name).stored;
    Need(stored, stored.data, stored.bytes);
    jobs_.push_back([&stored, out, size = spec.rows] {
      for (int64_t i = 0; i < size; ++i) {
        out[i] = ElementAt(stored.data, stored.dtype, i);
        if (std::isfinite(out[i])) continue;
        return absl::InvalidArgumentError(
            absl::StrCat(stored.file->path(), ": tensor ", QuoteName(stored.name), " has ", out[i],
                         " at index ", i, ", wanted finite numbers of 0 and more"));
      }
      return absl::OkStatus();
    });
  }

  absl::Status Finish(int threads, const ProgressOut& progress_out) override {
    const std::vector<FileRange> pieces = Pieces(std::move(ranges_));
    int64_t total = 0;
    for (const FileRange& piece : pieces) total += static_cast<int64_t>(piece.end - piece.begin);
    {
      Progress progress("loading weights", total, for_device_ ? ProgressOut() : progress_out);
      SLUICE_RETURN_IF_ERROR(
          ParallelFor(static_cast<int64_t>(pieces.size()), threads, [&](int64_t i) {
            const FileRange& piece = pieces[i];
            const size_t bytes = piece.end - piece.begin;
            const absl::Status status = piece.file->PageIn(piece.begin, bytes);
            if (status.ok()) progress.Add(static_cast<int64_t>(bytes));
            return status;
          }));
    }
    return ParallelFor(static_cast<int64_t>(jobs_.size()), threads,
                       [&](int64_t i) { return jobs_[i](); });
  }

  std::vector<std::shared_ptr<const void>> owners() const override {
    std::vector<std::shared_ptr<const void>> owners(checkpoint_.files().begin(),
                                                    checkpoint_.files().end());
    owners.insert(owners.end(), pool_.owners().begin(), pool_.owners().end());
    return owners;
  }

  std::vector<std::shared_ptr<const MappedFile>> files() const override {
    return checkpoint_.files();
  }

 private:
  void Need(const StoredTensor& stored, const void* data, size_t bytes) {
    const size_t begin =
        static_cast<size_t>(static_cast<const char*>(data) - stored.file->bytes().data());
    if (bytes > 0) ranges_.push_back({stored.file, begin, begin + bytes});
  }

  void NeedRows(const StoredTensor& stored, const WeightView& view) {
    const size_t size = DTypeBytes(view.dtype);
    const char* data = static_cast<const char*>(view.data);
    const size_t row_bytes = view.cols * size;
    if (view.cols == view.row_stride) return Need(stored, data, view.rows * row_bytes);
    for (int64_t row = 0; row < view.rows; ++row) {
      Need(stored, data + row * view.row_stride * size, row_bytes);
    }
  }

  // Data that does not lie at a multiple of its element size is copied to memory that does.
  void CopyLater(WeightView& view) {
    const size_t size = DTypeBytes(view.dtype);
    const size_t row_bytes = view.cols * size;
    char* copy = pool_.Allocate<char>(view.rows * row_bytes);
    jobs_.push_back([from = static_cast<const char*>(view.data), copy, row_bytes, rows = view.rows,
                     stride = view.row_stride * size] {
      for (int64_t row = 0; row < rows; ++row) {
        std::memcpy(copy + row * row_bytes, from + row * stride, row_bytes);
      }
      return absl::OkStatus();
    });
    view.data = copy;
    view.row_stride = view.cols;
  }

  const float* Scales(const StoredTensor& stored) {
    Need(stored, stored.data, stored.bytes);
    jobs_.push_back([&stored] { return CheckScales(stored); });
    if (Aligned(stored.data, stored.dtype)) return reinterpret_cast<const float*>(stored.data);
    char* copy = pool_.Allocate<char>(stored.bytes);
    jobs_.push_back([&stored, copy] {
      std::memcpy(copy, stored.data, stored.bytes);
      return absl::OkStatus();
    });
    return reinterpret_cast<const float*>(copy);
  }

  const Checkpoint checkpoint_;
  const int64_t block_;
  const bool for_device_;
  absl::flat_hash_map<std::string, MatchedTensor> matches_;
  std::vector<FileRange> ranges_;
  std::vector<std::function<absl::Status()>> jobs_;
  BufferPool pool_;
};

}  // namespace

absl::Status CheckScales(const StoredTensor& stored) {
  const int64_t count = static_cast<int64_t>(stored.bytes / sizeof(float));
  for (int64_t i = 0; i < count; ++i) {
    const float scale = ElementAt(stored.data, DType::kF32, i);
    if (std::isfinite(scale) && scale >= 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(stored.file->path(), ": tensor ", QuoteName(stored.name), " has the scale ",
                     scale, " at index ", i, ", wanted finite numbers of 0 and more"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpointSource(
    const std::string& dir, const ModelConfig& config, const std::vector<TensorSpec>& specs,
    bool for_device) {
  SLUICE_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(dir));
  auto source =
      std::make_unique<CheckpointSource>(std::move(checkpoint), config.fp8_block, for_device);
  SLUICE_ASSIGN_OR_RETURN(const std::vector<MatchedTensor> matches,
                          MatchTensors(config, specs, source->checkpoint()));
  source->SetMatches(matches);
  return source;
}

}  // namespace sluice::model
