#include "kernels/cuda/tile_linear.cuh"

namespace sluice::cuda {
namespace {

constexpr int Key(const TilePlan& plan) {
  return (plan.tokens * 1000 + plan.outputs) * 4 + static_cast<int>(plan.sharing);
}

template <bool kGated>
cudaError_t Launch(const TileLinearArgs& args, cudaStream_t stream) {
  switch (Key(args.plan)) {
    case Key(TilePlan{64, 64, Sharing::kNone}):
      return LaunchTileShape<Fp8Operands, 64, 64, kGated, Sharing::kNone>(args, stream);
    case Key(TilePlan{64, 128, Sharing::kNone}):
      return LaunchTileShape<Fp8Operands, 64, 128, kGated, Sharing::kNone>(args, stream);
    case Key(TilePlan{64, 64, Sharing::kColumns}):
      return LaunchTileShape<Fp8Operands, 64, 64, kGated, Sharing::kColumns>(args, stream);
    case Key(TilePlan{64, 128, Sharing::kColumns}):
      return LaunchTileShape<Fp8Operands, 64, 128, kGated, Sharing::kColumns>(args, stream);
    case Key(TilePlan{128, 64, Sharing::kNone}):
      return LaunchTileShape<Fp8Operands, 128, 64, kGated, Sharing::kNone>(args, stream);
    case Key(TilePlan{128, 64, Sharing::kColumns}):
      return LaunchTileShape<Fp8Operands, 128, 64, kGated, Sharing::kColumns>(args, stream);
    case Key(TilePlan{128, 128, Sharing::kTokens}):
      return LaunchTileShape<Fp8Operands, 128, 128, kGated, Sharing::kTokens>(args, stream);
    case Key(TilePlan{256, 128, Sharing::kTokens}):
      return LaunchTileShape<Fp8Operands, 256, 128, kGated, Sharing::kTokens>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t LaunchFp8Tiles(const TileLinearArgs& args, cudaStream_t stream) {
  if (args.m == 0 || args.steps == 0 || args.groups == 0) return cudaSuccess;
  return args.gated ? Launch<true>(args, stream) : Launch<false>(args, stream);
}

}  // namespace sluice::cuda
