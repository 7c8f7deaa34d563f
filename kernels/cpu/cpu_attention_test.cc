#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/ops_test_util.h"

namespace sluice {
namespace {

const CpuSetting kDefault = {DetectCpuIsa(), 1, Numerics::kExact};

const MlaDims kTiny = {
    .num_heads = 8, .nope_dim = 32, .rope_dim = 32, .v_dim = 32, .kv_lora_rank = 128};
const MlaDims kV3Head = {
    .num_heads = 2, .nope_dim = 128, .rope_dim = 64, .v_dim = 128, .kv_lora_rank = 512};
const MlaDims kOdd = {
    .num_heads = 3, .nope_dim = 19, .rope_dim = 6, .v_dim = 21, .kv_lora_rank = 37};

// Sequences in a paged cache. Pages are dealt out at random; rows that hold no position are NaN.
struct Scene {
  MlaDims dims;
  OwnedTensor cache;
  OwnedTensor page_table;
  std::vector<int64_t> lengths;

  std::vector<double> Row(int64_t seq, int64_t position) const {
    const int64_t page =
        page_table.data<int32_t>()[seq * page_table.view().dims[1] + position / kPageTokens];
    const int64_t begin = (page * kPageTokens + position % kPageTokens) * dims.kv_dim();
    std::vector<double> row(dims.kv_dim());
    for (int64_t c = 0; c < dims.kv_dim(); ++c) {
      row[c] = cache.view().dtype == DType::kF32 ? cache.data<float>()[begin + c]
                                                 : Bf16ToF32(cache.data<uint16_t>()[begin + c]);
    }
    return row;
  }
};

Scene MakeScene(const MlaDims& dims, DType cache_dtype, const std::vector<int64_t>& lengths,
                uint32_t value_seed, uint32_t page_seed) {
  Scene scene;
  scene.dims = dims;
  scene.lengths = lengths;
  int64_t pages_max = 1, num_pages = 1;
  for (const int64_t length : lengths) {
    const int64_t pages = (length + kPageTokens - 1) / kPageTokens;
    pages_max = std::max(pages_max, pages);
    num_pages += pages;
  }
  const int64_t seqs = static_cast<int64_t>(lengths.size());
  scene.cache = OwnedTensor(cache_dtype, {num_pages, kPageTokens, dims.kv_dim()});
  scene.page_table = OwnedTensor(DType::kI32, {seqs, pages_max});
  std::vector<int32_t> free_pages(num_pages);
  std::iota(free_pages.begin(), free_pages.end(), 0);
  std::mt19937 page_random(page_seed);
  std::shuffle(free_pages.begin(), free_pages.end(), page_random);
  std::normal_distribution<float> normal;
  for (int64_t seq = 0; seq < seqs; ++seq) {
    std::mt19937 random(value_seed + static_cast<uint32_t>(seq));
    for (int64_t position = 0; position < lengths[seq]; ++position) {
      int32_t& page = scene.page_table.data<int32_t>()[seq * pages_max + position / kPageTokens];
      if (position % kPageTokens == 0) {
        page = free_pages.back();
        free_pages.pop_back();
      }
      const int64_t row = (page * kPageTokens + position % kPageTokens) * dims.kv_dim();
      for (int64_t c = 0; c < dims.kv_dim(); ++c) {
        const float value = normal(random);
        if (cache_dtype == DType::kF32) {
          scene.cache.data<float>()[row + c] = value;
        } else {
          scene.cache.data<uint16_t>()[row + c] = F32ToBf16(value);
        }
      }
    }
  }
  return scene;
}

double Dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Unabsorbed attention in double: keys and values of the head are made from the latents.
std::vector<double> Reference(const Scene& scene, const OwnedWeight& kv_b, const float* q,
                              int64_t seq, int64_t position, float scale) {
  const MlaDims& d = scene.dims;
  const int64_t rank = d.kv_lora_rank;
  std::vector<double> out;
  for (int64_t head = 0; head < d.num_heads; ++head) {
    const double* w = kv_b.values.data() + head * (d.nope_dim + d.v_dim) * rank;
    const std::vector<double> query(q + head * d.q_dim(), q + (head + 1) * d.q_dim());
    std::vector<double> scores;
    for (int64_t p = 0; p <= position; ++p) {
      const std::vector<double> row = scene.Row(seq, p);
      double score = Dot(query.data() + d.nope_dim, row.data() + rank, d.rope_dim);
      for (int64_t r = 0; r < d.nope_dim; ++r) {
        score += Dot(w + r * rank, row.data(), rank) * query[r];
      }
      scores.push_back(score * scale);
    }
    const double max = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - max);
    std::vector<double> sums(d.v_dim, 0.0);
    for (int64_t p = 0; p <= position; ++p) {
      const std::vector<double> row = scene.Row(seq, p);
      for (int64_t r = 0; r < d.v_dim; ++r) {
        sums[r] += scores[p] / total * Dot(w + (d.nope_dim + r) * rank, row.data(), rank);
      }
    }
    out.insert(out.end(), sums.begin(), sums.end());
  }
  return out;
}

struct Token {
  int32_t seq;
  int32_t position;
};

OwnedWeight MakeKvB(const MlaDims& dims, DType dtype, int64_t offset = 0) {
  return RandomWeight(dtype, dims.num_heads * (dims.nope_dim + dims.v_dim), dims.kv_lora_rank, 77,
                      0.3f / std::sqrt(static_cast<float>(dims.kv_lora_rank)) * 3, offset);
}

float ScaleOf(const MlaDims& dims) { return 1.0f / std::sqrt(static_cast<float>(dims.q_dim())); }

OwnedTensor Absorbed(const Scene& scene, const OwnedWeight& kv_b, const OwnedTensor& q,
                     const std::vector<Token>& tokens, const CpuSetting& setting = kDefault) {
  const int64_t count = static_cast<int64_t>(tokens.size());
  std::vector<int32_t> seqs, positions;
  for (const Token& token : tokens) {
    seqs.push_back(token.seq);
    positions.push_back(token.position);
  }
  const OwnedTensor seq_of_token = MakeI32({count}, seqs);
  const OwnedTensor position = MakeI32({count}, positions);
  OwnedTensor out(DType::kF32, {count, scene.dims.num_heads * scene.dims.v_dim});
  OpsUnderTest ops(setting);
  const absl::Status status =
      MakeCpuAttentionOps(ops.context())
          ->MlaAbsorbed(
              {scene.dims, q.view(), kv_b.view, scene.cache.view(), scene.page_table.view(),
               seq_of_token.view(), position.view(), ScaleOf(scene.dims), out.view()},
              StreamId{});
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(out.GuardsIntact());
  return out;
}

OwnedTensor Prompt(const Scene& scene, const OwnedWeight& kv_b, const OwnedTensor& q,
                   int64_t first_position, const CpuSetting& setting = kDefault) {
  OwnedTensor out(DType::kF32, {q.view().rows(), scene.dims.num_heads * scene.dims.v_dim});
  const PromptChunk chunk = {.num_tokens = q.view().rows(), .first_position = first_position};
  OpsUnderTest ops(setting);
  const absl::Status status = MakeCpuAttentionOps(ops.context())
                                  ->MlaPrompt({scene.dims,
                                               q.view(),
                                               kv_b.view,
                                               scene.cache.view(),
                                               scene.page_table.view(),
                                               {&chunk, 1},
                                               ScaleOf(scene.dims),
                                               out.view()},
                                              StreamId{});
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(out.GuardsIntact());
  return out;
}

// The largest error relative to the largest reference value of the row.
double RelativeError(const float* got, const std::vector<double>& want) {
  double largest = 0, error = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::max(largest, std::fabs(want[i]));
    if (!(std::fabs(got[i] - want[i]) <= error)) error = std::fabs(got[i] - want[i]);
  }
  return error / largest;
}

