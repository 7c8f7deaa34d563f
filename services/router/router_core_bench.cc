// What a request costs the core's thread. The bar: a decision under 0.2 ms p50 for a prompt of
// 100,000 tokens (1,562 full pages) with a million pages in the index.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "services/router/prefix_index.h"
#include "services/router/router_core.h"

namespace sluice::router {
namespace {

constexpr int64_t kIndexedPages = 1 << 20;
constexpr absl::Duration kTick = absl::Milliseconds(50);

std::string RandomHashes(int64_t count, std::mt19937_64* rng) {
  std::string hashes(count * kPageHashBytes, '\0');
  for (size_t at = 0; at < hashes.size(); at += sizeof(uint64_t)) {
    const uint64_t bits = (*rng)();
    std::memcpy(hashes.data() + at, &bits, sizeof(bits));
  }
  return hashes;
}

class NullBus final : public WorkerBus {
 public:
  void End(WorkerId, const absl::Status&) override {}
  void Send(WorkerId, v1::RouterMessage message) override {
    bytes += message.admit().prompt_ids_size();
  }
  int64_t bytes = 0;
};

class NullSink final : public GenerationSink {
 public:
  void OnOutput(const Output& output) override { tokens += output.token_ids.size(); }
  void OnError(const absl::Status&) override {}
  int64_t tokens = 0;
};

class TimingProbe final : public RouterProbe {
 public:
  void OnDecisionBegin() override { begin_ = std::chrono::steady_clock::now(); }
  void OnDecisionEnd() override {
    const std::chrono::duration<double, std::micro> took =
        std::chrono::steady_clock::now() - begin_;
    micros.push_back(took.count());
  }
  double Percentile(double p) {
    std::sort(micros.begin(), micros.end());
    return micros.empty() ? 0
                          : micros[static_cast<size_t>(p * static_cast<double>(micros.size() - 1))];
  }
  std::vector<double> micros;

 private:
  std::chrono::steady_clock::time_point begin_;
};

// A core with prefills and decodes, and an index as full as it gets.
struct Cluster {
  Cluster(int64_t pairs, int64_t prompt_tokens, bool indexed)
      : core({.router = "r", .model_hash = "m"}, &bus, &probe) {
    std::mt19937_64 rng(1);
    const int64_t pages = prompt_tokens / kPageTokens;
    const int64_t count = indexed && pages > 0 ? kIndexedPages / pages : 16;
    for (int64_t i = 0; i < count; ++i) {
      auto prompt = std::make_shared<Prompt>();
      prompt->ids.resize(prompt_tokens, 1000);
      prompt->page_hashes = RandomHashes(pages, &rng);
      prompt->page_hash_seed = std::string(16, 's');
      prompts.push_back(prompt);
    }
    for (int64_t i = 0; i < 2 * pairs; ++i) {
      v1::Hello hello;
      hello.set_protocol_version(v1::PROTOCOL_VERSION_CURRENT);
      hello.set_instance("worker-" + std::to_string(i));
      hello.set_role(i < pairs ? v1::ROLE_PREFILL : v1::ROLE_DECODE);
      hello.set_model_hash("m");
      hello.mutable_capacity()->set_slots(1 << 20);
      hello.mutable_capacity()->set_kv_pages(kIndexedPages);
      hello.mutable_capacity()->set_positions(1 << 20);
      hello.mutable_capacity()->set_step_tokens(1 << 20);
      if (!core.OnWorkerHello(Id(i), hello, now).ok()) std::abort();
      Beat(i);
      v1::WorkerMessage events;
      events.mutable_kv_events()->set_snapshot(true);
      // Every prompt is known to every second worker, half of its pages to the others.
      for (size_t p = 0; indexed && p < prompts.size(); ++p) {
        const std::string& hashes = prompts[p]->page_hashes;
        const size_t part =
            (p + i) % 2 == 0 ? hashes.size() : hashes.size() / 2 / kPageHashBytes * kPageHashBytes;
        events.mutable_kv_events()->mutable_stored_hashes()->append(hashes, 0, part);
      }
      core.OnWorkerMessage(Id(i), events, now);
    }
  }

  static WorkerId Id(int64_t worker) { return static_cast<WorkerId>(worker + 1); }

  void Beat(int64_t worker) {
    v1::WorkerMessage beat;
    beat.mutable_heartbeat()->set_ready(true);
    beat.mutable_heartbeat()->mutable_load()->set_kv_pages_free(kIndexedPages);
    beat.mutable_heartbeat()->mutable_load()->set_prompt_speed(1e9);
    core.OnWorkerMessage(Id(worker), beat, now);
  }

