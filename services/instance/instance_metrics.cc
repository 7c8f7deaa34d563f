#include "services/instance/instance_metrics.h"

#include "absl/strings/str_cat.h"
#include "kernels/ops/attention.h"

namespace sluice::instance {

// Counters rise by what the core has counted since the last Update.
class InstanceMetrics::Rising {
 public:
  Rising(Metrics* metrics, const std::string& name, const std::string& help,
         const MetricLabels& labels = {})
      : counter_(metrics->Counter(name, help, labels)) {}
  void Set(int64_t sum) {
    counter_.Increment(static_cast<double>(sum - seen_));
    seen_ = sum;
  }

 private:
  prometheus::Counter& counter_;
  int64_t seen_ = 0;
};

struct InstanceMetrics::Prefill {
  explicit Prefill(Metrics* m)
      : queue_requests(m->Gauge("sluice_prefill_queue_requests", "Requests without a slot")),
        queue_tokens(m->Gauge("sluice_prefill_queue_tokens", "Prompt tokens not computed yet")),
        running_requests(m->Gauge("sluice_prefill_running_requests", "Requests with a slot")),
        step_seconds(m->Histogram("sluice_prefill_step_seconds", "Time of one step", kStepBuckets)),
        batch_tokens(m->Histogram("sluice_prefill_batch_tokens", "Prompt tokens of one step",
                                  kTokenBuckets)),
        computed(m, "sluice_prefill_tokens_total", "Prompt tokens", {{"kind", "computed"}}),
        cached(m, "sluice_prefill_tokens_total", "Prompt tokens", {{"kind", "cached"}}) {}
  prometheus::Gauge &queue_requests, &queue_tokens, &running_requests;
  prometheus::Histogram &step_seconds, &batch_tokens;
  Rising computed, cached;
};

struct InstanceMetrics::Decode {
  explicit Decode(Metrics* m)
      : slots_used(m->Gauge("sluice_decode_slots_used", "Slots taken")),
        slots_total(m->Gauge("sluice_decode_slots_total", "Slots there are")),
        running_requests(m->Gauge("sluice_decode_running_requests", "Requests with a slot")),
        waiting_kv(m->Gauge("sluice_decode_waiting_kv_requests",
                            "Requests whose KV or first token has not come yet")),
        step_seconds(m->Histogram("sluice_decode_step_seconds", "Time of one step", kStepBuckets)),
        batch_size(
            m->Histogram("sluice_decode_batch_size", "Tokens sampled by one step", kTokenBuckets)),
        tokens(m, "sluice_decode_tokens_total", "Tokens sampled"),
        preemptions(m, "sluice_decode_preemptions_total",
                    "Requests that lost their pages to others") {}
  prometheus::Gauge &slots_used, &slots_total, &running_requests, &waiting_kv;
  prometheus::Histogram &step_seconds, &batch_size;
  Rising tokens, preemptions;
};

struct InstanceMetrics::Kv {
  explicit Kv(Metrics* m)
      : pages(m->Gauge("sluice_kv_pages", "Pages there are")),
        used(m->Gauge("sluice_kv_pages_used", "Pages that requests hold")),
        cached(m->Gauge("sluice_kv_pages_cached", "Pages kept for their prefix alone")),
        quarantined(m->Gauge("sluice_kv_pages_quarantined", "Pages that wait for a fence")),
        inflight(m->Gauge("sluice_kv_transfer_inflight", "Transfers that have not ended")),
        transfer_seconds(m->Histogram("sluice_kv_transfer_seconds",
                                      "From the first write to the last one's verification",
                                      kTransferBuckets, {{"direction", "receive"}})),
        bytes(m, "sluice_kv_transfer_bytes_total", "KV moved", {{"direction", "receive"}}),
        failures(m, "sluice_kv_transfer_failures_total", "Transfers that failed or came too late"),
        query_tokens(m, "sluice_kv_prefix_query_tokens_total", "Tokens looked up in the cache"),
        hit_tokens(m, "sluice_kv_prefix_hit_tokens_total", "Tokens found in the cache") {}
  prometheus::Gauge &pages, &used, &cached, &quarantined, &inflight;
  prometheus::Histogram& transfer_seconds;
  Rising bytes, failures, query_tokens, hit_tokens;
};

struct InstanceMetrics::Requests {
  Requests(const std::string& role, Metrics* m)
      : admitted(m, absl::StrCat("sluice_", role, "_admitted_total"), "Attempts taken"),
        refused(m, absl::StrCat("sluice_", role, "_refused_total"), "Attempts not taken"),
        cancelled(m, absl::StrCat("sluice_", role, "_cancelled_total"), "Attempts cancelled"),
        kv_failed(Ended(role, "kv_failed", m)),
        handed_back(Ended(role, "handed_back", m)),
        deadline(Ended(role, "deadline", m)),
        engine(Ended(role, "engine", m)),
        other(Ended(role, "other", m)) {}
  static Rising Ended(const std::string& role, const char* reason, Metrics* m) {
    return Rising(m, absl::StrCat("sluice_", role, "_ended_total"),
                  "Attempts ended here without finishing the request", {{"reason", reason}});
  }
  Rising admitted, refused, cancelled;
  Rising kv_failed, handed_back, deadline, engine, other;
};

// The names that dashboards and gateways made for vLLM look for.
struct InstanceMetrics::Vllm {
  explicit Vllm(Metrics* m)
      : running(m->Gauge("vllm:num_requests_running", "Requests with a slot")),
        waiting(m->Gauge("vllm:num_requests_waiting", "Requests without a slot")),
        kv_usage(m->Gauge("vllm:kv_cache_usage_perc", "Share of KV pages in use, 0 to 1")),
        queries(m, "vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache"),
        hits(m, "vllm:prefix_cache_hits_total", "Tokens found in the prefix cache"),
        prompt_tokens(m, "vllm:prompt_tokens_total", "Prompt tokens, computed or cached"),
        generation_tokens(m, "vllm:generation_tokens_total", "Tokens sampled"),
        preemptions(m, "vllm:num_preemptions_total", "Requests that lost their pages to others"),
        stop(m, "vllm:request_success_total", "Requests ended", {{"finished_reason", "stop"}}),
        length(m, "vllm:request_success_total", "Requests ended", {{"finished_reason", "length"}}) {
  }
  prometheus::Gauge &running, &waiting, &kv_usage;
  Rising queries, hits, prompt_tokens, generation_tokens, preemptions, stop, length;
};

InstanceMetrics::InstanceMetrics(const std::string& role, const v1::Capacity& capacity,
                                 Metrics* metrics)
    : metrics_(metrics),
      capacity_(capacity),
      kv_(std::make_unique<Kv>(metrics)),
      requests_(std::make_unique<Requests>(role, metrics)),
      vllm_(std::make_unique<Vllm>(metrics)) {
  if (role != "decode") prefill_ = std::make_unique<Prefill>(metrics);
  if (role != "prefill") {
    decode_ = std::make_unique<Decode>(metrics);
    decode_->slots_total.Set(capacity.slots());
  }
  kv_->pages.Set(static_cast<double>(capacity.kv_pages()));
  metrics
      ->Gauge("vllm:cache_config_info", "Always 1",
              {{"block_size", absl::StrCat(kPageTokens)},
               {"num_gpu_blocks", absl::StrCat(capacity.kv_pages())}})
      .Set(1);
}

InstanceMetrics::~InstanceMetrics() = default;

void InstanceMetrics::OnStep(absl::Duration duration, int64_t prompt_tokens,
                             int64_t output_tokens) {
  const double seconds = absl::ToDoubleSeconds(duration);
  if (prefill_ != nullptr) {
    prefill_->step_seconds.Observe(seconds);
    prefill_->batch_tokens.Observe(static_cast<double>(prompt_tokens));
  }
  if (decode_ != nullptr) {
    decode_->step_seconds.Observe(seconds);
    decode_->batch_size.Observe(static_cast<double>(output_tokens));
  }
}

void InstanceMetrics::OnKvReceived(absl::Duration duration) {
  kv_->transfer_seconds.Observe(absl::ToDoubleSeconds(duration));
}

MemoryUse UseOf(const DeviceMemory& memory) {
  MemoryUse use;
  for (const auto& [what, bytes] : memory.taken) {
    const bool is_weights = what == "weights" || what == "kv_b in bf16";
    (is_weights ? use.weights : what == "KV cache" ? use.kv : use.activations) += bytes;
  }
  return use;
}

void InstanceMetrics::SetMemory(const MemoryUse& use) {
  const std::pair<const char*, uint64_t> kinds[] = {
      {"weights", use.weights}, {"kv", use.kv}, {"activations", use.activations}};
  for (const auto& [kind, bytes] : kinds) {
    metrics_
        ->Gauge("sluice_device_memory_bytes", "Of the GPU's memory, what the instance has",
                {{"kind", kind}})
        .Set(static_cast<double>(bytes));
  }
}

void InstanceMetrics::UpdateKernels(const std::vector<KernelCalls::Entry>& calls) {
  for (size_t i = 0; i < calls.size(); ++i) {
    if (i == kernels_.size()) {
      kernels_.emplace_back(metrics_, "sluice_kernel_calls_total",
                            "Calls of an op that a kernel served; replays of recorded steps count",
                            MetricLabels{{"op", calls[i].op}, {"kernel", calls[i].kernel}});
    }
    kernels_[i].Set(calls[i].calls);
  }
}

void InstanceMetrics::Update(const InstanceCore& core, const v1::Heartbeat& heartbeat) {
  const CoreCounters& sums = core.counters();
  const v1::Load& load = heartbeat.load();
  const double running = load.running();
  const double waiting = load.waiting();
  if (prefill_ != nullptr) {
    prefill_->queue_requests.Set(waiting);
    prefill_->queue_tokens.Set(static_cast<double>(load.waiting_tokens()));
    prefill_->running_requests.Set(running);
    prefill_->computed.Set(sums.prompt_tokens_computed);
    prefill_->cached.Set(sums.prompt_tokens_cached);
  }
  if (decode_ != nullptr) {
    const double waiting_kv = static_cast<double>(core.num_waiting_kv());
    decode_->slots_used.Set(running);
    decode_->running_requests.Set(running - waiting_kv);
    decode_->waiting_kv.Set(waiting_kv);
    decode_->tokens.Set(sums.output_tokens);
    decode_->preemptions.Set(static_cast<int64_t>(load.preemptions()));
  }
  const double total = static_cast<double>(capacity_.kv_pages());
  const double used = total - static_cast<double>(load.kv_pages_free());
  const int64_t prompt_tokens = sums.prompt_tokens_computed + sums.prompt_tokens_cached;
  kv_->used.Set(used);
  kv_->cached.Set(static_cast<double>(load.kv_pages_cached()));
  kv_->quarantined.Set(static_cast<double>(load.kv_pages_quarantined()));
  kv_->inflight.Set(static_cast<double>(core.num_transfers() + core.num_leases()));
  kv_->bytes.Set(sums.kv_bytes_received);
  kv_->failures.Set(sums.kv_failures);
  kv_->query_tokens.Set(prompt_tokens);
  kv_->hit_tokens.Set(sums.prompt_tokens_cached);

  requests_->admitted.Set(sums.admitted);
  requests_->refused.Set(sums.refused);
  requests_->cancelled.Set(sums.cancelled);
  requests_->kv_failed.Set(sums.ended_kv_failed);
  requests_->handed_back.Set(sums.ended_handed_back);
  requests_->deadline.Set(sums.ended_deadline);
  requests_->engine.Set(sums.ended_engine);
  requests_->other.Set(sums.ended_other);

  vllm_->running.Set(running);
  vllm_->waiting.Set(waiting);
  vllm_->kv_usage.Set(total > 0 ? used / total : 0);
  vllm_->queries.Set(prompt_tokens);
  vllm_->hits.Set(sums.prompt_tokens_cached);
  vllm_->prompt_tokens.Set(prompt_tokens);
  vllm_->generation_tokens.Set(sums.output_tokens);
  vllm_->preemptions.Set(static_cast<int64_t>(load.preemptions()));
  vllm_->stop.Set(sums.finished_stop);
  vllm_->length.Set(sums.finished_length);
}

}  // namespace sluice::instance