TEST(MlaAbsorbed, MatchesUnabsorbedDoubleAtEveryLength) {
  struct Case {
    MlaDims dims;
    DType weights;
    DType cache;
  };
  const Case cases[] = {
      {kTiny, DType::kBF16, DType::kF32},   {kTiny, DType::kF8E4M3, DType::kBF16},
      {kOdd, DType::kF32, DType::kF32},     {kOdd, DType::kF16, DType::kBF16},
      {kOdd, DType::kF8E4M3, DType::kF32},  {kV3Head, DType::kF8E4M3, DType::kF32},
      {kV3Head, DType::kBF16, DType::kBF16}};
  for (const Case& c : cases) {
    std::vector<int64_t> lengths = {1, 2, 63, 64, 65, 130, 193, 257};
    if (c.dims.kv_lora_rank == 512) lengths = {1, 65, 130};
    const Scene scene = MakeScene(c.dims, c.cache, lengths, 5, 6);
    const OwnedWeight kv_b = MakeKvB(c.dims, c.weights, c.dims.kv_lora_rank == 37 ? 3 : 0);
    std::vector<Token> tokens;
    for (size_t seq = 0; seq < lengths.size(); ++seq) {
      tokens.push_back({static_cast<int32_t>(seq), static_cast<int32_t>(lengths[seq] - 1)});
    }
    const int64_t count = static_cast<int64_t>(tokens.size());
    const OwnedTensor q = RandomF32({count, c.dims.num_heads * c.dims.q_dim()}, 8, 1.0f);
    const OwnedTensor exact = Absorbed(scene, kv_b, q, tokens);
    const OwnedTensor fast = Absorbed(scene, kv_b, q, tokens, {DetectCpuIsa(), 2, Numerics::kFast});
    for (int64_t t = 0; t < count; ++t) {
      const std::vector<double> want =
          Reference(scene, kv_b, q.data<float>() + t * c.dims.num_heads * c.dims.q_dim(),
                    tokens[t].seq, tokens[t].position, ScaleOf(c.dims));
      const int64_t begin = t * static_cast<int64_t>(want.size());
      EXPECT_LT(RelativeError(exact.data<float>() + begin, want), 2e-6)
          << DTypeName(c.weights) << " weights, length " << lengths[t];
      EXPECT_LT(RelativeError(fast.data<float>() + begin, want), 1.2e-2)
          << DTypeName(c.weights) << " weights, length " << lengths[t];
    }
  }
}