  RequestId Submit(size_t prompt, GenerationSink* sink) {
    GenerationRequest request;
    request.prompt = prompts[prompt % prompts.size()];
    request.sampling.set_max_tokens(32);
    request.sampling.set_num_logprobs(-1);
    const auto id = core.Submit(std::move(request), sink, now);
    if (!id.ok()) std::abort();
    return *id;
  }

  absl::Time now = absl::FromUnixSeconds(1'000'000'000);
  std::vector<std::shared_ptr<const Prompt>> prompts;
  NullBus bus;
  TimingProbe probe;
  RouterCore core;
};

// The decision alone, as the probe sees it; the whole of Submit and Cancel is the benchmark's time.
void BM_Decision(benchmark::State& state) {
  Cluster cluster(state.range(0), state.range(1), /*indexed=*/true);
  cluster.probe.micros.clear();
  NullSink sink;
  size_t next = 0;
  for (auto _ : state) {
    const RequestId id = cluster.Submit(next, &sink);
    cluster.core.Cancel(id, cluster.now);
    next += 7;  // no prompt's pages are in the processor's caches any more
  }
  state.counters["decision_p50_us"] = cluster.probe.Percentile(0.5);
  state.counters["decision_p99_us"] = cluster.probe.Percentile(0.99);
  state.counters["index_pages"] = static_cast<double>(cluster.core.Snapshot().indexed_pages);
}
BENCHMARK(BM_Decision)
    ->ArgNames({"pairs", "prompt"})
    ->Args({2, 100'000})
    ->Args({8, 100'000})
    ->Args({64, 100'000})
    ->Args({8, 2'000})
    ->Unit(benchmark::kMicrosecond);

// From Submit to the end of an answer of 32 tokens: what one request costs in all.
void BM_WholeRequest(benchmark::State& state) {
  Cluster cluster(2, 100, /*indexed=*/false);
  NullSink sink;
  for (auto _ : state) {
    const RequestId id = cluster.Submit(0, &sink);
    // Of equals the one with fewest placements: requests take turns.
    const WorkerId turn = (id + 1) % 2;
    const WorkerId prefill = Cluster::Id(static_cast<int64_t>(turn));
    const WorkerId decode = Cluster::Id(static_cast<int64_t>(turn) + 2);
    v1::WorkerMessage message;
    message.mutable_leased()->set_request(id);
    message.mutable_leased()->set_attempt(1);
    cluster.core.OnWorkerMessage(decode, message, cluster.now);
    const auto tokens = [&](WorkerId worker, uint32_t first, bool last) {
      v1::RequestTokens* step = message.mutable_step_tokens()->add_requests();
      step->set_request(id);
      step->set_attempt(1);
      step->set_first_output(first);
      step->add_token_ids(7);
      if (last) step->set_finish(v1::FINISH_LENGTH);
      cluster.core.OnWorkerMessage(worker, message, cluster.now);
      message.clear_step_tokens();
    };
    tokens(prefill, 0, false);
    message.mutable_kv_ready()->set_request(id);
    message.mutable_kv_ready()->set_attempt(1);
    cluster.core.OnWorkerMessage(decode, message, cluster.now);
    for (uint32_t i = 1; i < 32; ++i) tokens(decode, i, i == 31);
  }
  if (!cluster.core.idle()) state.SkipWithError("requests did not end");
  state.counters["tokens"] = static_cast<double>(sink.tokens);
}
BENCHMARK(BM_WholeRequest)->Unit(benchmark::kMicrosecond);

// With 10,000 streams open, none of which is due.
void BM_Tick(benchmark::State& state) {
  Cluster cluster(8, 100, /*indexed=*/false);
  NullSink sink;
  for (int i = 0; i < 10'000; ++i) cluster.Submit(0, &sink);
  for (auto _ : state) {
    cluster.now += kTick;
    for (int worker = 0; worker < 16; ++worker) cluster.Beat(worker);
    cluster.core.OnTick(cluster.now);
  }
}
BENCHMARK(BM_Tick)->Unit(benchmark::kMicrosecond);

// Memory and time of the index at its bound.
void BM_IndexStore(benchmark::State& state) {
  std::mt19937_64 rng(1);
  const std::string hashes = RandomHashes(kIndexedPages, &rng);
  int64_t bytes = 0;
  for (auto _ : state) {
    PrefixIndex index(kIndexedPages);
    index.Reserve(kIndexedPages);
    index.Store(*index.AddWorker(), hashes);
    bytes = index.capacity_bytes();
  }
  state.counters["megabytes"] = static_cast<double>(bytes) / 1e6;
  state.SetItemsProcessed(state.iterations() * kIndexedPages);
}
BENCHMARK(BM_IndexStore)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace sluice::router
