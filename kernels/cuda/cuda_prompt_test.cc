// Attention of prompts with DeepSeek-V3's dimensions on the tensor cores, against the CPU in f32.
#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/cuda_test_util.h"

namespace sluice {
namespace {

constexpr float kScale = 0.135f;
constexpr int64_t kPoisonTokens = 130, kPoisonPositions = 8192;  // a whole pass

struct Lengths {
  int64_t tokens, first_position;
};

// Sequences in shuffled pages. Whatever is no position of a sequence is NaN, and so is everything
// of the sequence after the last, kPoisonPositions long.
struct Scene {
  OwnedTensor cache, page_table, q;
  std::vector<PromptChunk> chunks;
  PromptChunk poison;
  int64_t rows = 0;
};

class CudaPromptTest : public CudaOpsTest {
 protected:
  CudaPromptTest() : fast_(Numerics::kFast) {}

  Scene MakeScene(int heads, const std::vector<Lengths>& sequences) {
    Scene scene;
    const int64_t count = static_cast<int64_t>(sequences.size());
    int64_t pages_max = PagesFor(kPoisonPositions), num_pages = pages_max;
    scene.rows = kPoisonTokens;
    for (const Lengths& s : sequences) {
      const int64_t pages = PagesFor(s.first_position + s.tokens);
      pages_max = std::max(pages_max, pages + 1);
      num_pages += pages;
      scene.rows += s.tokens + 1;  // between chunks lies a row that is no chunk's
    }
    std::mt19937 random(Seed());
    std::vector<int32_t> order(static_cast<size_t>(num_pages));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    scene.page_table = OwnedTensor(DType::kI32, {count + 1, pages_max});  // all -1
    scene.cache = OwnedTensor(DType::kBF16, {num_pages, kPageTokens, kWidth});
    const OwnedTensor latents = Random({64, kWidth});
    auto page = order.begin();
    int64_t row = kPoisonTokens;
    for (int64_t seq = 0; seq < count; ++seq) {
      const Lengths& s = sequences[static_cast<size_t>(seq)];
      scene.chunks.push_back({.token_begin = row + 1,
                              .num_tokens = s.tokens,
                              .seq = seq,
                              .first_position = s.first_position});
      row += s.tokens + 1;
      const int64_t positions = s.first_position + s.tokens;
      for (int64_t p = 0; p < positions; ++p) {
        int32_t& at = scene.page_table.view().Row<int32_t>(seq)[p / kPageTokens];
        if (p % kPageTokens == 0) at = *page++;
        uint16_t* to = scene.cache.data<uint16_t>() + (at * kPageTokens + p % kPageTokens) * kWidth;
        // Rows of few random numbers, each in a place of its own: fast to make.
        const float* from = latents.view().Row<float>(static_cast<int64_t>(random() % 64));
        const int64_t turn = static_cast<int64_t>(random() % kWidth);
        for (int64_t i = 0; i < kWidth; ++i) to[i] = F32ToBf16(from[(i + turn) % kWidth]);
      }
    }
    for (int64_t p = 0; p < PagesFor(kPoisonPositions); ++p) {
      scene.page_table.view().Row<int32_t>(count)[p] = *page++;
    }
    scene.poison = {.num_tokens = kPoisonTokens,
                    .seq = count,
                    .first_position = kPoisonPositions - kPoisonTokens};
    scene.q = Random({scene.rows, heads * kQuery}, 0.5f);
    return scene;
  }