// More heads than a block of them, more tokens than a group, contexts of several blocks.
TEST(MlaAbsorbed, FastAgreesWithExactOverManyBlocks) {
  const MlaDims dims = {
      .num_heads = 21, .nope_dim = 32, .rope_dim = 32, .v_dim = 16, .kv_lora_rank = 64};
  const std::vector<int64_t> lengths = {600, 256, 31, 513};
  const OwnedWeight kv_b = MakeKvB(dims, DType::kF8E4M3);
  const Scene scene = MakeScene(dims, DType::kBF16, lengths, 5, 6);
  std::vector<Token> tokens;
  for (int32_t i = 0; i < 37; ++i) {
    const int32_t seq = i % 4;
    tokens.push_back({seq, static_cast<int32_t>((lengths[seq] - 1) * (i / 4) / 9)});
  }
  const OwnedTensor q = RandomF32({37, dims.num_heads * dims.q_dim()}, 9);
  const OwnedTensor want = Absorbed(scene, kv_b, q, tokens);
  for (const int threads : {1, 2, 5}) {
    const CpuSetting setting = {DetectCpuIsa(), threads, Numerics::kFast};
    const OwnedTensor got = Absorbed(scene, kv_b, q, tokens, setting);
    ASSERT_LT(
        RelativeError(got.data<float>(),
                      std::vector<double>(want.data<float>(), want.data<float>() + want.size())),
        1.2e-2)
        << Name(setting);
  }
  const int64_t q_width = dims.num_heads * dims.q_dim(), out_width = dims.num_heads * dims.v_dim;
  for (const size_t t : {size_t{0}, size_t{35}, size_t{36}}) {  // one token has kernels of its own
    const OwnedTensor one = MakeF32(
        {1, q_width},
        std::vector<float>(q.data<float>() + t * q_width, q.data<float>() + (t + 1) * q_width));
    const OwnedTensor got =
        Absorbed(scene, kv_b, one, {tokens[t]}, {DetectCpuIsa(), 2, Numerics::kFast});
    ASSERT_LT(RelativeError(got.data<float>(),
                            std::vector<double>(want.data<float>() + t * out_width,
                                                want.data<float>() + (t + 1) * out_width)),
              1.2e-2)
        << "token " << t << " alone";
  }
}

