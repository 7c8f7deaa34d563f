// Choosing experts, sorting tokens by expert slot, putting results together.
//
// Compiled without fused multiply-adds: scores and choices are bit for bit the CPU's.
#include "kernels/base/portable_math.h"
#include "kernels/cuda/device.cuh"

namespace sluice::cuda {
namespace {

constexpr int kThreads = 256;
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

__device__ int SlotOfPair(const PermuteArgs& args, int pair) {
  const int expert = args.expert_ids[pair / args.top_k * args.ids_stride + pair % args.top_k];
  return expert < 0 ? -1 : args.slot_of_expert[expert];
}

// Counts rows per slot, and sums them up. One block; shared memory: counts [slots].
__global__ void __launch_bounds__(1024) CountSlotsKernel(PermuteArgs args) {
  extern __shared__ int32_t counts[];
  for (int slot = threadIdx.x; slot < args.slots; slot += blockDim.x) counts[slot] = 0;
  __syncthreads();
  for (int pair = threadIdx.x; pair < args.tokens * args.top_k; pair += blockDim.x) {
    const int slot = SlotOfPair(args, pair);
    if (slot >= 0) atomicAdd(&counts[slot], 1);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t sum = 0;
    for (int slot = 0; slot < args.slots; ++slot) {
      args.offsets[slot] = sum;
      sum += counts[slot];
    }
    args.offsets[args.slots] = sum;
  }
}

// One warp per slot gives rows to its pairs in order of token.
__global__ void __launch_bounds__(32) PlacePairsKernel(PermuteArgs args) {
  const int slot = blockIdx.x, lane = threadIdx.x;
  int32_t next = args.offsets[slot];
  const int pairs = args.tokens * args.top_k;
  for (int begin = 0; begin < pairs; begin += 32) {
    const int pair = begin + lane;
    const bool mine = pair < pairs && SlotOfPair(args, pair) == slot;
    const unsigned ballot = __ballot_sync(~0u, mine);
    if (mine) {
      args.pair_rows[pair / args.top_k * args.pair_stride + pair % args.top_k] =
          next + __popc(ballot & ((1u << lane) - 1));
    }
    next += __popc(ballot);
  }
}

__global__ void GatherPairsKernel(PermuteArgs args) {
  const int token = blockIdx.x / args.top_k, k = blockIdx.x % args.top_k;
  int32_t* row = args.pair_rows + token * args.pair_stride + k;
  if (SlotOfPair(args, blockIdx.x) < 0) {
    if (threadIdx.x == 0) *row = -1;
    return;
  }
  const float* x = args.x + token * args.x_stride;
  float* out = args.rows_x + *row * args.rows_stride;
  for (int i = threadIdx.x; i < args.hidden; i += kThreads) out[i] = x[i];
}

__global__ void CombineKernel(CombineArgs args) {
  const int token = blockIdx.x;
  const int32_t* pair_rows = args.pair_rows + token * args.pair_stride;
  const float* weights = args.weights + token * args.weights_stride;
  for (int i = threadIdx.x; i < args.hidden; i += kThreads) {
    float sum = 0;
    for (int k = 0; k < args.top_k; ++k) {
      if (pair_rows[k] < 0) continue;
      sum = fmaf(weights[k], args.rows[pair_rows[k] * args.rows_stride + i], sum);
    }
    if (args.shared != nullptr) sum = sum + args.shared[token * args.shared_stride + i];
    float* out = args.out + token * args.out_stride + i;
    *out = *out + sum;
  }
}

}  // namespace

cudaError_t LaunchGate(const GateArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return cudaSuccess;
  const size_t bytes = (2 * (size_t)args.experts + args.num_groups) * sizeof(float);
  const cudaError_t error =
      cudaFuncSetAttribute(GateKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
  if (error != cudaSuccess) return error;
  GateKernel<<<args.tokens, 32, bytes, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchPermute(const PermuteArgs& args, cudaStream_t stream) {
  CountSlotsKernel<<<1, 1024, args.slots * sizeof(int32_t), stream>>>(args);
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess || args.tokens == 0 || args.slots == 0) return error;
  PlacePairsKernel<<<args.slots, 32, 0, stream>>>(args);
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  GatherPairsKernel<<<args.tokens * args.top_k, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchCombine(const CombineArgs& args, cudaStream_t stream) {
  if (args.tokens == 0 || args.hidden == 0) return cudaSuccess;
  CombineKernel<<<args.tokens, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace sluice::cuda
