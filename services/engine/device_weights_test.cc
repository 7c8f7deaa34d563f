#include "services/engine/device_weights.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/float_convert.h"
#include "kernels/cpu/cpu_backend.h"
#include "services/engine/fake_backend.h"

namespace sluice::engine {
namespace {

float ElementOf(const WeightView& view, int64_t row, int64_t col) {
  const int64_t at = row * view.row_stride + col;
  switch (view.dtype) {
    case DType::kBF16:
      return Bf16ToF32(static_cast<const uint16_t*>(view.data)[at]);
    case DType::kF8E4M3:
      return F8E4M3ToF32(static_cast<const uint8_t*>(view.data)[at]) * view.ScaleAt(row, col);
    default:
      return static_cast<const float*>(view.data)[at];
  }
}

void ExpectSame(const WeightView& a, const WeightView& b, const char* name) {
  SCOPED_TRACE(name);
  ASSERT_EQ(a.present(), b.present());
  if (!a.present()) return;
  ASSERT_EQ(a.rows, b.rows);
  ASSERT_EQ(a.cols, b.cols);
  ASSERT_EQ(a.dtype, b.dtype);
  EXPECT_NE(a.data, b.data);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data) % 64, 0u);
  for (int64_t row = 0; row < a.rows; ++row) {
    for (int64_t col = 0; col < a.cols; ++col) {
      const float x = ElementOf(a, row, col), y = ElementOf(b, row, col);
      ASSERT_TRUE(x == y || (x != x && y != y)) << row << ", " << col;
    }
  }
}

void ExpectSame(const TensorView& a, const TensorView& b, const char* name) {
  SCOPED_TRACE(name);
  ASSERT_EQ(a.data == nullptr, b.data == nullptr);
  if (a.data == nullptr) return;
  ASSERT_EQ(a.rows(), b.rows());
  EXPECT_NE(a.data, b.data);
  for (int64_t i = 0; i < a.rows(); ++i) ASSERT_EQ(a.As<float>()[i], b.As<float>()[i]);
}

void ExpectSame(const model::MlpWeights& a, const model::MlpWeights& b, const char* name) {
  SCOPED_TRACE(name);
  ExpectSame(a.gate, b.gate, "gate");
  ExpectSame(a.up, b.up, "up");
  ExpectSame(a.down, b.down, "down");
}

void ExpectSame(const model::LayerWeights& a, const model::LayerWeights& b) {
  ExpectSame(a.input_norm, b.input_norm, "input_norm");
  ExpectSame(a.q_proj, b.q_proj, "q_proj");
  ExpectSame(a.q_a, b.q_a, "q_a");
  ExpectSame(a.q_a_norm, b.q_a_norm, "q_a_norm");
  ExpectSame(a.q_b, b.q_b, "q_b");
  ExpectSame(a.kv_a, b.kv_a, "kv_a");
  ExpectSame(a.kv_a_norm, b.kv_a_norm, "kv_a_norm");
  ExpectSame(a.kv_b, b.kv_b, "kv_b");
  ExpectSame(a.o, b.o, "o");
  ExpectSame(a.post_attention_norm, b.post_attention_norm, "post_attention_norm");
  ASSERT_EQ(a.dense.has_value(), b.dense.has_value());
  if (a.dense.has_value()) ExpectSame(*a.dense, *b.dense, "dense");
  ASSERT_EQ(a.moe.has_value(), b.moe.has_value());
  if (!a.moe.has_value()) return;
  ExpectSame(a.moe->gate, b.moe->gate, "router");
  ExpectSame(a.moe->bias, b.moe->bias, "bias");
  EXPECT_EQ(a.moe->slot_of_expert, b.moe->slot_of_expert);
  ASSERT_EQ(a.moe->experts.size(), b.moe->experts.size());
  for (size_t i = 0; i < a.moe->experts.size(); ++i) {
    ExpectSame(a.moe->experts[i], b.moe->experts[i], "expert");
  }
  ASSERT_EQ(a.moe->shared.has_value(), b.moe->shared.has_value());
  if (a.moe->shared.has_value()) ExpectSame(*a.moe->shared, *b.moe->shared, "shared");
}

