// Latent attention on the GPU, by the general kernel and by the one for DeepSeek-V3's dimensions.
#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_test_util.h"

namespace sluice {
namespace {

class CudaAttentionTest : public CudaOpsTest {
 protected:
  // Both ops, over five sequences in pages from first_page on. `cache` is what the CPU reads,
  // `device_cache` the same rows as the device has them.
  void ExpectTheCpus(Device& device, const MlaDims& dims, const OwnedWeight& kv_b,
                     const OwnedTensor& cache, const TensorView& device_cache, int32_t first_page) {
    const std::vector<int32_t> lengths = {1, 63, 64, 65, 300};  // so far, this token included
    const int64_t count = static_cast<int64_t>(lengths.size()), pages_max = 5;
    const OwnedTensor table =
        Integers({count, pages_max}, first_page, static_cast<int32_t>(cache.view().rows()) - 1);
    const OwnedTensor seqs = MakeI32({count}, {2, 0, 1, 4, 3});
    OwnedTensor at = MakeI32({count}, lengths);
    for (int64_t i = 0; i < count; ++i) --at.data<int32_t>()[i];
    const OwnedTensor queries = Random({count, dims.num_heads * dims.q_dim()}, 0.3f);
    const OwnedTensor out(DType::kF32, {count, dims.num_heads * dims.v_dim});
    const TensorView device_out = device.Up(out), device_table = device.Up(table);
    const WeightView device_kv_b = device.Up(kv_b);
    ASSERT_TRUE(cpu_->attention()
                    .MlaAbsorbed({dims, queries.view(), kv_b.view, cache.view(), table.view(),
                                  seqs.view(), at.view(), 0.2f, out.view()},
                                 {})
                    .ok());
    ASSERT_TRUE(device.backend()
                    .attention()
                    .MlaAbsorbed({dims, device.Up(queries), device_kv_b, device_cache, device_table,
                                  device.Up(seqs), device.Up(at), 0.2f, device_out},
                                 {})
                    .ok());
    EXPECT_LT(Difference(out, device.Down(device_out)), 2e-5);

    const int64_t tokens = 70;
    const OwnedTensor prompt = Random({tokens, dims.num_heads * dims.q_dim()}, 0.3f);
    const OwnedTensor prompt_out(DType::kF32, {tokens, dims.num_heads * dims.v_dim});
    const TensorView device_prompt_out = device.Up(prompt_out);
    const PromptChunk chunk = {.num_tokens = tokens, .seq = 3, .first_position = 100};
    ASSERT_TRUE(cpu_->attention()
                    .MlaPrompt({dims,
                                prompt.view(),
                                kv_b.view,
                                cache.view(),
                                table.view(),
                                {&chunk, 1},
                                0.2f,
                                prompt_out.view()},
                               {})
                    .ok());
    ASSERT_TRUE(device.backend()
                    .attention()
                    .MlaPrompt({dims,
                                device.Up(prompt),
                                device_kv_b,
                                device_cache,
                                device_table,
                                {&chunk, 1},
                                0.2f,
                                device_prompt_out},
                               {})
                    .ok());
    EXPECT_LT(Difference(prompt_out, device.Down(device_prompt_out)), 5e-5);
  }
};

constexpr double kBf16Error = 1e-2;  // queries, probabilities and outputs are rounded to bf16

struct Model {
  const char* name;
  MlaDims dims;
};

void PrintTo(const Model& model, std::ostream* os) { *os << model.name; }

class LatentAttentionTest : public CudaAttentionTest, public testing::WithParamInterface<Model> {};

TEST_P(LatentAttentionTest, IsTheCpus) {
  const int64_t num_pages = 12;
  const MlaDims& dims = GetParam().dims;
  for (const DType cache_dtype : {DType::kF32, DType::kBF16}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
      SCOPED_TRACE(testing::Message()
                   << "cache " << DTypeName(cache_dtype) << " weights " << DTypeName(dtype));
      // A cache filled by the op itself, one row after the other.
      const int64_t tokens = num_pages * kPageTokens;
      const OwnedTensor kv_a = Random({tokens, dims.kv_dim()}), norm = Random({dims.kv_lora_rank});
      const OwnedTensor angles = Random({512, dims.rope_dim});
      const OwnedTensor positions = Integers({tokens}, 0, 511);
      OwnedTensor rows = Integers({tokens}, 0, 0);
      for (int64_t i = 0; i < tokens; ++i)
        rows.data<int32_t>()[i] = i == 5 ? -1 : static_cast<int32_t>(i);
      const OwnedTensor q = Random({tokens, dims.num_heads * dims.q_dim()}, 0.3f);
      const OwnedTensor cache(cache_dtype, {num_pages, kPageTokens, dims.kv_dim()});
      std::fill_n(cache.data<uint8_t>(), cache.size() * DTypeBytes(cache_dtype), 0);
      const TensorView device_q = gpu_.Up(q), device_cache = gpu_.Up(cache);
      ASSERT_TRUE(cpu_->attention()
                      .MlaCacheWrite({dims, q.view(), kv_a.view(), norm.view(), 1e-6f,
                                      angles.view(), positions.view(), rows.view(), cache.view()},
                                     {})
                      .ok());
      ASSERT_TRUE(
          gpu_.backend()
              .attention()
              .MlaCacheWrite({dims, device_q, gpu_.Up(kv_a), gpu_.Up(norm), 1e-6f, gpu_.Up(angles),
                              gpu_.Up(positions), gpu_.Up(rows), device_cache},
                             {})
              .ok());
      EXPECT_LT(Difference(q, gpu_.Down(device_q)), 1e-6);
      const OwnedTensor device_rows = gpu_.Down(device_cache);
      if (cache_dtype == DType::kF32) {
        EXPECT_LT(Difference(cache, device_rows), 1e-6);
      } else {
        for (int64_t i = 0; i < cache.size(); ++i) {
          EXPECT_NEAR(Bf16ToF32(cache.data<uint16_t>()[i]),
                      Bf16ToF32(device_rows.data<uint16_t>()[i]), 0.05);
        }
      }
      const TensorView same_cache = gpu_.Up(cache);  // the very same rows for both from here on

      const OwnedWeight kv_b = RandomWeight(dtype, dims.num_heads * (dims.nope_dim + dims.v_dim),
                                            dims.kv_lora_rank, Seed(), 0.1f);
      ExpectTheCpus(gpu_, dims, kv_b, cache, same_cache, /*first_page=*/0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, LatentAttentionTest,
                         testing::Values(Model{"tiny", {8, 32, 32, 32, 128}},
                                         Model{"odd", {3, 5, 2, 7, 33}},
                                         Model{"v3", {128, 128, 64, 128, 512}}),
                         [](const auto& info) { return std::string(info.param.name); });

// A cache in FP8: rows are what rounding makes of the CPU's, and attention is that over the rows as
// they can be read back.
TEST_F(CudaAttentionTest, LatentsInFp8) {
  const MlaDims models[] = {
      {8, 32, 32, 32, 128}, {3, 5, 2, 7, 33}, {2, 16, 6, 8, 130}, {16, 128, 64, 128, 512}};
  const int64_t num_pages = 6, tokens = num_pages * kPageTokens;
  for (const MlaDims& dims : models) {
    SCOPED_TRACE(testing::Message()
                 << "latent " << dims.kv_lora_rank << ", rope " << dims.rope_dim);
    const OwnedTensor kv_a = Random({tokens, dims.kv_dim()}), norm = Random({dims.kv_lora_rank});
    const OwnedTensor angles = Random({512, dims.rope_dim});
    const OwnedTensor positions = Integers({tokens}, 0, 511);
    OwnedTensor rows = Integers({tokens}, 0, 0);
    std::iota(rows.data<int32_t>(), rows.data<int32_t>() + tokens, 0);
    rows.data<int32_t>()[5] = -1;
    const OwnedTensor q = Random({tokens, dims.num_heads * dims.q_dim()}, 0.3f);
    const OwnedTensor exact(DType::kF32, {num_pages, kPageTokens, dims.kv_dim()});
    const int64_t row_bytes = F8KvRowBytes(dims.kv_lora_rank, dims.rope_dim);
    const OwnedTensor poisoned(DType::kF8E4M3, {num_pages, kPageTokens, row_bytes});
    const TensorView device_cache = gpu_.Up(poisoned);
    ASSERT_TRUE(cpu_->attention()
                    .MlaCacheWrite({dims, q.view(), kv_a.view(), norm.view(), 1e-6f, angles.view(),
                                    positions.view(), rows.view(), exact.view()},
                                   {})
                    .ok());
    ASSERT_TRUE(
        gpu_.backend()
            .attention()
            .MlaCacheWrite({dims, gpu_.Up(q), gpu_.Up(kv_a), gpu_.Up(norm), 1e-6f, gpu_.Up(angles),
                            gpu_.Up(positions), gpu_.Up(rows), device_cache},
                           {})
            .ok());

    const OwnedTensor stored = gpu_.Down(device_cache);
    const OwnedTensor read(DType::kF32, {num_pages, kPageTokens, dims.kv_dim()});
    for (int64_t row = 0; row < tokens; ++row) {
      const uint8_t* bytes = stored.data<uint8_t>() + row * row_bytes;
      const float* want = exact.data<float>() + row * dims.kv_dim();
      float* got = read.data<float>() + row * dims.kv_dim();
      if (row == 5) {
        EXPECT_TRUE(std::all_of(bytes, bytes + row_bytes, [](uint8_t b) { return b == 0xff; }))
            << "a row of no token was written";
        std::fill_n(got, dims.kv_dim(), 0.0f);
        continue;
      }
      for (int64_t i = 0; i < dims.kv_lora_rank; ++i) {
        float scale = 0;
        std::memcpy(&scale, bytes + F8KvScalesAt(dims.kv_lora_rank) + i / kF8KvGroup * 4, 4);
        got[i] = F8E4M3ToF32(bytes[i]) * scale;
        // Half of the largest step that e4m3 has below the largest number of the group.
        ASSERT_NEAR(got[i], want[i], 16 * scale * 1.001f) << "row " << row << ", " << i;
        ASSERT_LE(std::abs(want[i]), 448 * scale * 1.001f);
      }
      for (int64_t i = 0; i < dims.rope_dim; ++i) {
        uint16_t key = 0;
        std::memcpy(&key, bytes + F8KvKeyAt(dims.kv_lora_rank) + 2 * i, 2);
        got[dims.kv_lora_rank + i] = Bf16ToF32(key);
        ASSERT_NEAR(Bf16ToF32(key), want[dims.kv_lora_rank + i],
                    0x1p-8f * std::abs(want[dims.kv_lora_rank + i]) + 1e-6f);
      }
    }

    const OwnedWeight kv_b =
        RandomWeight(DType::kBF16, dims.num_heads * (dims.nope_dim + dims.v_dim), dims.kv_lora_rank,
                     Seed(), 0.1f);
    for (const Numerics numerics : {Numerics::kExact, Numerics::kFast}) {
      Device device(numerics);
      // Page 0 has the row that was never written.
      ExpectTheCpus(device, dims, kv_b, read, device.Up(stored), /*first_page=*/1);
    }
  }
}

// In bf16 on the tensor cores: the bars of FlashMLA's own test for the difference of directions.
TEST_F(CudaAttentionTest, LatentAttentionOfV3OnTheTensorCores) {
  Device fast(Numerics::kFast);
  const struct {
    int heads;
    std::vector<int32_t> lengths;  // so far, this token included
  } cases[] = {{64, {1}},
               {128, {64, 1, 63}},
               {64, {65, 128, 129, 700}},
               {128, {191, 192, 193}},
               {16, {1, 700}},
               {32, {64, 65, 127, 128, 129}},
               {96, {300, 2}}};
  for (const auto& c : cases) {
    for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      const MlaDims dims = {c.heads, 128, 64, 128, 512};
      const int64_t count = static_cast<int64_t>(c.lengths.size()), pages_max = 12;
      const int64_t num_pages = count * pages_max;
      SCOPED_TRACE(testing::Message()
                   << c.heads << " heads, " << count << " sequences, weights " << DTypeName(dtype));
      OwnedTensor table = Integers({count, pages_max}, 0, 0), at = MakeI32({count}, c.lengths);
      std::vector<int32_t> order(static_cast<size_t>(num_pages));
      std::iota(order.begin(), order.end(), 0);
      std::mt19937 random(Seed());
      std::shuffle(order.begin(), order.end(), random);
      std::copy(order.begin(), order.end(), table.data<int32_t>());
      OwnedTensor cache(DType::kBF16, {num_pages, kPageTokens, dims.kv_dim()});
      std::normal_distribution<float> normal;
      for (int64_t i = 0; i < cache.size(); ++i) {
        cache.data<uint16_t>()[i] = F32ToBf16(normal(random));
      }
      std::vector<int32_t> seqs(static_cast<size_t>(count));
      for (int64_t t = 0; t < count; ++t) {
        const int64_t seq = count - 1 - t;
        seqs[static_cast<size_t>(t)] = static_cast<int32_t>(seq);
        const int64_t length = at.data<int32_t>()[t]--;
        // Behind a sequence's end its pages hold whatever they like.
        for (int64_t p = length; p < pages_max * kPageTokens; ++p) {
          const int64_t page = table.data<int32_t>()[seq * pages_max + p / kPageTokens];
          uint16_t* row =
              cache.data<uint16_t>() + (page * kPageTokens + p % kPageTokens) * dims.kv_dim();
          std::fill_n(row, dims.kv_dim(), uint16_t{0x7fc0});  // NaN
        }
      }
      const OwnedTensor seq_of_token = MakeI32({count}, seqs);
      const OwnedTensor q = Random({count, dims.num_heads * dims.q_dim()}, 0.5f);
      const OwnedWeight kv_b =
          RandomWeight(dtype, dims.num_heads * (dims.nope_dim + dims.v_dim), 512, Seed(), 0.04f);
      const OwnedTensor wanted(DType::kF32, {count, dims.num_heads * dims.v_dim});
      const TensorView out = fast.Up(wanted);
      ASSERT_TRUE(cpu_->attention()
                      .MlaAbsorbed({dims, q.view(), kv_b.view, cache.view(), table.view(),
                                    seq_of_token.view(), at.view(), 0.135f, wanted.view()},
                                   {})
                      .ok());
      const TensorView device_cache = fast.Up(cache), device_table = fast.Up(table);
      const WeightView device_kv_b = fast.Up(kv_b);
      ASSERT_TRUE(fast.backend()
                      .attention()
                      .MlaAbsorbed({dims, fast.Up(q), device_kv_b, device_cache, device_table,
                                    fast.Up(seq_of_token), fast.Up(at), 0.135f, out},
                                   {})
                      .ok());
      EXPECT_LT(RelativeError(wanted, fast.Down(out), wanted.size()), kBf16Error);

      const int64_t prompt = 40, first = 24;  // of the token with the most behind it
      const int64_t longest =
          std::max_element(c.lengths.begin(), c.lengths.end()) - c.lengths.begin();
      if (c.lengths[static_cast<size_t>(longest)] < first + prompt) continue;
      const OwnedTensor prompt_q = Random({prompt, dims.num_heads * dims.q_dim()}, 0.5f);
      const OwnedTensor prompt_wanted(DType::kF32, {prompt, dims.num_heads * dims.v_dim});
      const TensorView prompt_out = fast.Up(prompt_wanted);
      const PromptChunk chunk = {
          .num_tokens = prompt, .seq = seqs[static_cast<size_t>(longest)], .first_position = first};
      ASSERT_TRUE(cpu_->attention()
                      .MlaPrompt({dims,
                                  prompt_q.view(),
                                  kv_b.view,
                                  cache.view(),
                                  table.view(),
                                  {&chunk, 1},
                                  0.135f,
                                  prompt_wanted.view()},
                                 {})
                      .ok());
      ASSERT_TRUE(fast.backend()
                      .attention()
                      .MlaPrompt({dims,
                                  fast.Up(prompt_q),
                                  device_kv_b,
                                  device_cache,
                                  device_table,
                                  {&chunk, 1},
                                  0.135f,
                                  prompt_out},
                                 {})
                      .ok());
      EXPECT_LT(RelativeError(prompt_wanted, fast.Down(prompt_out), prompt_wanted.size()),
                kBf16Error);
    }
  }
}

TEST_F(CudaAttentionTest, NoTokensTouchNothing) {
  const MlaDims dims{16, 128, 64, 128, 512};
  const OwnedWeight kv_b = RandomWeight(DType::kBF16, dims.num_heads * 256, 512, Seed(), 0.04f);
  const OwnedTensor q(DType::kF32, {3, dims.num_heads * dims.q_dim()});
  const OwnedTensor out(DType::kF32, {3, dims.num_heads * dims.v_dim});
  for (const Numerics numerics : {Numerics::kExact, Numerics::kFast}) {
    Device device(numerics);
    AttentionOps& ops = device.backend().attention();
    const TensorView device_q = device.Up(q), device_out = device.Up(out);
    const TensorView none = device_q.Prefix(0), none_out = device_out.Prefix(0);
    const TensorView kv_a = device.Up(Random({3, dims.kv_dim()})).Prefix(0);
    const TensorView norm = device.Up(Random({dims.kv_lora_rank}));
    const TensorView angles = device.Up(Random({512, dims.rope_dim}));
    const TensorView table = device.Up(MakeI32({1, 2}, {1, 0}));
    const TensorView ints = device.Up(MakeI32({3}, {0, 0, 0})).Prefix(0);
    const WeightView device_kv_b = device.Up(kv_b);
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
      SCOPED_TRACE(testing::Message()
                   << (numerics == Numerics::kFast ? "fast" : "exact") << ", " << DTypeName(dtype));
      const OwnedTensor cache(
          dtype, {2, kPageTokens, KvRowElements(dims.kv_lora_rank, dims.rope_dim, dtype)});
      const TensorView device_cache = device.Up(cache);
      EXPECT_EQ(
          ops.MlaCacheWrite({dims, none, kv_a, norm, 1e-6f, angles, ints, ints, device_cache}, {}),
          absl::OkStatus());
      EXPECT_EQ(ops.MlaAbsorbed(
                    {dims, none, device_kv_b, device_cache, table, ints, ints, 0.2f, none_out}, {}),
                absl::OkStatus());
      const PromptChunk chunk = {.num_tokens = 0, .seq = 0, .first_position = 70};
      for (const size_t chunks : {0, 1}) {
        EXPECT_EQ(
            ops.MlaPrompt(
                {dims, none, device_kv_b, device_cache, table, {&chunk, chunks}, 0.2f, none_out},
                {}),
            absl::OkStatus());
      }
      ExpectSame(cache, device.Down(device_cache), static_cast<int64_t>(DTypeBytes(dtype)));
    }
    ExpectSame(q, device.Down(device_q), 4);
    ExpectSame(out, device.Down(device_out), 4);
  }
}

// A copy of kv_b in bf16 is used for as long as it is kept, written down as memory that was taken,
// and never mistaken for that of a weight that took the first one's place.
TEST_F(CudaAttentionTest, KeptCopiesOfKvBAreNeverStale) {
  Device fast(Numerics::kFast);
  const MlaDims dims{16, 128, 64, 128, 512};
  const int64_t tokens = 3, rows = dims.num_heads * (dims.nope_dim + dims.v_dim);
  const OwnedTensor q = Random({tokens, dims.num_heads * dims.q_dim()}, 0.5f);
  OwnedTensor cache(DType::kBF16, {2, kPageTokens, dims.kv_dim()});
  std::mt19937 random(Seed());
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < cache.size(); ++i) {
    cache.data<uint16_t>()[i] = F32ToBf16(normal(random));
  }
  const OwnedTensor table = MakeI32({1, 2}, {1, 0}), seqs = MakeI32({tokens}, {0, 0, 0});
  const OwnedTensor positions = MakeI32({tokens}, {0, 64, 100});
  OwnedWeight weights[2] = {RandomWeight(DType::kF8E4M3, rows, 512, Seed(), 0.04f),
                            RandomWeight(DType::kF8E4M3, rows, 512, Seed(), 0.04f)};
  weights[1].scales = weights[0].scales;
  weights[1].view.scales = weights[1].scales.data();
  const WeightView place = fast.Up(weights[0]);
  const TensorView device_q = fast.Up(q), device_cache = fast.Up(cache),
                   device_table = fast.Up(table), device_seqs = fast.Up(seqs),
                   device_positions = fast.Up(positions);
  const auto expect_result_of = [&](const OwnedWeight& kv_b) {
    const OwnedTensor wanted(DType::kF32, {tokens, dims.num_heads * dims.v_dim});
    const TensorView out = fast.Up(wanted);
    ASSERT_TRUE(cpu_->attention()
                    .MlaAbsorbed({dims, q.view(), kv_b.view, cache.view(), table.view(),
                                  seqs.view(), positions.view(), 0.135f, wanted.view()},
                                 {})
                    .ok());
    ASSERT_TRUE(fast.backend()
                    .attention()
                    .MlaAbsorbed({dims, device_q, place, device_cache, device_table, device_seqs,
                                  device_positions, 0.135f, out},
                                 {})
                    .ok());
    EXPECT_LT(RelativeError(wanted, fast.Down(out), wanted.size()), kBf16Error);
  };
  const auto taken = [&] {
    return std::string(fast.backend().Allocate(size_t{1} << 50, "more").status().message());
  };
  for (const OwnedWeight& now : weights) {
    for (const bool keeps : {false, true}) {
      SCOPED_TRACE(keeps ? "kept" : "made by the call");
      ASSERT_TRUE(fast.backend()
                      .CopyToDevice(const_cast<void*>(place.data), now.view.data,
                                    static_cast<size_t>(rows * 512), {})
                      .ok());
      std::shared_ptr<const void> kept;
      if (keeps) {
        auto prepared = fast.backend().attention().Prepare(
            {.dims = dims, .kv_b = place, .cache = DType::kBF16}, {});
        ASSERT_TRUE(prepared.ok());
        kept = *std::move(prepared);
        ASSERT_NE(kept, nullptr);
      }
      EXPECT_EQ(taken().find("kv_b in bf16 4.2 MB") != std::string::npos, keeps) << taken();
      expect_result_of(now);
    }
  }
  // Nothing is kept that no kernel would use.
  EXPECT_EQ(*fast.backend().attention().Prepare(
                {.dims = dims, .kv_b = place, .cache = DType::kF8E4M3}, {}),
            nullptr);
}

}  // namespace
}  // namespace sluice