  void ExpectRight(int heads, DType weights, const std::vector<Lengths>& sequences) {
    testing::Message what;
    what << heads << " heads, weights " << DTypeName(weights);
    for (size_t i = 0; i < std::min<size_t>(sequences.size(), 4); ++i) {
      what << ", " << sequences[i].tokens << " after " << sequences[i].first_position;
    }
    SCOPED_TRACE(what);
    const MlaDims dims = {heads, 128, 64, 128, 512};
    const Scene scene = MakeScene(heads, sequences);
    const OwnedWeight kv_b = RandomWeight(weights, heads * 256, 512, Seed(), 0.04f);
    const OwnedTensor wanted(DType::kF32, {scene.rows, heads * kValue});
    MlaPromptParams params = {.dims = dims,
                              .q = scene.q.view(),
                              .kv_b = kv_b.view,
                              .cache = scene.cache.view(),
                              .page_table = scene.page_table.view(),
                              .chunks = scene.chunks,
                              .scale = kScale,
                              .out = wanted.view()};
    ASSERT_TRUE(cpu_->attention().MlaPrompt(params, {}).ok());

    params.q = fast_.Up(scene.q);
    params.kv_b = fast_.Up(kv_b);
    params.cache = fast_.Up(scene.cache);
    params.page_table = fast_.Up(scene.page_table);
    const TensorView out = params.out =
        fast_.Up(OwnedTensor(DType::kF32, {scene.rows, heads * kValue}));
    // First what leaves NaN wherever the kernels keep anything between calls.
    params.chunks = {&scene.poison, 1};
    ASSERT_TRUE(fast_.backend().attention().MlaPrompt(params, {}).ok());
    params.chunks = scene.chunks;
    ASSERT_TRUE(fast_.backend().attention().MlaPrompt(params, {}).ok());
    Compare(scene, heads, wanted, fast_.Down(out));
  }

  void Compare(const Scene& scene, int heads, const OwnedTensor& wanted, const OwnedTensor& got) {
    double products = 0, squares = 0;
    std::vector<bool> covered(static_cast<size_t>(scene.rows));
    for (const PromptChunk& chunk : scene.chunks) {
      for (int64_t t = chunk.token_begin; t < chunk.token_begin + chunk.num_tokens; ++t) {
        covered[static_cast<size_t>(t)] = true;
        for (int head = 0; head < heads; ++head) {
          const float* a = wanted.view().Row<float>(t) + head * kValue;
          const float* b = got.view().Row<float>(t) + head * kValue;
          double norm = 0, error = 0;
          for (int i = 0; i < kValue; ++i) {
            norm += double{a[i]} * a[i];
            error += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
            products += double{a[i]} * b[i];
            squares += double{a[i]} * a[i] + double{b[i]} * b[i];
          }
          const double relative = std::sqrt(error / norm);
          ASSERT_LT(relative, 2e-2) << "row " << t << ", head " << head;
        }
      }
    }
    EXPECT_LE(squares - 2 * products, 1e-5 * squares);
    for (int64_t t = kPoisonTokens; t < scene.rows; ++t) {
      if (covered[static_cast<size_t>(t)]) continue;
      for (int64_t i = 0; i < heads * kValue; ++i) {
        ASSERT_TRUE(std::isnan(got.view().Row<float>(t)[i])) << "row " << t << " is no chunk's";
      }
    }
  }

  static constexpr int64_t kWidth = 576, kQuery = 192, kValue = 128;
  Device fast_;
};

TEST_F(CudaPromptTest, NoTokens) {
  ExpectRight(3, DType::kBF16, {});
  ExpectRight(3, DType::kBF16, {{0, 0}, {0, 100}});
  ExpectRight(3, DType::kBF16, {{0, 100}, {70, 3}, {0, 0}, {1, 64}});
}

TEST_F(CudaPromptTest, OneSequence) {
  for (const int64_t first : {0, 1, 64, 100, 5000}) {
    for (const int64_t tokens : {1, 63, 64, 65, 127, 128, 129, 1000}) {
      ExpectRight(3, tokens % 2 == 0 ? DType::kBF16 : DType::kF8E4M3, {{tokens, first}});
    }
  }
}

TEST_F(CudaPromptTest, AnyNumberOfHeads) {
  for (const int heads : {1, 16, 32, 64, 128}) {
    ExpectRight(heads, DType::kF8E4M3, {{130, 40}});
  }
}

// More than a pass has room for, in pieces as in rows.
TEST_F(CudaPromptTest, ManySequences) {
  std::vector<Lengths> sequences;
  std::mt19937 random(Seed());
  for (int i = 0; i < 100; ++i) {
    const int64_t tokens = 1 + random() % 200, before = random() % 300;
    sequences.push_back({tokens, i % 3 == 0 ? before : 0});
  }
  ExpectRight(2, DType::kBF16, sequences);
}

// Longer than a pass: put together from pieces, next to others that are not.
TEST_F(CudaPromptTest, LongSequences) {
  ExpectRight(1, DType::kBF16, {{300, 0}, {200, 17000}, {1, 8192}, {70, 30}});
  ExpectRight(2, DType::kBF16, {{300, 8000}, {8300, 0}});
}

}  // namespace
}  // namespace sluice
