// Products on the tensor cores by plans that are given: of groups, by every plan that they may
// take, at the size of a decode step's experts too; and many products one after the other by one
// TileLinear, whose scratch memory, flags and ticket they share.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/tile_linear_test_util.h"

namespace sluice {
namespace {

// One group's rows after the other's.
struct GroupCase {
  const char* name;
  std::vector<int32_t> sizes;
  int64_t n, k;

  std::vector<int32_t> offsets() const {
    std::vector<int32_t> ends = {0};
    for (const int32_t size : sizes) ends.push_back(ends.back() + size);
    return ends;
  }
};

void PrintTo(const GroupCase& c, std::ostream* os) { *os << c.name; }

OwnedTensor Offsets(const std::vector<int32_t>& ends) {
  return MakeI32({static_cast<int64_t>(ends.size())}, ends);
}

// Weights of each group, or one of a dense product, on both sides.
struct Weights {
  Weights(size_t count, int64_t n, int64_t k, CutNumbers* numbers, Device* gpu) {
    for (size_t i = 0; i < 2 * count; ++i) owned.push_back(numbers->Weight(n, k));
    for (size_t i = 0; i < 2 * count; ++i) {
      (i < count ? host : host_ups).push_back(owned[i].view);
      (i < count ? device : device_ups).push_back(gpu->Up(owned[i]));
    }
  }