TEST(MlaAbsorbed, NoTokensIsFine) {
  const Scene scene = MakeScene(kTiny, DType::kF32, {1}, 5, 6);
  Absorbed(scene, MakeKvB(kTiny, DType::kF32), OwnedTensor(DType::kF32, {0, 8 * 64}), {});
}

// numerics: exact. A token's bits are the same alone and in any company, whichever pages hold its
// rows, on every instruction set and thread count.
TEST(MlaAbsorbed, ExactBitsDependOnTheTokensRowsAlone) {
  for (const MlaDims& dims : {kTiny, kOdd}) {
    const std::vector<int64_t> lengths = {70, 1, 129, 64, 200};
    const OwnedWeight kv_b = MakeKvB(dims, DType::kBF16);
    std::vector<Token> tokens;
    for (int32_t i = 0; i < 21; ++i) {
      const int32_t seq = i % 5;
      tokens.push_back({seq, static_cast<int32_t>((lengths[seq] - 1) * (i / 5) / 4)});
    }
    const int64_t width = dims.num_heads * dims.q_dim();
    const OwnedTensor q = RandomF32({21, width}, 9);
    const Scene scene = MakeScene(dims, DType::kF32, lengths, 5, 6);
    const OwnedTensor want =
        Absorbed(scene, kv_b, q, tokens, {CpuIsa::kGeneric, 1, Numerics::kExact});
    for (const CpuSetting& setting : AllSettings(Numerics::kExact)) {
      const Scene shuffled =
          MakeScene(dims, DType::kF32, lengths, 5, 100 + static_cast<uint32_t>(setting.threads));
      EXPECT_TRUE(Absorbed(shuffled, kv_b, q, tokens, setting).SameBytes(want)) << Name(setting);
      for (size_t t = 0; t < tokens.size(); t += 4) {
        const OwnedTensor one = MakeF32(
            {1, width},
            std::vector<float>(q.data<float>() + t * width, q.data<float>() + (t + 1) * width));
        const OwnedTensor alone = Absorbed(scene, kv_b, one, {tokens[t]}, setting);
        const int64_t out_width = dims.num_heads * dims.v_dim;
        EXPECT_TRUE(std::equal(alone.data<float>(), alone.data<float>() + out_width,
                               want.data<float>() + t * out_width))
            << Name(setting) << " token " << t;
      }
    }
  }
}

// Scores far apart, and the largest in every place of a page.
TEST(MlaAbsorbed, SoftmaxFollowsARisingMaximum) {
  const MlaDims dims = kOdd;
  Scene scene = MakeScene(dims, DType::kF32, {150}, 5, 6);
  for (int64_t p = 0; p < 150; ++p) {
    const int64_t page = scene.page_table.data<int32_t>()[p / kPageTokens];
    float* row = scene.cache.data<float>() + (page * kPageTokens + p % kPageTokens) * dims.kv_dim();
    for (int c = 0; c < dims.rope_dim; ++c) {
      row[dims.kv_lora_rank + c] = static_cast<float>(p % 37) * 3;
    }
  }
  const OwnedWeight kv_b = MakeKvB(dims, DType::kF32);
  const OwnedTensor q = RandomF32({1, dims.num_heads * dims.q_dim()}, 4, 2.0f);
  const OwnedTensor out = Absorbed(scene, kv_b, q, {{0, 149}});
  const std::vector<double> want = Reference(scene, kv_b, q.data<float>(), 0, 149, ScaleOf(dims));
  EXPECT_LT(RelativeError(out.data<float>(), want), 2e-5);
}

