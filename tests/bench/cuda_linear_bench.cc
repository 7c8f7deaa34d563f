// Matrix products with weights on the GPU: DeepSeek-V3's shapes through the ops, as the engine
// calls them, so with the quantisation of the activations.
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/bench/cuda_bench.h"

namespace sluice::bench {
namespace {

constexpr int64_t kBlock = 128;  // rows and columns of a weight's scale

// `copies` sets of `groups` weights [n, k] in block-scaled FP8.
class Fp8Weights {
 public:
  Fp8Weights(int copies, int groups, int64_t n, int64_t k, uint64_t seed)
      : data_(RandomF8(int64_t{copies} * groups * n * k, 100, seed)),
        scales_(UniformF32(copies * groups * ScaleCount(n, k), 5e-5f, 1.5e-4f, seed + 1)) {
    for (int copy = 0; copy < copies; ++copy) {
      std::vector<WeightView>& views = views_.emplace_back();
      for (int g = 0; g < groups; ++g) {
        const int64_t index = int64_t{copy} * groups + g;
        WeightView& view = views.emplace_back();
        view.data = static_cast<const uint8_t*>(data_.get()) + index * n * k;
        view.dtype = DType::kF8E4M3;
        view.rows = n;
        view.cols = view.row_stride = k;
        view.scales = static_cast<const float*>(scales_.get()) + index * ScaleCount(n, k);
        view.scale_block = kBlock;
        view.scale_row_stride = k / kBlock;
      }
    }
  }
  absl::Span<const WeightView> operator[](int copy) const { return views_[copy]; }

