// Attention of decoding tokens on the GPU, with DeepSeek-V3's dimensions and a cache in bf16: the
// op as the engine calls it, and its core alone, without the products with kv_b. Pages are
// shuffled. FLOPs are those of the core; of the op, also those of its two products.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/mla_decode_launch.h"
#include "kernels/cuda/tensor_map.h"
#include "tests/bench/cuda_bench.h"

namespace sluice::bench {
namespace {

constexpr int64_t kColumns = 576, kQuery = 192, kValue = 128, kNope = 128, kRank = 512;
constexpr float kScale = 0.1352f;
constexpr double kThrottledFlops = 865e12;  // of the tensor cores at 1.6 GHz, as under this load

// FlashMLA, split-KV and combine, measured on the same kind of card, in us.
struct Peer {
  int heads;
  int64_t context;
  int tokens;
  double us;
};
constexpr Peer kPeers[] = {
    {128, 2048, 1, 17.7},   {128, 2048, 8, 24.2},    {128, 2048, 32, 43.2},
    {128, 2048, 64, 61.8},  {128, 2048, 128, 121.5}, {128, 2048, 256, 275.8},
    {128, 4096, 1, 19.4},   {128, 4096, 8, 33.8},    {128, 4096, 32, 69.0},
    {128, 4096, 64, 116.3}, {128, 4096, 128, 228.7}, {128, 4096, 256, 514.0},
    {128, 8192, 1, 24.7},   {128, 8192, 8, 48.8},    {128, 8192, 32, 121.6},
    {128, 8192, 64, 223.9}, {128, 8192, 128, 496.1}, {64, 4096, 1, 29.2},
    {64, 4096, 8, 31.4},    {64, 4096, 32, 54.8},    {64, 4096, 64, 93.9},
    {64, 4096, 128, 150.6}, {64, 4096, 256, 301.8},  {16, 4096, 1, 25.1},
    {16, 4096, 8, 25.1},    {16, 4096, 32, 49.7},    {16, 4096, 64, 86.7},
    {16, 4096, 128, 148.4}, {16, 4096, 256, 288.1},
};

double PeerUs(int heads, int64_t context, int tokens) {
  for (const Peer& peer : kPeers) {
    if (peer.heads == heads && peer.context == context && peer.tokens == tokens) return peer.us;
  }
  return 0;
}

// A token for each length, every one of its own sequence.
class Batch {
 public:
  Batch(int heads, const std::vector<int64_t>& lengths) : heads_(heads), tokens_(lengths.size()) {
    for (const int64_t length : lengths) {
      positions_ += length;
      pages_ += PagesFor(length);
      pages_max_ = std::max(pages_max_, PagesFor(length));
    }
    copies_ = CopiesBeyondL2(bytes());
    cache_ = RandomBf16(copies_ * pages_ * kPageTokens * kColumns, 1, 1);
    std::vector<int32_t> order(static_cast<size_t>(copies_ * pages_)), at, seqs;
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(2));
    std::vector<int32_t> table(static_cast<size_t>(copies_ * tokens_ * pages_max_), 0);
    size_t next = 0;
    for (int64_t row = 0; row < copies_ * tokens_; ++row) {
      const int64_t pages = PagesFor(lengths[static_cast<size_t>(row % tokens_)]);
      for (int64_t p = 0; p < pages; ++p) {
        table[static_cast<size_t>(row * pages_max_ + p)] = order[next++];
      }
    }
    for (int64_t t = 0; t < tokens_; ++t) {
      at.push_back(static_cast<int32_t>(lengths[static_cast<size_t>(t)] - 1));
      seqs.push_back(static_cast<int32_t>(t));
    }
    table_ = Upload(table);
    at_ = Upload(at);
    seqs_ = Upload(seqs);
  }

  double bytes() const { return static_cast<double>(positions_ * kColumns * 2); }
  double flops() const {
    return 2.0 * heads_ * static_cast<double>(positions_ * (kColumns + kRank));
  }

  void Op(CudaBench& bench, Backend& backend, const std::string& shape, double peer_us) const {
    const DeviceMemory q = RandomF32(tokens_ * heads_ * kQuery, 0.3f, 3);
    const int64_t kv_b_rows = heads_ * (kNope + kValue);
    const double weight_bytes = static_cast<double>(kv_b_rows * kRank * 2);
    const int weights = CopiesBeyondL2(weight_bytes);
    const DeviceMemory kv_b = RandomBf16(weights * kv_b_rows * kRank, 0.05f, 4);
    const DeviceMemory out = Zeros(tokens_ * heads_ * kValue * 4);
    MlaAbsorbedParams params;
    params.dims = {heads_, kNope, 64, kValue, kRank};
    params.q = TensorView(q.get(), DType::kF32, {tokens_, heads_ * kQuery});
    params.cache =
        TensorView(cache_.get(), DType::kBF16, {copies_ * pages_, kPageTokens, kColumns});
    params.seq_of_token = TensorView(seqs_.get(), DType::kI32, {tokens_});
    params.positions = TensorView(at_.get(), DType::kI32, {tokens_});
    params.scale = kScale;
    params.out = TensorView(out.get(), DType::kF32, {tokens_, heads_ * kValue});
    params.kv_b.dtype = DType::kBF16;
    params.kv_b.rows = kv_b_rows;
    params.kv_b.cols = params.kv_b.row_stride = kRank;
    const double products = 2.0 * static_cast<double>(tokens_ * kv_b_rows * kRank);
    bench.Run({.name = "mla decode",
               .shape = shape,
               .flops = flops() + products,
               .flops_max = kThrottledFlops,
               .bytes = bytes() + weight_bytes +
                        static_cast<double>(tokens_ * heads_ * (kQuery + kValue) * 4),
               .peer = peer_us > 0 ? "FlashMLA, core alone" : "",
               .peer_us = peer_us,
               .copies = std::max(copies_, weights)},
              StreamOf(backend), [&](int i) {
                params.page_table = Table(i);
                params.kv_b.data =
                    static_cast<const uint16_t*>(kv_b.get()) + i % weights * kv_b_rows * kRank;
                Check(backend.attention().MlaAbsorbed(params, {}));
              });
  }

