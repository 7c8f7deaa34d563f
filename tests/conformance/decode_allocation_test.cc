// A decode step allocates nothing: not the caller's Submit and Wait, not the step's thread, not the
// ops' working memory (AlignedBuffer, which maps pages, counts itself). Planning is the scheduler's
// business and not part of it.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/base/aligned_buffer.h"
#include "kernels/cpu/cpu_backend.h"
#include "services/engine/engine.h"
#include "services/model/model_config.h"
#include "services/model/weights.h"

namespace {

std::atomic<int64_t> allocations{0};

void* Allocate(size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(size_t bytes) { return Allocate(bytes); }
void* operator new[](size_t bytes) { return Allocate(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

namespace sluice::engine {
namespace {

constexpr int64_t kBatch = 4;

void RunDecode(Numerics numerics) {
  const std::string dir = "tests/golden/configs/v3_grouped";
  auto config = model::LoadModelConfig(dir);
  ASSERT_TRUE(config.ok()) << config.status();
  auto weights = model::LoadWeights(dir, *config, {.format = model::LoadFormat::kDummy});
  ASSERT_TRUE(weights.ok()) << weights.status();
  auto backend = MakeCpuBackend({.threads = 2, .numerics = numerics});
  ASSERT_TRUE(backend.ok()) << backend.status();
  auto engine = Engine::Create(
      *config, std::make_shared<const model::ModelWeights>(*std::move(weights)), backend->get(),
      {.slots_max = kBatch,
       .step_tokens_max = 64,
       .positions_max = 256,
       .kv_pages = kBatch * 4,
       .kv_dtype = numerics == Numerics::kFast ? DType::kBF16 : DType::kF32});
  ASSERT_TRUE(engine.ok()) << engine.status();

  const std::vector<int32_t> token = {7};
  std::vector<std::vector<int32_t>> pages;
  for (int32_t i = 0; i < kBatch; ++i) pages.push_back({4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3});
  // Greedy, sampled with every filter, with penalties, with logprobs.
  std::vector<SamplingParams> sampling(kBatch, SamplingParams{.max_tokens = 1000});
  sampling[0].temperature = 0;
  sampling[1].top_p = 0.9f;
  sampling[1].top_k = 20;
  sampling[1].min_p = 0.01f;
  sampling[2].frequency_penalty = 0.5f;
  sampling[2].logit_bias = {{3, 1.0f}};
  sampling[3].num_logprobs = 5;

  StepResult result;
  std::vector<StepChunk> chunks(kBatch);
  constexpr int64_t kWarmUp = 80;  // past a page boundary, so that all working memory has grown
  constexpr int64_t kSteps = 160;
  int64_t made = 0;
  for (int64_t position = 0; position < kWarmUp + kSteps; ++position) {
    for (int32_t i = 0; i < kBatch; ++i) {
      chunks[i] = {.slot = i,
                   .first_position = position,
                   .tokens = token,
                   .pages = pages[i],
                   .sampling = &sampling[i],
                   .output_position = position};
    }
    const int64_t before = allocations.load() + AlignedBuffer::num_created();
    auto handle =
        (*engine)->Submit({.number = static_cast<uint64_t>(position + 1), .chunks = chunks});
    ASSERT_TRUE(handle.ok()) << handle.status();
    ASSERT_TRUE((*engine)->Wait(*handle, absl::Minutes(1), &result).ok());
    if (position >= kWarmUp) made += allocations.load() + AlignedBuffer::num_created() - before;
  }
  // On a busy machine a thread of the pool may meet an op for the first time now, and then its
  // working memory grows once. A step that allocates would do so kSteps times.
  EXPECT_LT(made, kSteps / 4);
}

TEST(DecodeAllocationTest, ExactStepsAllocateNothing) { RunDecode(Numerics::kExact); }
TEST(DecodeAllocationTest, FastStepsAllocateNothing) { RunDecode(Numerics::kFast); }

}  // namespace
}  // namespace sluice::engine
