// Where weights come from: a checkpoint's files or a generator. LoadWeights asks a source for the
// parts of tensors that one rank needs, then runs the work this takes on several threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/tensor_view.h"
#include "services/base/progress.h"
#include "services/model/tensor_manifest.h"
#include "services/model/weights.h"

namespace sluice::model {

// A part of a matrix.
struct Region {
  int64_t row_begin = 0;
  int64_t rows = 0;
  int64_t col_begin = 0;
  int64_t cols = 0;
};

// Threads: one caller; views may be read after Finish has returned OK.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // Whether the tensor is there. False only for those that may be absent.
  virtual bool Has(const TensorSpec& spec) const = 0;

  // A view of part of a matrix. Of an FP8 matrix the view knows its place in the scale blocks.
  virtual WeightView Matrix(const TensorSpec& spec, const Region& region) = 0;

  // A whole vector, widened to f32, will be written to out[0, spec.rows).
  virtual void Vector(const TensorSpec& spec, float* out) = 0;

  // Does all that the calls above asked for, on `threads` threads (0: one per core), but for the
  // matrices of a source that was made for a device.
  virtual absl::Status Finish(int threads, const ProgressOut& progress_out) = 0;

  // What the views point into.
  virtual std::vector<std::shared_ptr<const void>> owners() const = 0;
  virtual std::vector<std::shared_ptr<const MappedFile>> files() const { return {}; }
  // As ModelWeights::random.
  virtual absl::flat_hash_map<const void*, RandomPart> random() const { return {}; }
};

}  // namespace sluice::model