TEST(MlaPrompt, MatchesUnabsorbedDouble) {
  struct Case {
    MlaDims dims;
    DType weights;
    DType cache;
    int64_t first;
    int64_t queries;
  };
  const Case cases[] = {
      {kTiny, DType::kBF16, DType::kF32, 0, 1},     {kTiny, DType::kBF16, DType::kF32, 0, 64},
      {kTiny, DType::kF8E4M3, DType::kBF16, 0, 65}, {kTiny, DType::kBF16, DType::kBF16, 63, 2},
      {kTiny, DType::kF32, DType::kBF16, 70, 63},   {kOdd, DType::kF16, DType::kF32, 5, 130},
      {kOdd, DType::kF8E4M3, DType::kF32, 64, 1},   {kV3Head, DType::kBF16, DType::kBF16, 10, 75}};
  for (const Case& c : cases) {
    const Scene scene = MakeScene(c.dims, c.cache, {c.first + c.queries}, 5, 6);
    const OwnedWeight kv_b = MakeKvB(c.dims, c.weights);
    const int64_t width = c.dims.num_heads * c.dims.q_dim();
    const OwnedTensor q = RandomF32({c.queries, width}, 8);
    const OwnedTensor exact =
        Prompt(scene, kv_b, q, c.first, {DetectCpuIsa(), 2, Numerics::kExact});
    const OwnedTensor fast = Prompt(scene, kv_b, q, c.first, {DetectCpuIsa(), 2, Numerics::kFast});
    for (int64_t t = 0; t<c.queries; t += c.queries> 20 ? 13 : 1) {
      const std::vector<double> want =
          Reference(scene, kv_b, q.data<float>() + t * width, 0, c.first + t, ScaleOf(c.dims));
      const int64_t begin = t * static_cast<int64_t>(want.size());
      EXPECT_LT(RelativeError(exact.data<float>() + begin, want), 2e-6)
          << DTypeName(c.weights) << " weights, first " << c.first << ", query " << t;
      EXPECT_LT(RelativeError(fast.data<float>() + begin, want), 1.2e-2)
          << DTypeName(c.weights) << " weights, first " << c.first << ", query " << t;
    }
  }
}

TEST(MlaPrompt, LongPromptsCutIntoRangesAgreeWithAbsorbed) {
  const MlaDims dims = {
      .num_heads = 2, .nope_dim = 16, .rope_dim = 8, .v_dim = 16, .kv_lora_rank = 32};
  constexpr int64_t kQueries = 1500, kFirst = 17;
  const Scene scene = MakeScene(dims, DType::kF32, {kFirst + kQueries}, 5, 6);
  const OwnedWeight kv_b = MakeKvB(dims, DType::kF32);
  const OwnedTensor q = RandomF32({kQueries, dims.num_heads * dims.q_dim()}, 8);
  std::vector<Token> tokens;
  for (int32_t i = 0; i < kQueries; ++i) tokens.push_back({0, static_cast<int32_t>(kFirst) + i});
  const OwnedTensor want = Absorbed(scene, kv_b, q, tokens);
  const OwnedTensor out = Prompt(scene, kv_b, q, kFirst, {DetectCpuIsa(), 2, Numerics::kExact});
  for (int64_t i = 0; i < out.size(); ++i) {
    ASSERT_NEAR(out.data<float>()[i], want.data<float>()[i], 2e-5) << i;
  }
}

// Ranges of queries, blocks of positions that no query is aligned with, heads that do not pair up.
TEST(MlaPrompt, FastAgreesWithExactOverManyBlocks) {
  const MlaDims dims = {
      .num_heads = 3, .nope_dim = 32, .rope_dim = 32, .v_dim = 32, .kv_lora_rank = 32};
  for (const DType cache : {DType::kF32, DType::kBF16}) {
    for (const int64_t first : {0, 17, 300}) {
      for (const int64_t queries : {1, 33, 260, 1100}) {
        const Scene scene = MakeScene(dims, cache, {first + queries}, 5, 6);
        const OwnedWeight kv_b = MakeKvB(dims, DType::kF16);
        const OwnedTensor q = RandomF32({queries, dims.num_heads * dims.q_dim()}, 8);
        const OwnedTensor want = Prompt(scene, kv_b, q, first);
        const OwnedTensor got = Prompt(scene, kv_b, q, first, {DetectCpuIsa(), 3, Numerics::kFast});
        ASSERT_LT(
            RelativeError(got.data<float>(), std::vector<double>(want.data<float>(),
                                                                 want.data<float>() + want.size())),
            1.2e-2)
            << first << " positions before " << queries;
      }
    }
  }
}

