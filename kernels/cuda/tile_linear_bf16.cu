#include "kernels/cuda/tile_linear.cuh"

namespace sluice::cuda {
namespace {

template <bool kGated>
cudaError_t Launch(const TileLinearArgs& args, cudaStream_t stream) {
  const TilePlan& plan = args.plan;
  if (plan.outputs != 128) return cudaErrorInvalidValue;
  if (plan.tokens == 64 && plan.sharing == Sharing::kNone) {
    return LaunchTileShape<Bf16Operands, 64, 128, kGated, Sharing::kNone>(args, stream);
  }
  if (plan.tokens == 128 && plan.sharing == Sharing::kTokens) {
    return LaunchTileShape<Bf16Operands, 128, 128, kGated, Sharing::kTokens>(args, stream);
  }
  if (plan.tokens == 256 && plan.sharing == Sharing::kTokens) {
    return LaunchTileShape<Bf16Operands, 256, 128, kGated, Sharing::kTokens>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t LaunchBf16Tiles(const TileLinearArgs& args, cudaStream_t stream) {
  if (args.m == 0 || args.steps == 0 || args.groups == 0) return cudaSuccess;
  return args.gated ? Launch<true>(args, stream) : Launch<false>(args, stream);
}

}  // namespace sluice::cuda