  std::vector<OwnedWeight> owned;
  std::vector<WeightView> host, host_ups, device, device_ups;
};

// Rows on both sides of the edges of tiles, the first and the last of so many.
std::vector<int64_t> SomeRows(int64_t count) {
  std::vector<int64_t> rows;
  if (count == 0) return rows;
  for (const int64_t row : {int64_t{0}, int64_t{63}, int64_t{64}, int64_t{127}, int64_t{128},
                            int64_t{255}, int64_t{256}, count - 1}) {
    if (row < count && (rows.empty() || row > rows.back())) rows.push_back(row);
  }
  return rows;
}

// Those of each group, and where each group's begin among them.
std::pair<std::vector<int64_t>, std::vector<int32_t>> SomeRowsOfEach(const GroupCase& c) {
  const std::vector<int32_t> ends = c.offsets();
  std::vector<int64_t> rows;
  std::vector<int32_t> row_ends = {0};
  for (size_t g = 0; g < c.sizes.size(); ++g) {
    for (const int64_t row : SomeRows(c.sizes[g])) rows.push_back(ends[g] + row);
    row_ends.push_back(static_cast<int32_t>(rows.size()));
  }
  return {rows, row_ends};
}

// --- groups ---

class GroupedPlansTest : public CudaOpsTest, public testing::WithParamInterface<GroupCase> {};

// Against the CPU for some rows of each group, and for all rows among plans: a step's sum is the
// same in all of them, they only add the steps in other orders. Gated also from x as it is before
// it is permuted: each row goes to places of its own, as the engine's experts have it.
TEST_P(GroupedPlansTest, EveryPlanComputesTheSame) {
  const GroupCase& c = GetParam();
  const std::vector<int32_t> ends = c.offsets();
  const int64_t used = ends.back(), rows = used + 10;
  Device fast(Numerics::kFast);
  const CudaContext context = ContextOf(fast);
  CutNumbers numbers(Seed());
  const Weights weights(c.sizes.size(), c.n, c.k, &numbers, &fast);

  // Tokens in two places each, some in one or none.
  const int64_t token_count = used / 2 + 3;
  const OwnedTensor tokens(DType::kF32, {token_count, c.k}), x(DType::kF32, {rows, c.k});
  numbers.Fill(tokens, token_count);
  numbers.Fill(x, rows);
  std::vector<int32_t> places(used);
  std::iota(places.begin(), places.end(), 0);
  std::mt19937 random(Seed());
  std::shuffle(places.begin(), places.end(), random);
  places.resize(token_count * 2, -1);
  for (int64_t i = 0; i < token_count * 2; ++i) {
    if (places[i] < 0) continue;
    std::copy_n(tokens.view().Row<float>(i / 2), c.k, x.view().Row<float>(places[i]));
  }

  const auto [compared, compared_ends] = SomeRowsOfEach(c);
  const int64_t count = static_cast<int64_t>(compared.size());
  const OwnedTensor rounded = Quantized(Some(x, compared), count, c.k);
  const OwnedTensor host_offsets = Offsets(compared_ends);
  const OwnedTensor plain(DType::kF32, {count, c.n}), gated(DType::kF32, {count, c.n});
  ASSERT_TRUE(
      cpu_->linear()
          .GroupedLinear({rounded.view(), weights.host, host_offsets.view(), plain.view()}, {})
          .ok());
  ASSERT_TRUE(cpu_->linear()
                  .GroupedGatedLinear({rounded.view(), weights.host, weights.host_ups,
                                       host_offsets.view(), gated.view()},
                                      {})
                  .ok());

  const OwnedTensor poisoned(DType::kF32, {rows, c.n});
  const TensorView device_x = fast.Up(x), device_tokens = fast.Up(tokens);
  const TensorView device_offsets = fast.Up(Offsets(ends)), out = fast.Up(poisoned);
  const TensorView device_places = fast.Up(MakeI32({token_count, 2}, places));
  const auto poison = [&] {
    return fast.backend().CopyToDevice(out.data, poisoned.data<void>(),
                                       static_cast<size_t>(poisoned.size()) * 4, {});
  };
  constexpr double kAmongPlans = 1e-3;
  std::optional<OwnedTensor> of_first_plan[2];
  for (const cuda::TilePlan& plan : GroupedPlans()) {
    TileLinear tiles(context, DType::kF8E4M3);
    for (const bool has_up : {false, true}) {
      SCOPED_TRACE(testing::Message() << PlanName(plan) << (has_up ? ", gated" : ""));
      OwnedTensor first;
      for (int run = 0; run < 2; ++run) {
        SCOPED_TRACE(testing::Message() << "run " << run);
        ASSERT_TRUE(poison().ok());
        TileProduct product{
            .x = device_x, .weights = weights.device, .offsets = device_offsets, .outs = {&out, 1}};
        if (has_up) product.ups = weights.device_ups;
        if (has_up && run == 1) {
          product.x = device_tokens;
          product.pair_rows = device_places;
        }
        ASSERT_TRUE(tiles.Takes(product));
        const absl::Status status = tiles.Run(product, plan);
        ASSERT_TRUE(status.ok()) << status;
        OwnedTensor got = fast.Down(out);
        ExpectOnlyWritten(got, used);
        if (run == 0) {
          first = std::move(got);
        } else {
          EXPECT_EQ(std::memcmp(first.data<void>(), got.data<void>(), got.size() * 4), 0)
              << "not the same in every run";
          ExpectRowsClose(first, got, used, 1e-9, 1e-9);  // says where
        }
      }
      ExpectRowsClose(has_up ? gated : plain, Some(first, compared), count, kTensorCoreRowError,
                      kTensorCoreElementError);
      std::optional<OwnedTensor>& other = of_first_plan[has_up];
      if (!other.has_value()) {
        other = std::move(first);
      } else {
        ExpectRowsClose(*other, first, used, kAmongPlans, 20 * kAmongPlans);
      }
    }
  }
  // By the plan that is chosen for it, too.
  SCOPED_TRACE("the plan that is chosen for it");
  ASSERT_TRUE(poison().ok());
  TileLinear tiles(context, DType::kF8E4M3);
  const TileProduct product{.x = device_x,
                            .weights = weights.device,
                            .ups = weights.device_ups,
                            .offsets = device_offsets,
                            .outs = {&out, 1}};
  const absl::Status status = tiles.Run(product);
  ASSERT_TRUE(status.ok()) << status;
  const OwnedTensor got = fast.Down(out);
  ExpectOnlyWritten(got, used);
  ExpectRowsClose(*of_first_plan[1], got, used, kAmongPlans, 20 * kAmongPlans);
}

// On 132 multiprocessors: tiles that two to four units share; whole tiles first, and then shared
// ones; the gate and up of a decode step's nine experts, which whole tiles in turn and shared ones
// make up, and what is left of it where experts differ.
INSTANTIATE_TEST_SUITE_P(
    Groups, GroupedPlansTest,
    testing::Values(
        GroupCase{"uneven", {130, 0, 1, 300, 77}, 1000, 2048},
        GroupCase{"waves", {64, 200, 0, 65, 129, 1, 256, 33}, 2112, 2048},
        GroupCase{"decode_experts", std::vector<int32_t>(9, 128), 2048, 7168},
        GroupCase{"uneven_decode_experts", {128, 127, 129, 64, 0, 128, 256, 1, 140}, 2048, 7168}),
    [](const auto& info) { return std::string(info.param.name); });

// --- one after the other ---

struct Step {
  TileProduct Product() const {
    TileProduct product{.x = x, .weights = weights->device, .offsets = offsets, .outs = {&out, 1}};
    if (gated) product.ups = weights->device_ups;
    return product;
  }
  absl::Status RunBy(TileLinear* tiles) const {
    return plan.has_value() ? tiles->Run(Product(), *plan) : tiles->RunOnCublasLt(Product());
  }