// Chunks of several sequences give what each gives alone; rows of no chunk stay as they are.
TEST(MlaPrompt, TakesChunksOfSeveralSequences) {
  for (const Numerics numerics : {Numerics::kExact, Numerics::kFast}) {
    const CpuSetting setting = {DetectCpuIsa(), 2, numerics};
    const Scene scene = MakeScene(kTiny, DType::kBF16, {70, 1, 200}, 5, 6);
    const OwnedWeight kv_b = MakeKvB(kTiny, DType::kBF16);
    const std::vector<PromptChunk> chunks = {
        {.token_begin = 40, .num_tokens = 60, .seq = 2, .first_position = 140},
        {.token_begin = 0, .num_tokens = 1, .seq = 1},
        {.token_begin = 7, .num_tokens = 0, .seq = 1},
        {.token_begin = 2, .num_tokens = 35, .seq = 0, .first_position = 35}};
    const OwnedTensor q = RandomF32({103, kTiny.num_heads * kTiny.q_dim()}, 8);
    const auto run = [&](absl::Span<const PromptChunk> some) {
      OwnedTensor out(DType::kF32, {103, kTiny.num_heads * kTiny.v_dim});
      std::fill_n(out.data<float>(), out.size(), 42.0f);
      OpsUnderTest ops(setting);
      EXPECT_TRUE(MakeCpuAttentionOps(ops.context())
                      ->MlaPrompt({kTiny, q.view(), kv_b.view, scene.cache.view(),
                                   scene.page_table.view(), some, ScaleOf(kTiny), out.view()},
                                  StreamId{})
                      .ok());
      return out;
    };
    const OwnedTensor together = run(chunks);
    std::vector<bool> covered(103);
    for (const PromptChunk& chunk : chunks) {
      const OwnedTensor alone = run({&chunk, 1});
      for (int64_t t = chunk.token_begin; t < chunk.token_begin + chunk.num_tokens; ++t) {
        covered[static_cast<size_t>(t)] = true;
        ASSERT_EQ(std::memcmp(alone.view().Row<float>(t), together.view().Row<float>(t),
                              static_cast<size_t>(alone.view().dims[1]) * sizeof(float)),
                  0)
            << "row " << t;
      }
    }
    for (int64_t t = 0; t < 103; ++t) {
      if (covered[static_cast<size_t>(t)]) continue;
      for (int64_t i = 0; i < together.view().dims[1]; ++i) {
        ASSERT_EQ(together.view().Row<float>(t)[i], 42.0f) << "row " << t;
      }
    }
  }
}