// Whatever is computed on, the copy holds what the CPU would compute from: `for_device`, matrices
// are read or made only by the copy.
void ExpectCopied(const std::string& dir, bool for_device, model::LoadOptions options) {
  SCOPED_TRACE(dir);
  const auto config = model::LoadModelConfig(dir);
  ASSERT_TRUE(config.ok()) << config.status();
  auto weights = model::LoadWeights(dir, *config, options);
  ASSERT_TRUE(weights.ok()) << weights.status();
  options.for_device = for_device;
  auto source = model::LoadWeights(dir, *config, options);
  ASSERT_TRUE(source.ok()) << source.status();
  const auto backend = MakeCpuBackend({.threads = 2});
  ASSERT_TRUE(backend.ok());
  const auto copy = CopyWeightsToDevice(*source, backend->get(), 3);
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_TRUE((*copy)->on_device);
  ExpectSame(weights->embed, (*copy)->embed, "embed");
  ExpectSame(weights->head, (*copy)->head, "head");
  ExpectSame(weights->final_norm, (*copy)->final_norm, "final_norm");
  ASSERT_EQ(weights->layers.size(), (*copy)->layers.size());
  for (size_t i = 0; i < weights->layers.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "layer " << i);
    ExpectSame(weights->layers[i], (*copy)->layers[i]);
  }
  ASSERT_EQ(weights->mtp.has_value(), (*copy)->mtp.has_value());
  if (weights->mtp.has_value()) {
    ExpectSame(weights->mtp->eh_proj, (*copy)->mtp->eh_proj, "eh_proj");
    ExpectSame(weights->mtp->enorm, (*copy)->mtp->enorm, "enorm");
    ExpectSame(weights->mtp->layer, (*copy)->mtp->layer);
    // The module shares the main model's embedding, in the copy too.
    EXPECT_EQ(weights->mtp->embed.data == weights->embed.data,
              (*copy)->mtp->embed.data == (*copy)->embed.data);
  }
}

TEST(DeviceWeightsTest, EveryElementIsCopied) {
  for (const bool for_device : {false, true}) {
    ExpectCopied("deploy/models/sluice-tiny", for_device, {});
    ExpectCopied("deploy/models/sluice-tiny-fp8", for_device, {});
  }
}

TEST(DeviceWeightsTest, SlicesKeepTheirPlaceInTheScaleBlocks) {
  const model::RankSlice slice = {.tp_rank = 1, .tp_size = 2, .experts = {3, 0, 31}};
  for (const bool for_device : {false, true}) {
    ExpectCopied("deploy/models/sluice-tiny-fp8", for_device, {.slice = slice});
    ExpectCopied("deploy/models/sluice-tiny-fp8", for_device,
                 {.format = model::LoadFormat::kDummy, .slice = slice, .dummy_seed = 5});
  }
}

TEST(DeviceWeightsTest, RandomOnesAreMadeOnTheDevice) {
  for (const char* dir : {"deploy/models/sluice-tiny", "deploy/models/sluice-tiny-fp8"}) {
    ExpectCopied(dir, true, {.format = model::LoadFormat::kDummy, .dummy_seed = 5});
  }
}

TEST(DeviceWeightsTest, SaysWhenThereIsNoRoom) {
  const auto config = model::LoadModelConfig("deploy/models/sluice-tiny");
  auto weights = model::LoadWeights("deploy/models/sluice-tiny", *config, {});
  ASSERT_TRUE(weights.ok());
  FakeBackend backend;
  backend.FailAllocation("weights");
  const absl::Status status = CopyWeightsToDevice(*weights, &backend).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("take a device with more memory"));
}

}  // namespace
}  // namespace sluice::engine
