// The core of decode attention on the tensor cores, against float64 on the same bf16 inputs, at the
// bar of FlashMLA's own test for the difference of directions; and the op around it.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/base/float_convert.h"
#include "kernels/cuda/cuda_test_util.h"
#include "kernels/cuda/mla_decode_launch.h"
#include "kernels/cuda/tensor_map.h"

namespace sluice {
namespace {

constexpr int kRank = 512, kColumns = 576;
constexpr float kScale = 0.135f;
constexpr double kDirections = 5e-6;     // 1 - 2 <a, b> / (<a, a> + <b, b>)
constexpr double kRowError = 1.0 / 128;  // probabilities and outputs have 8 bits

struct Batch {
  std::string name;
  int heads;
  std::vector<int32_t> lengths;  // of each token's sequence, so far, itself included
  float stddev = 0.3f;           // of queries: the larger, the fewer rows decide
  int distinct_pages = 0;        // many sequences may share pages; 0: all have their own
  int tokens_of_sequence = 1;    // the last tokens of each sequence, at positions before the length
  int padding = 0;               // tokens behind them that are nobody's, as the engine has them
};

void PrintTo(const Batch& batch, std::ostream* os) { *os << batch.name; }

class DecodeCoreTest : public testing::TestWithParam<Batch> {};

// Inputs on the host; NaN stands in every row that no token may see.
struct Inputs {
  int tokens, heads;
  std::vector<int32_t> positions, seqs;
  OwnedTensor q, cache, table;
};

Inputs MakeInputs(const Batch& batch, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const int sequences = static_cast<int>(batch.lengths.size());
  const int each = batch.tokens_of_sequence;
  int64_t pages_max = 0, pages = 0;
  for (const int32_t length : batch.lengths) {
    pages_max = std::max(pages_max, PagesFor(length));
    pages += PagesFor(length);
  }
  if (batch.distinct_pages > 0) pages = batch.distinct_pages;
  const int tokens = sequences * each + batch.padding;
  Inputs in = {tokens,
               batch.heads,
               {},
               {},
               OwnedTensor(DType::kBF16, {int64_t{tokens} * batch.heads, kColumns}),
               OwnedTensor(DType::kBF16, {pages * kPageTokens, kColumns}),
               OwnedTensor(DType::kI32, {sequences + 1, pages_max + 1})};
  for (int64_t i = 0; i < in.q.size(); ++i) {
    in.q.data<uint16_t>()[i] = F32ToBf16(batch.stddev * normal(random));
  }
  for (int64_t i = 0; i < in.cache.size(); ++i) {
    in.cache.data<uint16_t>()[i] = F32ToBf16(normal(random));
  }
  std::vector<int32_t> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  size_t next = 0;
  for (int s = 0; s < sequences; ++s) {
    int32_t* row = in.table.data<int32_t>() + s * (pages_max + 1);
    std::fill_n(row, pages_max + 1, -1);
    const int32_t length = batch.lengths[static_cast<size_t>(s)];
    for (int64_t p = 0; p < PagesFor(length); ++p) row[p] = order[next++ % order.size()];
    for (int64_t i = length; batch.distinct_pages == 0 && i < PagesFor(length) * kPageTokens; ++i) {
      std::fill_n(in.cache.data<uint16_t>() +
                      (row[i / kPageTokens] * kPageTokens + i % kPageTokens) * kColumns,
                  kColumns, uint16_t{0x7fc0});
    }
  }
  // Sequences last to first, so that tokens and rows of the table differ.
  for (int s = sequences; s-- > 0;) {
    for (int i = 0; i < each; ++i) {
      in.seqs.push_back(s);
      in.positions.push_back(batch.lengths[static_cast<size_t>(s)] - each + i);
    }
  }
  std::fill_n(in.table.data<int32_t>() + sequences * (pages_max + 1), pages_max + 1, 0);
  in.seqs.resize(static_cast<size_t>(tokens), sequences);
  in.positions.resize(static_cast<size_t>(tokens), 0);
  return in;
}

// Row `row` (head of a token) of the result in float64.
std::vector<double> Wanted(const Inputs& in, int row) {
  const int token = row / in.heads;
  const int32_t* pages =
      in.table.data<int32_t>() + in.seqs[static_cast<size_t>(token)] * in.table.view().row_stride;
  const auto at = [&](int i) {
    return in.cache.data<uint16_t>() +
           (int64_t{pages[i / kPageTokens]} * kPageTokens + i % kPageTokens) * kColumns;
  };
  const int length = in.positions[static_cast<size_t>(token)] + 1;
  std::vector<float> query(kColumns);
  for (int c = 0; c < kColumns; ++c) {
    query[static_cast<size_t>(c)] = Bf16ToF32(in.q.data<uint16_t>()[int64_t{row} * kColumns + c]);
  }
  std::vector<double> weights(static_cast<size_t>(length));
  double most = -INFINITY, total = 0;
  for (int i = 0; i < length; ++i) {
    const uint16_t* key = at(i);
    double sum = 0;
    for (int c = 0; c < kColumns; ++c) {
      sum += static_cast<double>(query[static_cast<size_t>(c)]) *
             static_cast<double>(Bf16ToF32(key[c]));
    }
    weights[static_cast<size_t>(i)] = sum * static_cast<double>(kScale);
    most = std::max(most, weights[static_cast<size_t>(i)]);
  }
  std::vector<double> out(kRank);
  for (int i = 0; i < length; ++i) {
    const double weight = std::exp(weights[static_cast<size_t>(i)] - most);
    total += weight;
    const uint16_t* value = at(i);
    for (int c = 0; c < kRank; ++c) {
      out[static_cast<size_t>(c)] += weight * static_cast<double>(Bf16ToF32(value[c]));
    }
  }
  for (double& x : out) x /= total;
  return out;
}

TEST_P(DecodeCoreTest, IsWhatFloat64Says) {
  const Batch& batch = GetParam();
  const Inputs in = MakeInputs(batch, BaseSeed());
  Device gpu(Numerics::kFast);
  int multiprocessors = 0;
  ASSERT_EQ(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0),
            cudaSuccess);
  const int groups = (batch.heads + cuda::kMlaHeads - 1) / cuda::kMlaHeads;
  const int64_t rows = int64_t{in.tokens} * batch.heads;
  const auto poisoned = [&](std::initializer_list<int64_t> shape) {
    OwnedTensor tensor(DType::kF32, shape);
    std::fill_n(tensor.data<float>(), tensor.size(), NAN);
    return gpu.Up(tensor).As<float>();
  };
  const OwnedTensor none(DType::kBF16, {rows, kRank});
  std::fill_n(none.data<uint16_t>(), none.size(), uint16_t{0x7fc0});
  const TensorView q = gpu.Up(in.q), cache = gpu.Up(in.cache), out = gpu.Up(none);
  const int64_t slots = int64_t{multiprocessors} * 2 * cuda::kMlaHeads;
  cuda::MlaDecodeArgs args{};
  args.q = *MakeByteMap(q.data, rows, kColumns * 2, kColumns * 2, cuda::kMlaHeads);
  args.queries = q.As<const __nv_bfloat16>();
  args.cache = *MakeByteMap(cache.data, cache.dims[0], kColumns * 2, kColumns * 2, kPageTokens);
  args.page_table = gpu.Up(in.table).As<int32_t>();
  args.page_table_stride = in.table.view().row_stride;
  args.seq_of_token = gpu.Up(in.seqs);
  std::vector<int32_t> earlier = in.positions;
  for (size_t i = 0; i < earlier.size(); ++i) earlier[i] = earlier[i] * static_cast<int>(i % 3) / 3;
  const int32_t* const rounds[] = {gpu.Up(earlier), gpu.Up(in.positions)};
  args.tokens = in.tokens;
  args.heads = batch.heads;
  args.parts = multiprocessors / groups;
  args.scale_log2 = kScale * static_cast<float>(M_LOG2E);
  args.out = out.As<__nv_bfloat16>();
  args.part_out = poisoned({slots, kRank});
  args.part_lse = poisoned({slots});
  args.pieces = reinterpret_cast<int2*>(poisoned({in.tokens, 2}));
  // Twice: the second finds what the first, at other positions, left in the scratch memory.
  for (const int32_t* positions : rounds) {
    args.positions = positions;
    ASSERT_EQ(cuda::LaunchMlaDecode(args, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }

  const OwnedTensor got = gpu.Down(out);
  double xx = 0, yy = 0, xy = 0;
  for (int row = 0; row < rows; ++row) {
    const std::vector<double> wanted = Wanted(in, row);
    double squares = 0, errors = 0;
    for (int c = 0; c < kRank; ++c) {
      const double x = wanted[static_cast<size_t>(c)];
      const double y =
          static_cast<double>(Bf16ToF32(got.data<uint16_t>()[int64_t{row} * kRank + c]));
      squares += x * x;
      errors += (x - y) * (x - y);
      yy += y * y;
      xy += x * y;
    }
    xx += squares;
    ASSERT_LT(std::sqrt(errors / squares), kRowError)
        << "token " << row / batch.heads << " head " << row % batch.heads;
  }
  EXPECT_LT(1 - 2 * xy / (xx + yy), kDirections);
}

std::vector<int32_t> Times(int count, std::vector<int32_t> of) {
  std::vector<int32_t> all;
  for (int i = 0; i < count; ++i) all.insert(all.end(), of.begin(), of.end());
  return all;
}

INSTANTIATE_TEST_SUITE_P(
    Batches, DecodeCoreTest,
    testing::Values(
        // Around the ends of pages and of pairs of pages.
        Batch{"1", 128, {1}}, Batch{"63", 128, {63}}, Batch{"64", 64, {64}}, Batch{"65", 64, {65}},
        Batch{"127", 128, {127}}, Batch{"128", 128, {128}}, Batch{"129", 16, {129}},
        Batch{"ends", 16, {1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193}},
        // Heads that fill groups of 64, and that do not.
        Batch{"16 heads", 16, {200, 1, 500}}, Batch{"32 heads", 32, {200, 1, 500}},
        Batch{"48 heads", 48, {200, 1, 500}}, Batch{"80 heads", 80, {200, 1, 500}},
        Batch{"96 heads", 96, {200, 1, 500}}, Batch{"112 heads", 112, {200, 1, 500}},
        // Many parts share a token, two share it, none does.
        Batch{"long", 16, {5000}}, Batch{"two each", 64, Times(70, {700})},
        Batch{"whole", 16, Times(132, {130})}, Batch{"uneven", 16, Times(50, {1, 64, 333, 700})},
        // More tokens than a block has threads, and some that are nobody's.
        Batch{"500 tokens", 16, Times(125, {1, 64, 130, 200})},
        Batch{.name = "padded", .heads = 128, .lengths = {1, 300, 64}, .padding = 5},
        Batch{.name = "padded much", .heads = 32, .lengths = {200}, .padding = 399},
        // 100,000 positions beside one.
        Batch{"far apart", 16, {1, 100000, 1, 64}, 0.3f, 16},
        // One row decides, and later rows exceed the maximum so far again and again.
        Batch{"sharp", 64, {1000, 65, 300}, 6.0f}, Batch{"sharp pair", 128, {700, 65}, 6.0f},
        // Speculation: several tokens of a sequence, none sees the ones after it.
        Batch{"several tokens", 32, {64, 65, 130, 700}, 0.3f, 0, 4}),
    [](const auto& info) {
      std::string name = info.param.name;
      std::replace(name.begin(), name.end(), ' ', '_');
      return name;
    });

TEST(DecodeCoreTest, NoTokens) { EXPECT_EQ(cuda::LaunchMlaDecode({}, nullptr), cudaSuccess); }

}  // namespace
}  // namespace sluice