// Angles of MlaCacheWrite's table: per position rope_dim / 2 cosines, then as many sines.
OwnedTensor MakeCosSin(int64_t positions, int64_t rope_dim) {
  OwnedTensor table(DType::kF32, {positions, rope_dim});
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < rope_dim / 2; ++i) {
      const double angle = static_cast<double>(p) * std::pow(100.0, -2.0 * i / rope_dim);
      table.data<float>()[p * rope_dim + i] = static_cast<float>(std::cos(angle));
      table.data<float>()[p * rope_dim + rope_dim / 2 + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

struct CacheWriteResult {
  OwnedTensor q, cache;
};

CacheWriteResult CacheWrite(const MlaDims& dims, DType cache_dtype, const OwnedTensor& q_before,
                            const OwnedTensor& kv_a, const std::vector<int32_t>& positions,
                            const std::vector<int32_t>& rows, const CpuSetting& setting) {
  const int64_t count = static_cast<int64_t>(positions.size());
  CacheWriteResult result = {q_before, OwnedTensor(cache_dtype, {3, kPageTokens, dims.kv_dim()})};
  const OwnedTensor norm = RandomF32({dims.kv_lora_rank}, 4, 0.1f, 1.0f);
  const OwnedTensor table = MakeCosSin(50, dims.rope_dim);
  const OwnedTensor position = MakeI32({count}, positions);
  const OwnedTensor kv_rows = MakeI32({count}, rows);
  OpsUnderTest ops(setting);
  const absl::Status status =
      MakeCpuAttentionOps(ops.context())
          ->MlaCacheWrite({dims, result.q.view(), kv_a.view(), norm.view(), 1e-6f, table.view(),
                           position.view(), kv_rows.view(), result.cache.view()},
                          StreamId{});
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(result.q.GuardsIntact() && result.cache.GuardsIntact());
  return result;
}

// k_pe is rotated but not normed; the latent is normed but not rotated; pairs are (2i, 2i + 1).
TEST(MlaCacheWrite, NormsTheLatentAndTurnsInterleavedPairs) {
  for (const MlaDims& dims : {kTiny, kOdd, kV3Head}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const std::vector<int32_t> positions = {0, 49, 7, 7};
      const std::vector<int32_t> rows = {64, 191, -1, 0};
      const OwnedTensor q = RandomF32({4, dims.num_heads * dims.q_dim()}, 1);
      const OwnedTensor kv_a = RandomF32({4, dims.kv_dim()}, 2, 3.0f);
      const CacheWriteResult result = CacheWrite(dims, dtype, q, kv_a, positions, rows, kDefault);
      const OwnedTensor norm = RandomF32({dims.kv_lora_rank}, 4, 0.1f, 1.0f);
      const auto turned = [&](const float* x, int64_t i, int32_t position) {
        const double angle = position * std::pow(100.0, -2.0 * (i / 2) / dims.rope_dim);
        const double even = x[i / 2 * 2], odd = x[i / 2 * 2 + 1];
        return i % 2 == 0 ? even * std::cos(angle) - odd * std::sin(angle)
                          : even * std::sin(angle) + odd * std::cos(angle);
      };
      std::vector<bool> written(3 * kPageTokens, false);
      for (int64_t t = 0; t < 4; ++t) {
        for (int64_t c = 0; c < dims.num_heads * dims.q_dim(); ++c) {
          const int64_t index = t * dims.num_heads * dims.q_dim() + c;
          const int64_t in_head = c % dims.q_dim();
          const double want = in_head < dims.nope_dim
                                  ? q.data<float>()[index]
                                  : turned(q.data<float>() + index - in_head + dims.nope_dim,
                                           in_head - dims.nope_dim, positions[t]);
          EXPECT_NEAR(result.q.data<float>()[index], want, 2e-6);
        }
        if (rows[t] < 0) continue;
        written[rows[t]] = true;
        const float* source = kv_a.data<float>() + t * dims.kv_dim();
        double squares = 0;
        for (int64_t c = 0; c < dims.kv_lora_rank; ++c) squares += std::pow(source[c], 2);
        const double factor = 1 / std::sqrt(squares / dims.kv_lora_rank + 1e-6);
        for (int64_t c = 0; c < dims.kv_dim(); ++c) {
          const int64_t index = rows[t] * dims.kv_dim() + c;
          const double want = c < dims.kv_lora_rank ? source[c] * factor * norm.data<float>()[c]
                                                    : turned(source + dims.kv_lora_rank,
                                                             c - dims.kv_lora_rank, positions[t]);
          if (dtype == DType::kF32) {
            EXPECT_NEAR(result.cache.data<float>()[index], want, 3e-6);
          } else {
            EXPECT_NEAR(Bf16ToF32(result.cache.data<uint16_t>()[index]), want,
                        std::fabs(want) / 256 + 1e-7);
          }
        }
      }
      for (int64_t row = 0; row < 3 * kPageTokens; ++row) {
        if (written[row]) continue;
        const uint8_t* bytes = result.cache.data<uint8_t>() +
                               row * dims.kv_dim() * static_cast<int64_t>(DTypeBytes(dtype));
        EXPECT_EQ(bytes[0], 0xff) << row;  // as poisoned
      }
    }
  }
}

TEST(MlaCacheWrite, BitsAreTheSameEverywhere) {
  constexpr int64_t kTokens = 40;
  const OwnedTensor q = RandomF32({kTokens, kTiny.num_heads * kTiny.q_dim()}, 1);
  const OwnedTensor kv_a = RandomF32({kTokens, kTiny.kv_dim()}, 2);
  std::vector<int32_t> positions(kTokens), rows(kTokens);
  for (int32_t i = 0; i < kTokens; ++i) {
    positions[i] = i;
    rows[i] = (i * 7) % 192;
  }
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const CacheWriteResult want =
        CacheWrite(kTiny, dtype, q, kv_a, positions, rows, {CpuIsa::kGeneric, 1, {}});
    for (const CpuSetting& setting : AllSettings(Numerics::kExact)) {
      const CacheWriteResult got = CacheWrite(kTiny, dtype, q, kv_a, positions, rows, setting);
      EXPECT_TRUE(got.q.SameBytes(want.q)) << Name(setting);
      EXPECT_TRUE(got.cache.SameBytes(want.cache)) << Name(setting);
    }
  }
}