 private:
  static int64_t ScaleCount(int64_t n, int64_t k) {
    return (n + kBlock - 1) / kBlock * (k / kBlock);
  }
  DeviceMemory data_, scales_;
  std::vector<std::vector<WeightView>> views_;
};

struct Peer {
  const char* name = "";
  double us = 0;
};

// One weight, plain.
void Dense(CudaBench& bench, Backend& backend, int64_t m, int64_t n, int64_t k, Peer peer) {
  const std::string shape = absl::StrCat("m=", m, " n=", n, " k=", k);
  if (!bench.Wants("dense", shape)) return;
  const double bytes = static_cast<double>(n * k);
  const int copies = CopiesBeyondL2(bytes);
  const Fp8Weights weights(copies, 1, n, k, 1);
  const DeviceMemory x = RandomF32(m * k, 1, 3), out = Zeros(m * n * 4);
  const TensorView x_view(x.get(), DType::kF32, {m, k}), out_view(out.get(), DType::kF32, {m, n});
  bench.Run({.name = "dense",
             .shape = shape,
             .flops = 2.0 * static_cast<double>(m * n * k),
             .flops_max = kFp8Flops,
             .bytes = bytes + static_cast<double>(4 * m * (n + k)),
             .peer = peer.name,
             .peer_us = peer.us,
             .copies = copies},
            StreamOf(backend), [&](int i) {
              Check(backend.linear().Linear(
                  {.x = x_view, .w = weights[i % copies][0], .out = out_view}, {}));
            });
}

// The head, whose weights are bf16.
void Head(CudaBench& bench, Backend& backend, int64_t m) {
  const int64_t n = 129280, k = 7168;
  const std::string shape = absl::StrCat("m=", m, " n=", n, " k=", k);
  if (!bench.Wants("head", shape)) return;
  const DeviceMemory w = RandomBf16(n * k, 1, 1), x = RandomF32(m * k, 1, 3),
                     out = Zeros(m * n * 4);
  const TensorView x_view(x.get(), DType::kF32, {m, k}), out_view(out.get(), DType::kF32, {m, n});
  const WeightView weight{
      .data = w.get(), .dtype = DType::kBF16, .rows = n, .cols = k, .row_stride = k};
  bench.Run({.name = "head",
             .shape = shape,
             .flops = 2.0 * static_cast<double>(m * n * k),
             .flops_max = kBf16Flops,
             .bytes = static_cast<double>(2 * n * k + 4 * m * (n + k)),
             .copies = 1},
            StreamOf(backend), [&](int) {
              Check(backend.linear().Linear({.x = x_view, .w = weight, .out = out_view}, {}));
            });
}

// Gate, up and SwiGLU of one weight each.
void Gated(CudaBench& bench, Backend& backend, int64_t m, int64_t n, int64_t k) {
  const std::string shape = absl::StrCat("m=", m, " n=", n, " k=", k);
  if (!bench.Wants("gated", shape)) return;
  const double bytes = 2 * static_cast<double>(n * k);
  const int copies = CopiesBeyondL2(bytes);
  const Fp8Weights gates(copies, 1, n, k, 1), ups(copies, 1, n, k, 5);
  const DeviceMemory x = RandomF32(m * k, 1, 3), out = Zeros(m * n * 4);
  const TensorView x_view(x.get(), DType::kF32, {m, k}), out_view(out.get(), DType::kF32, {m, n});
  bench.Run(
      {.name = "gated",
       .shape = shape,
       .flops = 4.0 * static_cast<double>(m * n * k),
       .flops_max = kFp8Flops,
       .bytes = bytes + static_cast<double>(4 * m * (n + k)),
       .copies = copies},
      StreamOf(backend), [&](int i) {
        Check(backend.linear().GatedLinear(
            {.x = x_view, .gate = gates[i % copies][0], .up = ups[i % copies][0], .out = out_view},
            {}));
      });
}

// The first products of attention, q_a and kv_a, at once.
void Multi(CudaBench& bench, Backend& backend, int64_t m) {
  const int64_t q_rows = 1536, kv_rows = 576, k = 7168;
  const std::string shape = absl::StrCat("m=", m, " n=1536+576 k=7168");
  if (!bench.Wants("multi", shape)) return;
  const double bytes = static_cast<double>((q_rows + kv_rows) * k);
  const int copies = CopiesBeyondL2(bytes);
  const Fp8Weights q_a(copies, 1, q_rows, k, 1), kv_a(copies, 1, kv_rows, k, 5);
  const DeviceMemory x = RandomF32(m * k, 1, 3), q = Zeros(m * q_rows * 4),
                     kv = Zeros(m * kv_rows * 4);
  const TensorView x_view(x.get(), DType::kF32, {m, k});
  const TensorView outs[] = {TensorView(q.get(), DType::kF32, {m, q_rows}),
                             TensorView(kv.get(), DType::kF32, {m, kv_rows})};
  bench.Run(
      {.name = "multi",
       .shape = shape,
       .flops = 2 * static_cast<double>(m) * bytes,
       .flops_max = kFp8Flops,
       .bytes = bytes + static_cast<double>(4 * m * (q_rows + kv_rows + k)),
       .copies = copies},
      StreamOf(backend), [&](int i) {
        const WeightView weights[] = {q_a[i % copies][0], kv_a[i % copies][0]};
        Check(backend.linear().MultiLinear({.x = x_view, .weights = weights, .outs = outs}, {}));
      });
}

// `groups` experts of `m` rows each: gate, up and SwiGLU, or plain.
void Grouped(CudaBench& bench, Backend& backend, int groups, int64_t m, int64_t n, int64_t k,
             bool gated, Peer peer) {
  const std::string name = gated ? "grouped gated" : "grouped";
  const std::string shape = absl::StrCat("g=", groups, " m=", m, " n=", n, " k=", k);
  if (!bench.Wants(name, shape)) return;
  const double bytes = static_cast<double>(groups * n * k * (gated ? 2 : 1));
  const int copies = CopiesBeyondL2(bytes);
  const Fp8Weights weights(copies, groups, n, k, 1), ups(gated ? copies : 0, groups, n, k, 5);
  const int64_t rows = groups * m;
  const DeviceMemory x = RandomF32(rows * k, 1, 3), out = Zeros(rows * n * 4);
  std::vector<int32_t> ends;
  for (int g = 0; g <= groups; ++g) ends.push_back(static_cast<int32_t>(g * m));
  const DeviceMemory offsets = Upload(ends);
  const TensorView x_view(x.get(), DType::kF32, {rows, k});
  const TensorView out_view(out.get(), DType::kF32, {rows, n});
  const TensorView offsets_view(offsets.get(), DType::kI32, {groups + 1});
  bench.Run({.name = name,
             .shape = shape,
             .flops = 2.0 * static_cast<double>(rows * n * k) * (gated ? 2 : 1),
             .flops_max = kFp8Flops,
             .bytes = bytes + static_cast<double>(4 * rows * (n + k)),
             .peer = peer.name,
             .peer_us = peer.us,
             .copies = copies},
            StreamOf(backend), [&](int i) {
              const int copy = i % copies;
              Check(gated ? backend.linear().GroupedGatedLinear({.x = x_view,
                                                                 .gates = weights[copy],
                                                                 .ups = ups[copy],
                                                                 .offsets = offsets_view,
                                                                 .out = out_view},
                                                                {})
                          : backend.linear().GroupedLinear({.x = x_view,
                                                            .weights = weights[copy],
                                                            .offsets = offsets_view,
                                                            .out = out_view},
                                                           {}));
            });
}

// Gate and up of a slice's 9 experts as the engine asks for them: of so many tokens, each of which
// is a row of 8 experts in turn.
void Routed(CudaBench& bench, Backend& backend, int64_t tokens) {
  const int64_t slots = 9, top_k = 8, n = 2048, k = 7168, pairs = tokens * top_k;
  const std::string shape = absl::StrCat("t=", tokens, " top 8 of 9 n=", n, " k=", k);
  if (!bench.Wants("routed gated", shape)) return;
  const double bytes = static_cast<double>(2 * slots * n * k);
  const int copies = CopiesBeyondL2(bytes);
  const Fp8Weights weights(copies, slots, n, k, 1), ups(copies, slots, n, k, 5);
  const DeviceMemory x = RandomF32(tokens * k, 1, 3), out = Zeros(pairs * n * 4);
  std::vector<int32_t> ends(slots + 1), rows(pairs);
  for (int64_t pair = 0; pair < pairs; ++pair) ++ends[pair % slots + 1];
  std::partial_sum(ends.begin(), ends.end(), ends.begin());
  std::vector<int32_t> next(ends.begin(), ends.end() - 1);
  for (int64_t pair = 0; pair < pairs; ++pair) rows[pair] = next[pair % slots]++;
  const DeviceMemory offsets = Upload(ends), pair_rows = Upload(rows);
  bench.Run({.name = "routed gated",
             .shape = shape,
             .flops = 4.0 * static_cast<double>(pairs * n * k),
             .flops_max = kFp8Flops,
             .bytes = bytes + static_cast<double>(4 * (tokens * k + pairs * n)),
             .copies = copies},
            StreamOf(backend), [&](int i) {
              const int copy = i % copies;
              Check(backend.linear().GroupedGatedLinear(
                  {.x = TensorView(x.get(), DType::kF32, {tokens, k}),
                   .gates = weights[copy],
                   .ups = ups[copy],
                   .offsets = TensorView(offsets.get(), DType::kI32, {slots + 1}),
                   .out = TensorView(out.get(), DType::kF32, {pairs, n}),
                   .pair_rows = TensorView(pair_rows.get(), DType::kI32, {tokens, top_k})},
                  {}));
            });
}

// The better of DeepGEMM and cuBLASLt for the same product of quantised activations, measured on
// the same kind of card.
struct DenseShape {
  int64_t n, k;
  Peer at_1, at_16, at_64, at_128, at_256, at_1024, at_4096;
};
constexpr DenseShape kDense[] = {
    {2112,
     7168,
     {"DeepGEMM", 14.7},
     {"DeepGEMM", 11.7},
     {"DeepGEMM", 11.4},
     {"DeepGEMM", 12.9},
     {"DeepGEMM", 15.7},
     {"DeepGEMM", 34.0},
     {"DeepGEMM", 97.0}},
    {24576,
     1536,
     {"DeepGEMM", 16.3},
     {"cuBLASLt", 15.2},
     {"cuBLASLt", 14.5},
     {"cuBLASLt", 14.7},
     {"DeepGEMM", 22.2},
     {"DeepGEMM", 64.9},
     {"DeepGEMM", 240.7}},
    {7168,
     16384,
     {"DeepGEMM", 40.6},
     {"DeepGEMM", 36.7},
     {"DeepGEMM", 39.6},
     {"cuBLASLt", 42.7},
     {"cuBLASLt", 53.5},
     {"cuBLASLt", 197.0},
     {"DeepGEMM", 675.7}},
    {4096,
     7168,
     {"DeepGEMM", 17.3},
     {"DeepGEMM", 14.3},
     {"DeepGEMM", 13.7},
     {"DeepGEMM", 14.8},
     {"DeepGEMM", 19.6},
     {"DeepGEMM", 46.4},
     {"DeepGEMM", 173.3}},
    {7168,
     2048,
     {"DeepGEMM", 8.8},
     {"DeepGEMM", 8.5},
     {"DeepGEMM", 8.5},
     {"cuBLASLt", 9.4},
     {"cuBLASLt", 10.3},
     {"cuBLASLt", 31.8},
     {"DeepGEMM", 94.3}},
    {32768,
     512,
     {"DeepGEMM", 9.3},
     {"DeepGEMM", 9.4},
     {"DeepGEMM", 9.8},
     {"cuBLASLt", 10.2},
     {"DeepGEMM", 14.9},
     {"DeepGEMM", 38.3},
     {"DeepGEMM", 131.9}},
};

struct GroupedShape {
  int64_t m;
  Peer gate_up, down;
};
constexpr GroupedShape kGrouped[] = {
    {8, {"DeepGEMM", 74.3}, {"DeepGEMM", 40.0}},
    {32, {"DeepGEMM", 74.7}, {"DeepGEMM", 40.3}},
    {64, {"DeepGEMM", 74.8}, {"DeepGEMM", 40.6}},
    {128, {"DeepGEMM", 81.3}, {"DeepGEMM", 48.5}},
    {256, {"DeepGEMM", 114.0}, {"DeepGEMM", 70.0}},
    {4096, {"DeepGEMM", 1751.4}, {"DeepGEMM", 954.4}},
};

void RunAll(CudaBench& bench) {
  const std::unique_ptr<Backend> backend = MakeBackend();
  // Small products first: large ones leave the card hot, and its clock low.
  for (const DenseShape& s : kDense) {
    const struct {
      int64_t m;
      Peer peer;
    } sizes[] = {{1, s.at_1},   {8, {}},         {16, s.at_16},   {32, {}},
                 {64, s.at_64}, {128, s.at_128}, {256, s.at_256}, {512, {}}};
    for (const auto& size : sizes) Dense(bench, *backend, size.m, s.n, s.k, size.peer);
  }
  for (const int64_t m : {1, 8, 32, 64, 128, 256}) {
    Multi(bench, *backend, m);
    Gated(bench, *backend, m, 2048, 7168);   // the shared expert
    Gated(bench, *backend, m, 18432, 7168);  // a dense layer
    Dense(bench, *backend, m, 7168, 18432, Peer());
    Head(bench, *backend, m);
  }
  const auto grouped = [&](const GroupedShape& s) {
    Grouped(bench, *backend, 9, s.m, 2048, 7168, /*gated=*/true, s.gate_up);
    Grouped(bench, *backend, 9, s.m, 7168, 2048, /*gated=*/false, s.down);
  };
  for (const GroupedShape& s : kGrouped) {
    if (s.m <= 256) grouped(s);
  }
  // One expert of a GPU that holds but one.
  Grouped(bench, *backend, 1, 256, 2048, 7168, /*gated=*/true, {});
  Grouped(bench, *backend, 1, 256, 7168, 2048, /*gated=*/false, {});
  for (const int64_t tokens : {1, 8, 32, 64, 128, 256}) Routed(bench, *backend, tokens);
  for (const GroupedShape& s : kGrouped) {
    if (s.m > 256) grouped(s);
  }
  Routed(bench, *backend, 16384);
  for (const DenseShape& s : kDense) {
    Dense(bench, *backend, 1024, s.n, s.k, s.at_1024);
    Dense(bench, *backend, 4096, s.n, s.k, s.at_4096);
    Dense(bench, *backend, 16384, s.n, s.k, Peer());
  }
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) {
  sluice::bench::CudaBench bench(argc, argv);
  sluice::bench::RunAll(bench);
  return 0;
}
