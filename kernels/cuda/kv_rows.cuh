// Rows of the KV cache of any type, read and written element by element in f32. Layout:
// kernels/ops/attention.h.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/ops/attention_layout.h"

namespace sluice::cuda {

template <Element kCache>
class KvRow {
 public:
  using Type = typename Stored<kCache>::Type;
  __device__ KvRow(const void* cache, int64_t row, const MlaShape& shape)
      : at_(static_cast<const Type*>(cache) + row * (shape.rank + shape.rope)) {}
  __device__ float operator[](int i) const { return Stored<kCache>::Widen(at_[i]); }

 private:
  const Type* at_;
};

template <>
class KvRow<Element::kF8E4M3> {
 public:
  __device__ KvRow(const void* cache, int64_t row, const MlaShape& shape)
      : rank_(shape.rank),
        latent_(static_cast<const uint8_t*>(cache) + row * F8KvRowBytes(shape.rank, shape.rope)),
        scales_(reinterpret_cast<const float*>(latent_ + F8KvScalesAt(shape.rank))),
        key_(reinterpret_cast<const __nv_bfloat16*>(latent_ + F8KvKeyAt(shape.rank))) {}
  __device__ float operator[](int i) const {
    if (i >= rank_) return __bfloat162float(key_[i - rank_]);
    __nv_fp8_e4m3 element;
    element.__x = latent_[i];
    return static_cast<float>(element) * scales_[i / kF8KvGroup];
  }

 private:
  const int rank_;
  const uint8_t* latent_;
  const float* scales_;
  const __nv_bfloat16* key_;
};

}  // namespace sluice::cuda