// Attention depends on differences of positions alone when everything is rotated by them.
TEST(MlaCacheWrite, RotationKeepsDotProductsOfEqualDistances) {
  const MlaDims dims = kTiny;
  const OwnedTensor q = RandomF32({2, dims.num_heads * dims.q_dim()}, 1);
  const OwnedTensor kv_a = RandomF32({2, dims.kv_dim()}, 2);
  const auto dot = [&](int32_t q_position, int32_t k_position) {
    const CacheWriteResult result =
        CacheWrite(dims, DType::kF32, q, kv_a, {q_position, k_position}, {-1, 0}, kDefault);
    double sum = 0;
    for (int64_t i = 0; i < dims.rope_dim; ++i) {
      sum += static_cast<double>(result.q.data<float>()[dims.nope_dim + i]) *
             result.cache.data<float>()[dims.kv_lora_rank + i];
    }
    return sum;
  };
  EXPECT_NEAR(dot(10, 3), dot(47, 40), 2e-5);
  EXPECT_GT(std::fabs(dot(10, 3) - dot(10, 4)), 1e-3);
}

TEST(Mla, RefusesWhatDoesNotFit) {
  const MlaDims dims = kTiny;
  const Scene scene = MakeScene(dims, DType::kF32, {65}, 5, 6);
  const OwnedWeight kv_b = MakeKvB(dims, DType::kBF16);
  const OwnedTensor q = RandomF32({1, dims.num_heads * dims.q_dim()}, 4);
  const OwnedTensor out(DType::kF32, {1, dims.num_heads * dims.v_dim});
  OpsUnderTest ops(kDefault);
  const std::unique_ptr<AttentionOps> attention = MakeCpuAttentionOps(ops.context());
  const auto absorbed = [&](int32_t seq, int32_t position, const WeightView& weight,
                            TensorView page_table) {
    const OwnedTensor seqs = MakeI32({1}, {seq});
    const OwnedTensor positions = MakeI32({1}, {position});
    return std::string(attention
                           ->MlaAbsorbed({dims, q.view(), weight, scene.cache.view(), page_table,
                                          seqs.view(), positions.view(), 1.0f, out.view()},
                                         StreamId{})
                           .message());
  };
  const TensorView table = scene.page_table.view();
  EXPECT_EQ(absorbed(0, 64, kv_b.view, table), "");
  EXPECT_THAT(absorbed(1, 64, kv_b.view, table), testing::HasSubstr("seq_of_token[0] is 1"));
  EXPECT_THAT(absorbed(0, 128, kv_b.view, table), testing::HasSubstr("129 positions"));
  EXPECT_THAT(absorbed(0, -1, kv_b.view, table), testing::HasSubstr("0 positions"));
  EXPECT_THAT(absorbed(0, 64, kv_b.view.RowSlice(0, 100), table), testing::HasSubstr("[100, 128]"));
  const OwnedTensor bad_pages = MakeI32({1, 2}, {0, 3});
  EXPECT_THAT(absorbed(0, 64, kv_b.view, bad_pages.view()), testing::HasSubstr("is 3 of 3"));
  const OwnedTensor unused = MakeI32({1, 2}, {0, -1});
  EXPECT_THAT(absorbed(0, 64, kv_b.view, unused.view()), testing::HasSubstr("is -1 of 3"));
  EXPECT_EQ(absorbed(0, 63, kv_b.view, unused.view()), "");
}

}  // namespace
}  // namespace sluice