  std::string name;
  const Weights* weights = nullptr;
  bool gated = false;
  std::optional<cuda::TilePlan> plan = {};  // none: cuBLASLt
  TensorView x = {}, offsets = {}, out = {};
  TensorView room = {};    // out, and rows behind
  int64_t used = 0;        // rows of out
  OwnedTensor alone = {};  // what it gives by a TileLinear of its own
};

// Holds up a stream until Go, so that what is queued meanwhile follows without a gap; for two
// seconds at most.
class StreamGate {
 public:
  cudaError_t Close(cudaStream_t stream) {
    return cudaLaunchHostFunc(
        stream,
        [](void* gate) {
          const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
          while (!static_cast<StreamGate*>(gate)->open_ && std::chrono::steady_clock::now() < end) {
            std::this_thread::yield();
          }
        },
        this);
  }
  void Go() { open_ = true; }

 private:
  std::atomic<bool> open_ = false;
};

using TileSequenceTest = CudaOpsTest;

// A flag, a number, or sums that one product leaves behind, or reads or overwrites too early, are
// another's mistake.
TEST_F(TileSequenceTest, ProductsInARowAreThoseOfEachAlone) {
  constexpr int kRounds = 4;
  Device fast(Numerics::kFast);
  const CudaContext context = ContextOf(fast);
  Backend& backend = fast.backend();
  CutNumbers numbers(Seed());
  std::mt19937 random(Seed());
  const std::vector<GroupCase> cases = {// Without a name: dense.
                                        {"", {1}, 260, 1536},
                                        {"", {64}, 2112, 1024},
                                        {"", {65}, 64, 1024},
                                        {"", {128}, 1000, 2048},
                                        {"", {300}, 1008, 512},
                                        {"groups", {130, 0, 1, 300, 77}, 520, 2048},
                                        {"experts", {9, 40, 3, 64, 0, 12, 30, 1, 17}, 1000, 1024}};
  std::vector<Weights> weights;
  for (const GroupCase& c : cases) {
    weights.emplace_back(c.sizes.size(), c.n, c.k, &numbers, &fast);
  }

  std::vector<Step> steps;
  for (size_t i = 0; i < cases.size(); ++i) {
    const GroupCase& c = cases[i];
    const bool grouped = *c.name != '\0';
    const std::vector<int32_t> ends = c.offsets();
    const int64_t used = ends.back(), rows = used + 4;
    const auto [compared, compared_ends] = SomeRowsOfEach(c);
    const int64_t count = static_cast<int64_t>(compared.size());
    const OwnedTensor host_offsets = Offsets(compared_ends);
    const TensorView device_offsets = fast.Up(Offsets(ends));
    const OwnedTensor poisoned(DType::kF32, {rows, c.n});

    std::vector<std::optional<cuda::TilePlan>> plans;
    for (const cuda::TilePlan& plan : grouped ? GroupedPlans() : DensePlans()) {
      plans.push_back(plan);
    }
    plans.push_back(std::nullopt);
    for (const std::optional<cuda::TilePlan>& plan : plans) {
      // Dense ones of either kind.
      const bool either = random() % 2 == 0;
      for (const bool gated : {false, true}) {
        if (!grouped && plan.has_value() && gated != either) continue;
        const OwnedTensor x(DType::kF32, {rows, c.k});
        numbers.Fill(x, rows);
        const TensorView room = fast.Up(poisoned), device_x = fast.Up(x);
        Step step{.name = absl::StrCat(c.name, " ", used, " x ", c.n, " x ", c.k,
                                       gated ? " gated, " : ", ",
                                       plan.has_value() ? PlanName(*plan) : "cuBLASLt"),
                  .weights = &weights[i],
                  .gated = gated,
                  .plan = plan,
                  .x = grouped ? device_x : device_x.Prefix(used),
                  .offsets = grouped ? device_offsets : TensorView(),
                  .out = grouped ? room : room.Prefix(used),
                  .room = room,
                  .used = used};
        SCOPED_TRACE(step.name);
        TileLinear tiles(context, DType::kF8E4M3);
        if (!plan.has_value() && !tiles.CublasLtTakes(step.Product())) continue;
        const absl::Status status = step.RunBy(&tiles);
        ASSERT_TRUE(status.ok()) << status;
        step.alone = fast.Down(room);
        ExpectOnlyWritten(step.alone, used);

        const OwnedTensor rounded = Quantized(Some(x, compared), count, c.k);
        const OwnedTensor wanted(DType::kF32, {count, c.n});
        const absl::Status on_cpu =
            gated ? cpu_->linear().GroupedGatedLinear(
                        {rounded.view(), weights[i].host, weights[i].host_ups, host_offsets.view(),
                         wanted.view()},
                        {})
                  : cpu_->linear().GroupedLinear(
                        {rounded.view(), weights[i].host, host_offsets.view(), wanted.view()}, {});
        ASSERT_TRUE(on_cpu.ok()) << on_cpu;
        ExpectRowsClose(wanted, Some(step.alone, compared), count, kTensorCoreRowError,
                        kTensorCoreElementError);
        steps.push_back(std::move(step));
      }
    }
  }
  ASSERT_FALSE(HasFailure()) << "single products are wrong already";

  TileLinear tiles(context, DType::kF8E4M3);
  std::vector<size_t> order(steps.size());
  std::iota(order.begin(), order.end(), 0);
  for (int round = 0; round < kRounds; ++round) {
    SCOPED_TRACE(testing::Message() << "round " << round);
    for (const Step& step : steps) {
      const OwnedTensor poisoned(DType::kF32, {step.room.dims[0], step.room.dims[1]});
      const size_t bytes = static_cast<size_t>(poisoned.size()) * 4;
      ASSERT_TRUE(backend.CopyToDevice(step.room.data, poisoned.data<void>(), bytes, {}).ok());
      ASSERT_TRUE(backend.Sync({}).ok());
    }
    // In the first round scratch memory still grows and tables are made, which waits.
    StreamGate gate;
    if (round > 0) {
      std::shuffle(order.begin(), order.end(), random);
      ASSERT_EQ(gate.Close(context.stream), cudaSuccess);
    }
    absl::Status status;
    for (size_t at = 0; at < order.size() && status.ok(); ++at) {
      status = steps[order[at]].RunBy(&tiles);
    }
    gate.Go();
    const absl::Status end = backend.Sync({});  // before the gate goes
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(end.ok()) << end;
    for (size_t at = 0; at < order.size(); ++at) {
      const Step& step = steps[order[at]];
      const OwnedTensor got = fast.Down(step.room);
      const size_t bytes = static_cast<size_t>(got.size()) * 4;
      if (std::memcmp(step.alone.data<void>(), got.data<void>(), bytes) == 0) continue;
      SCOPED_TRACE(testing::Message()
                   << step.name << ", number " << at << ", behind "
                   << (at == 0 ? "nothing" : steps[order[at - 1]].name.c_str()) << ", before "
                   << (at + 1 == order.size() ? "nothing" : steps[order[at + 1]].name.c_str()));
      ExpectOnlyWritten(got, step.used);
      // Whether cuBLASLt takes the same algorithm for another handle is its own affair.
      const double error = step.plan.has_value() ? 1e-9 : 1e-3;
      ExpectRowsClose(step.alone, got, step.used, error, 50 * error);
      EXPECT_FALSE(step.plan.has_value()) << "not bit for bit what it gives alone";
    }
    if (HasFailure()) break;
  }
}

}  // namespace
}  // namespace sluice