  void Core(CudaBench& bench, Backend& backend, const std::string& shape, double peer_us) const {
    int multiprocessors = 0;
    Check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
    const int64_t rows = tokens_ * heads_;
    const int groups = (heads_ + cuda::kMlaHeads - 1) / cuda::kMlaHeads;
    const int64_t slots = int64_t{multiprocessors} * 2 * cuda::kMlaHeads;
    const DeviceMemory q = RandomBf16(rows * kColumns, 0.3f, 5), out = Zeros(rows * kRank * 2);
    const DeviceMemory part_out = Zeros(slots * kRank * 4), part_lse = Zeros(slots * 4);
    const DeviceMemory pieces = Zeros(tokens_ * static_cast<int64_t>(sizeof(int2)));
    const auto map = [](const void* data, int64_t count) {
      absl::StatusOr<CUtensorMap> made =
          MakeByteMap(data, count, kColumns * 2, kColumns * 2, kPageTokens);
      Check(made.status());
      return *made;
    };
    cuda::MlaDecodeArgs args{};
    args.q = map(q.get(), rows);
    args.queries = static_cast<const __nv_bfloat16*>(q.get());
    args.cache = map(cache_.get(), copies_ * pages_ * kPageTokens);
    args.page_table_stride = pages_max_;
    args.seq_of_token = static_cast<const int32_t*>(seqs_.get());
    args.positions = static_cast<const int32_t*>(at_.get());
    args.tokens = static_cast<int32_t>(tokens_);
    args.heads = heads_;
    args.parts = multiprocessors / groups;
    args.scale_log2 = kScale * static_cast<float>(M_LOG2E);
    args.out = static_cast<__nv_bfloat16*>(out.get());
    args.part_out = static_cast<float*>(part_out.get());
    args.part_lse = static_cast<float*>(part_lse.get());
    args.pieces = static_cast<int2*>(pieces.get());
    bench.Run({.name = "mla decode core",
               .shape = shape,
               .flops = flops(),
               .flops_max = kThrottledFlops,
               .bytes = bytes() + static_cast<double>(rows * (kColumns + kRank) * 2),
               .peer = peer_us > 0 ? "FlashMLA" : "",
               .peer_us = peer_us,
               .copies = copies_},
              StreamOf(backend), [&](int i) {
                args.page_table = Table(i).As<int32_t>();
                Check(cuda::LaunchMlaDecode(args, StreamOf(backend)));
              });
  }

 private:
  TensorView Table(int i) const {
    return TensorView(static_cast<int32_t*>(table_.get()) + i % copies_ * tokens_ * pages_max_,
                      DType::kI32, {tokens_, pages_max_});
  }

  int heads_;
  int64_t tokens_;
  int64_t positions_ = 0, pages_ = 0, pages_max_ = 0;
  int copies_ = 1;
  DeviceMemory cache_, table_, at_, seqs_;
};

void Measure(CudaBench& bench, Backend& backend, int heads, const std::vector<int64_t>& lengths,
             const std::string& shape, double peer_us) {
  if (!bench.Wants("mla decode", shape) && !bench.Wants("mla decode core", shape)) return;
  const Batch batch(heads, lengths);
  batch.Core(bench, backend, shape, peer_us);
  batch.Op(bench, backend, shape, peer_us);
}

void RunAll(CudaBench& bench) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  for (const int heads : {128, 64, 32, 16}) {
    for (const int64_t context : {int64_t{2048}, int64_t{4096}, int64_t{8192}}) {
      for (const int tokens : {1, 8, 32, 64, 128, 256}) {
        Measure(bench, *backend, heads, std::vector<int64_t>(static_cast<size_t>(tokens), context),
                absl::StrCat("B=", tokens, " context=", context, " h=", heads),
                PeerUs(heads, context, tokens));
      }
    }
    // Lengths as they come, 4,096 on average, and one sequence that outweighs the others.
    std::mt19937 random(6);
    std::vector<int64_t> mixed;
    for (int i = 0; i < 128; ++i) mixed.push_back(1 + static_cast<int64_t>(random() % 8191));
    Measure(bench, *backend, heads, mixed, absl::StrCat("B=128 context=1..8191 h=", heads), 0);
    std::vector<int64_t> uneven(63, 1024);
    uneven.push_back(100000);
    Measure(bench, *backend, heads, uneven, absl::StrCat("B=64 context=63x1024,100000 h=", heads),
            0);
  }
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) {
  sluice::bench::CudaBench bench(argc, argv);
  sluice::bench::RunAll(bench);
  return 0;
}
