#include "services/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace sluice::model {
namespace {

// The dimension whose wave turns `rotations` times over the original context.
double CorrectionDim(double rotations, double dims, double theta, double context) {
  return dims * std::log(context / (rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
}

double Mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1;
}

// Radians per position, for each of the qk_rope_head_dim / 2 pairs.
std::vector<double> Frequencies(const ModelConfig& config) {
  const int64_t dims = config.qk_rope_head_dim;
  std::vector<double> frequencies(dims / 2);
  for (int64_t i = 0; i < dims / 2; ++i) {
    frequencies[i] = std::pow(config.rope_theta, -2.0 * i / dims);
  }
  if (!config.yarn) return frequencies;
  // Fast dimensions keep their frequency, slow ones are stretched by the factor, those between
  // are blended.
  const YarnScaling& yarn = *config.yarn;
  const double context = static_cast<double>(yarn.original_max_position_embeddings);
  const double first = std::floor(CorrectionDim(yarn.beta_fast, dims, config.rope_theta, context));
  const double last = std::ceil(CorrectionDim(yarn.beta_slow, dims, config.rope_theta, context));
  const double low = std::max(first, 0.0);
  double high = std::min(last, static_cast<double>(dims - 1));
  if (low == high) high += 0.001;
  for (int64_t i = 0; i < dims / 2; ++i) {
    const double stretched = std::clamp((i - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / yarn.factor * stretched + frequencies[i] * (1 - stretched);
  }
  return frequencies;
}

}  // namespace

std::vector<float> MakeCosSinTable(const ModelConfig& config, int64_t positions) {
  const std::vector<double> frequencies = Frequencies(config);
  const size_t half = frequencies.size();
  const double scale = config.yarn ? Mscale(config.yarn->factor, config.yarn->mscale) /
                                         Mscale(config.yarn->factor, config.yarn->mscale_all_dim)
                                   : 1.0;
  std::vector<float> table(static_cast<size_t>(positions) * 2 * half);
  float* row = table.data();
  for (int64_t position = 0; position < positions; ++position, row += 2 * half) {
    for (size_t i = 0; i < half; ++i) {
      const double angle = position * frequencies[i];
      row[i] = static_cast<float>(std::cos(angle) * scale);
      row[half + i] = static_cast<float>(std::sin(angle) * scale);
    }
  }
  return table;
}

}  // namespace sluice::model
