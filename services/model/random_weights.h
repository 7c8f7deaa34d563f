// Weights made from a seed: any element of any tensor can be computed by itself, so every rank, the
// checkpoint writer and a Python test make the same ones, bit for bit.
//
// Element i, the row-major index in the whole tensor, is RandomNumber i
// (kernels/base/random_numbers.h) of the key mix(seed ^ fnv1a64(tensor name)). Norm weights have
// mean 1 and stddev 0.1, the router's correction bias stddev 0.01, embeddings stddev 1, every other
// matrix [N, K] stddev K^-0.5. Matrices and norms are stored as bf16; the correction bias as f32;
// FP8 as in QuantizeRows.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/base/random_numbers.h"
#include "services/model/model_config.h"
#include "services/model/tensor_manifest.h"
#include "services/model/weight_source.h"

namespace sluice::model {

// The elements of one tensor. Threads: immutable.
class RandomTensor {
 public:
  RandomTensor(const TensorSpec& spec, uint64_t seed);

  const RandomNumbers& numbers() const { return numbers_; }

  // Elements [first, first + count) in row-major order.
  void Fill(int64_t first, int64_t count, float* out) const;

  // What a checkpoint would store of a region of a matrix, out[row * out_stride + col] from the
  // region's first element.
  void FillBf16(const Region& region, uint16_t* out, int64_t out_stride) const;
  // The same in FP8: per block (of the whole tensor) scale = amax / 448, or 1 if amax is 0;
  // element = e4m3(value / scale), to nearest even, saturating. The region begins at multiples of
  // `block` and ends there or with the tensor. scales[0] belongs to the region's first block.
  void FillF8(const Region& region, int64_t block, uint8_t* out, int64_t out_stride, float* scales,
              int64_t scale_stride) const;

 private:
  const int64_t cols_;
  const RandomNumbers numbers_;
};

// Fills any configuration's geometry. The MTP module shares the main embedding and head. For a
// device, matrices are addresses without contents, and random() tells what they would hold.
std::unique_ptr<WeightSource> MakeRandomSource(const ModelConfig& config, uint64_t seed,
                                               bool for_device = false);

}  // namespace sluice::model
