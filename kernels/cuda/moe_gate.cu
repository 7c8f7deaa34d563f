// Choosing experts.
//
// Compiled without fused multiply-adds: scores and choices are bit for bit the CPU's.
#include "kernels/base/portable_math.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/early_launch.cuh"

namespace sluice::cuda {
namespace {

constexpr int kGroupsMax = 256;  // as GateParams are checked

// a comes before b: larger, or as large with the lower index.
__device__ bool Before(float a, int i, float b, int j) { return a > b || (a == b && i < j); }

// The first of n values in the order of Before, by a whole warp. Values that were taken are NaN.
__device__ int WarpFirst(const float* values, int n) {
  const int lane = threadIdx.x % 32;
  float best = 0;
  int at = -1;
  for (int i = lane; i < n; i += 32) {
    const float value = values[i];
    if (value != value) continue;
    if (at < 0 || value > best) {
      best = value;
      at = i;
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(~0u, best, offset);
    const int other_at = __shfl_xor_sync(~0u, at, offset);
    if (other_at >= 0 && (at < 0 || Before(other, other_at, best, at))) {
      best = other;
      at = other_at;
    }
  }
  return at;
}

// The sum that the CPU makes of 16 lanes (kernels/cpu/simd/f32x16.h): i + (i + 8), then 4, 2, 1.
__device__ float SumOf16(const float* lanes) {
  float x[16];
  for (int i = 0; i < 16; ++i) x[i] = lanes[i];
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) x[i] = x[i] + x[i + half];
  }
  return x[0];
}

// One warp per token; shared memory: scores [experts], choice [experts], group scores [groups].
__global__ void __launch_bounds__(32) GateKernel(GateArgs args) {
  StartAfterEarlier();
  extern __shared__ float memory[];
  float* scores = memory;
  float* choice = scores + args.experts;
  float* group_scores = choice + args.experts;
  __shared__ float lanes[16];
  __shared__ bool kept[kGroupsMax];
  const int lane = threadIdx.x, token = blockIdx.x;
  const float* logits = args.logits + token * args.logits_stride;
  int32_t* ids = args.expert_ids + token * args.ids_stride;
  float* weights = args.expert_weights + token * args.weights_stride;
  if (args.live != nullptr && args.live[token] < 0) {
    for (int k = lane; k < args.top_k; k += 32) {
      ids[k] = -1;
      weights[k] = 0;
    }
    return;
  }
  bool any_nan = false;
  for (int e = lane; e < args.experts; e += 32) any_nan |= logits[e] != logits[e];
  any_nan = __any_sync(~0u, any_nan);

  if (args.scores == GateScores::kSigmoid) {
    for (int e = lane; e < args.experts; e += 32) {
      scores[e] = 1.0f / (1.0f + portable::Exp(-logits[e]));
    }
  } else {
    float max = -CUDART_INF_F;
    for (int e = lane; e < args.experts; e += 32) max = logits[e] > max ? logits[e] : max;
    for (int offset = 16; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(~0u, max, offset);
      max = other > max ? other : max;
    }
    for (int e = lane; e < args.experts; e += 32) scores[e] = portable::Exp(logits[e] - max);
    __syncwarp();
    if (lane < 16) {
      float sum = 0;
      for (int e = lane; e < args.experts; e += 16) sum = sum + scores[e];
      lanes[lane] = sum;
    }
    __syncwarp();
    const float sum = SumOf16(lanes);
    for (int e = lane; e < args.experts; e += 32) scores[e] = scores[e] / sum;
  }
  __syncwarp();
  for (int e = lane; e < args.experts; e += 32) {
    const float biased = args.bias == nullptr ? scores[e] : scores[e] + args.bias[e];
    choice[e] = biased == biased ? biased : -CUDART_INF_F;
  }
  __syncwarp();

  if (args.group_rule != GroupRule::kNone && args.topk_groups < args.num_groups) {
    const int size = args.experts / args.num_groups;
    for (int group = lane; group < args.num_groups; group += 32) {
      float best = -CUDART_INF_F, second = -CUDART_INF_F;
      for (int i = 0; i < size; ++i) {
        const float value = choice[group * size + i];
        if (value > best) {
          second = best;
          best = value;
        } else if (value > second) {
          second = value;
        }
      }
      const bool both = args.group_rule == GroupRule::kTop2Sum && size > 1;
      const float score = both ? best + second : best;
      // -inf + inf cannot arise; a NaN here would mean "taken".
      group_scores[group] = score == score ? score : -CUDART_INF_F;
      kept[group] = false;
    }
    __syncwarp();
    for (int i = 0; i < args.topk_groups; ++i) {
      const int group = WarpFirst(group_scores, args.num_groups);
      __syncwarp();
      if (lane == 0) {
        kept[group] = true;
        group_scores[group] = CUDART_NAN_F;
      }
      __syncwarp();
    }
    for (int e = lane; e < args.experts; e += 32) {
      if (!kept[e / size]) choice[e] = CUDART_NAN_F;
    }
    __syncwarp();
  }

  float sum = 0;
  for (int k = 0; k < args.top_k; ++k) {
    const int expert = WarpFirst(choice, args.experts);
    __syncwarp();
    sum = sum + scores[expert];
    if (lane == 0) {
      ids[k] = expert;
      weights[k] = scores[expert];
      choice[expert] = CUDART_NAN_F;
      if (args.load != nullptr) atomicAdd(&args.load[expert], 1ULL);
    }
    __syncwarp();
  }
  for (int k = lane; k < args.top_k; k += 32) {
    float weight = weights[k];
    if (args.normalize) weight = weight / (sum + 1e-20f);
    weight = weight * args.scaling;
    // A logit that is no number must not vanish: it spoils the token, and sampling reports that.
    weights[k] = any_nan ? CUDART_NAN_F : weight;
  }
}

// DeepSeek-V3's rule: a lane has eight experts in registers, four lanes a group.
constexpr int kV3Experts = 256, kV3Groups = 8, kV3Each = kV3Experts / 32;

// Rises with the float; 0 is below all.
__device__ uint32_t RisingKey(float x) {
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

bool IsV3(const GateArgs& args) {
  return args.experts == kV3Experts && args.num_groups == kV3Groups &&
         args.scores == GateScores::kSigmoid && args.group_rule == GroupRule::kTop2Sum &&
         args.top_k <= 32;
}

__global__ void GateV3Kernel(GateArgs args) {
  StartAfterEarlier();
  const int lane = threadIdx.x % 32;
  const int token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (token >= args.tokens) return;
  int32_t* ids = args.expert_ids + token * args.ids_stride;
  float* weights = args.expert_weights + token * args.weights_stride;
  const float* logits = args.logits + token * args.logits_stride + lane * kV3Each;
  float scores[kV3Each], choice[kV3Each];
  bool any_nan = false;
#pragma unroll
  for (int i = 0; i < kV3Each; ++i) {
    const float logit = logits[i];
    any_nan |= logit != logit;
    scores[i] = 1.0f / (1.0f + portable::Exp(-logit));
    const float biased =
        args.bias == nullptr ? scores[i] : scores[i] + args.bias[lane * kV3Each + i];
    choice[i] = biased == biased ? biased : -CUDART_INF_F;
  }
  any_nan = __any_sync(~0u, any_nan);
  if (args.live != nullptr && args.live[token] < 0) {
    if (lane < args.top_k) {
      ids[lane] = -1;
      weights[lane] = 0;
    }
    return;
  }

  float best = -CUDART_INF_F, second = -CUDART_INF_F;
#pragma unroll
  for (int i = 0; i < kV3Each; ++i) {
    second = fmaxf(second, fminf(best, choice[i]));
    best = fmaxf(best, choice[i]);
  }
  for (int offset = 1; offset < 32 / kV3Groups; offset *= 2) {
    const float other_best = __shfl_xor_sync(~0u, best, offset);
    const float other_second = __shfl_xor_sync(~0u, second, offset);
    second = fmaxf(fminf(best, other_best), fmaxf(second, other_second));
    best = fmaxf(best, other_best);
  }
  const float sum_of_two = best + second;
  const float group_score = sum_of_two == sum_of_two ? sum_of_two : -CUDART_INF_F;
  int ahead = 0;  // groups that come before this lane's
#pragma unroll
  for (int group = 0; group < kV3Groups; ++group) {
    const float other = __shfl_sync(~0u, group_score, group * (32 / kV3Groups));
    ahead += Before(other, group, group_score, lane / (32 / kV3Groups));
  }
  uint32_t keys[kV3Each];  // 0: chosen, or in a group that was dropped
#pragma unroll
  for (int i = 0; i < kV3Each; ++i) keys[i] = ahead < args.topk_groups ? RisingKey(choice[i]) : 0;

  float sum = 0, own_weight = 0;
  int32_t own_id = 0;
  for (int k = 0; k < args.top_k; ++k) {
    uint32_t key = 0;
#pragma unroll
    for (int i = 0; i < kV3Each; ++i) key = max(key, keys[i]);
    const uint32_t highest = __reduce_max_sync(~0u, key);
    const int from = __ffs(__ballot_sync(~0u, key == highest)) - 1;
    int32_t id = 0;
    float score = 0;
    bool taken = lane != from;
#pragma unroll
    for (int i = 0; i < kV3Each; ++i) {
      if (taken || keys[i] != highest) continue;
      taken = true;
      keys[i] = 0;
      id = lane * kV3Each + i;
      score = scores[i];
    }
    id = __shfl_sync(~0u, id, from);
    score = __shfl_sync(~0u, score, from);
    sum = sum + score;
    if (lane == k) {
      own_id = id;
      own_weight = score;
    }
  }
  if (lane >= args.top_k) return;
  if (args.normalize) own_weight = own_weight / (sum + 1e-20f);
  own_weight = own_weight * args.scaling;
  ids[lane] = own_id;
  weights[lane] = any_nan ? CUDART_NAN_F : own_weight;
  if (args.load != nullptr) atomicAdd(&args.load[own_id], 1ULL);
}

}  // namespace

cudaError_t LaunchGate(const GateArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  if (IsV3(args)) {
    const int warps = args.tokens > 1024 ? 4 : 1;
    return LaunchEarly(GateV3Kernel, {dim3((args.tokens + warps - 1) / warps), 32 * warps}, stream,
                       args);
  }
  const size_t bytes = (2 * (size_t)args.experts + args.num_groups) * sizeof(float);
  const cudaError_t error =
      cudaFuncSetAttribute(GateKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
  if (error != cudaSuccess) return error;
  return LaunchEarly(GateKernel, {dim3(args.tokens), 32, bytes}, stream, args);
}

}  // namespace sluice::cuda
