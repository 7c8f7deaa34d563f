#include "services/router/router_metrics.h"

#include <algorithm>
#include <map>
#include <utility>

#include "services/router/api_error.h"

namespace sluice::router {
namespace {

const MetricBuckets kRatioBuckets = {0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99};
constexpr std::array<const char*, 4> kPhases = {"queue", "prefill", "transfer", "decode"};
constexpr std::array<const char*, 4> kRoles = {"unknown", "prefill", "decode", "mixed"};

void Observe(prometheus::Histogram& histogram, absl::Duration duration) {
  histogram.Observe(absl::ToDoubleSeconds(duration));
}

}  // namespace

RouterMetrics::RouterMetrics(Metrics* m, const Clock* clock)
    : metrics_(*m),
      clock_(*clock),
      tokenize_seconds_(m->Histogram("sluice_router_tokenize_seconds",
                                     "From a request's bytes to its tokens, waiting included",
                                     kOverheadBuckets)),
      sse_streams_(m->Gauge("sluice_router_sse_streams", "Answers being streamed over HTTP")),
      connections_(m->Gauge("sluice_router_http_connections", "Open HTTP connections")),
      queue_seconds_(m->Histogram("sluice_router_queue_seconds",
                                  "Waiting for a place, for each attempt", kRequestBuckets)),
      ttft_seconds_(m->Histogram("sluice_router_ttft_seconds", "To the first token", kTtftBuckets)),
      itl_seconds_(m->Histogram("sluice_router_itl_seconds", "Between tokens, each of a step's",
                                kItlBuckets)),
      tpot_seconds_(m->Histogram("sluice_router_tpot_seconds",
                                 "Mean time between tokens of one answer", kItlBuckets)),
      e2e_seconds_(m->Histogram("sluice_router_e2e_seconds", "Whole answers", kRequestBuckets)),
      prompt_tokens_(m->Histogram("sluice_router_prompt_tokens", "Of one answer", kTokenBuckets)),
      output_tokens_(m->Histogram("sluice_router_output_tokens", "Of one answer", kTokenBuckets)),
      cached_tokens_(m->Histogram("sluice_router_cached_tokens",
                                  "Prompt tokens found in a prefix cache, of one answer",
                                  kTokenBuckets)),
      decision_seconds_(
          m->Histogram("sluice_router_decision_seconds", "Choosing instances", kOverheadBuckets)),
      prefix_match_ratio_(m->Histogram("sluice_router_prefix_match_ratio",
                                       "Prompt tokens that the chosen prefill is thought to have",
                                       kRatioBuckets)),
      kv_transfer_seconds_(m->Histogram("sluice_router_kv_transfer_seconds",
                                        "KV of one prompt, first to last write", kTransferBuckets)),
      kv_transfer_bytes_(m->Counter("sluice_router_kv_transfer_bytes_total",
                                    "KV that decodes have received and verified")),
      prefix_index_pages_(
          m->Gauge("sluice_router_prefix_index_pages", "Pages in the index of prefixes")),
      queued_tokens_(m->Gauge("sluice_router_queued_tokens", "Prompt tokens waiting for a place")),
      active_{},
      vllm_ttft_(m->Histogram("vllm:time_to_first_token_seconds", "As vLLM's", kTtftBuckets)),
      vllm_itl_(m->Histogram("vllm:inter_token_latency_seconds", "As vLLM's", kItlBuckets)),
      vllm_tpot_(
          m->Histogram("vllm:request_time_per_output_token_seconds", "As vLLM's", kItlBuckets)),
      vllm_e2e_(m->Histogram("vllm:e2e_request_latency_seconds", "As vLLM's", kRequestBuckets)),
      vllm_queue_(m->Histogram("vllm:request_queue_time_seconds", "As vLLM's", kRequestBuckets)),
      vllm_prefill_(
          m->Histogram("vllm:request_prefill_time_seconds", "As vLLM's", kRequestBuckets)),
      vllm_decode_(m->Histogram("vllm:request_decode_time_seconds", "As vLLM's", kRequestBuckets)),
      vllm_inference_(
          m->Histogram("vllm:request_inference_time_seconds", "As vLLM's", kRequestBuckets)),
      vllm_prompt_tokens_(m->Counter("vllm:prompt_tokens_total", "As vLLM's")),
      vllm_generation_tokens_(m->Counter("vllm:generation_tokens_total", "As vLLM's")),
      vllm_prefix_queries_(m->Counter("vllm:prefix_cache_queries_total", "As vLLM's, in tokens")),
      vllm_prefix_hits_(m->Counter("vllm:prefix_cache_hits_total", "As vLLM's, in tokens")),
      vllm_running_(m->Gauge("vllm:num_requests_running", "As vLLM's")),
      vllm_waiting_(m->Gauge("vllm:num_requests_waiting", "As vLLM's")) {
  for (size_t i = 0; i < kPhases.size(); ++i) {
    active_[i] = &m->Gauge("sluice_router_requests_active", "Requests by what they wait for",
                           {{"phase", kPhases[i]}});
  }
}

void RouterMetrics::OnCallEnd(absl::string_view api, absl::StatusCode code) {
  const int http_status =
      code == absl::StatusCode::kOk ? 200 : ToApiError(absl::Status(code, "")).http_status;
  metrics_
      .Counter("sluice_router_requests_total", "Calls that have ended, by HTTP status",
               {{"api", std::string(api)}, {"code", std::to_string(http_status)}})
      .Increment();
  if (code == absl::StatusCode::kCancelled) {
    metrics_.Counter("sluice_router_client_cancel_total", "Calls given up by their clients")
        .Increment();
  }
}

void RouterMetrics::OnAnswer(bool length) {
  metrics_
      .Counter("vllm:request_success_total", "As vLLM's",
               {{"finished_reason", length ? "length" : "stop"}})
      .Increment();
}

void RouterMetrics::OnRejected(absl::string_view reason) {
  metrics_
      .Counter("sluice_router_rejected_total", "Requests refused at once",
               {{"reason", std::string(reason)}})
      .Increment();
}

void RouterMetrics::OnRequestEnd(absl::StatusCode code, const Usage& usage,
                                 const Timings& timings) {
  if (usage.output_tokens > 0) {
    prompt_tokens_.Observe(usage.prompt_tokens);
    output_tokens_.Observe(usage.output_tokens);
    cached_tokens_.Observe(usage.cached_tokens);
    vllm_prompt_tokens_.Increment(usage.prompt_tokens);
    vllm_generation_tokens_.Increment(usage.output_tokens);
    vllm_prefix_queries_.Increment(usage.prompt_tokens);
    vllm_prefix_hits_.Increment(usage.cached_tokens);
  }
  if (code != absl::StatusCode::kOk) return;
  recent_requests_.Add(1, clock_.Now());
  const absl::Duration decode = timings.total - timings.first_token;
  Observe(e2e_seconds_, timings.total);
  Observe(vllm_e2e_, timings.total);
  Observe(vllm_queue_, timings.queue);
  Observe(vllm_prefill_, timings.prefill);
  Observe(vllm_decode_, decode);
  Observe(vllm_inference_, timings.prefill + decode);
  if (usage.output_tokens > 1) {
    const absl::Duration per_token = decode / (usage.output_tokens - 1);
    Observe(tpot_seconds_, per_token);
    Observe(vllm_tpot_, per_token);
    recent_tpot_.Add(per_token, clock_.Now());
  }
}

void RouterMetrics::OnPlaced(absl::Duration queued) { Observe(queue_seconds_, queued); }

void RouterMetrics::OnFirstToken(absl::Duration since_submit) {
  Observe(ttft_seconds_, since_submit);
  Observe(vllm_ttft_, since_submit);
  recent_ttft_.Add(since_submit, clock_.Now());
}

void RouterMetrics::OnTarget(absl::string_view target, uint32_t klass, bool met) {
  metrics_
      .Counter("sluice_router_targets_total",
               "Requests of classes that have a target, by whether it was met",
               {{"target", std::string(target)},
                {"class", std::to_string(klass)},
                {"met", met ? "true" : "false"}})
      .Increment();
}

void RouterMetrics::OnTokens(int64_t tokens, absl::Duration gap) {
  recent_tokens_.Add(tokens, clock_.Now());
  for (int64_t i = 0; i < tokens; ++i) {
    Observe(itl_seconds_, gap / tokens);
    Observe(vllm_itl_, gap / tokens);
  }
}

void RouterMetrics::OnDecisionBegin() { decision_start_ = clock_.Now(); }
void RouterMetrics::OnDecisionEnd() { Observe(decision_seconds_, clock_.Now() - decision_start_); }
void RouterMetrics::OnPrefixMatch(double ratio) { prefix_match_ratio_.Observe(ratio); }

void RouterMetrics::OnAttemptFailed(absl::string_view reason) {
  metrics_
      .Counter("sluice_router_attempts_failed_total", "Attempts that broke",
               {{"reason", std::string(reason)}})
      .Increment();
}

void RouterMetrics::OnHandedBack() {
  metrics_.Counter("sluice_router_handbacks_total", "Requests that instances handed back")
      .Increment();
}

void RouterMetrics::OnRefusedByWorker() {
  metrics_.Counter("sluice_router_worker_refusals_total", "Attempts that instances refused")
      .Increment();
}

void RouterMetrics::OnMigration(Migration kind) {
  metrics_
      .Counter("sluice_router_migrations_total",
               "Requests placed anew, before their first token or in mid-answer",
               {{"kind", kind == Migration::kNew ? "new" : "ongoing"}})
      .Increment();
}

void RouterMetrics::OnKvTransfer(int64_t bytes, absl::Duration duration) {
  kv_transfer_bytes_.Increment(static_cast<double>(bytes));
  Observe(kv_transfer_seconds_, duration);
}

void RouterMetrics::OnKvEvents(absl::string_view status) {
  metrics_
      .Counter("sluice_router_kv_events_total", "What instances told of their prefix caches",
               {{"status", std::string(status)}})
      .Increment();
}

void RouterMetrics::Update(const RouterSnapshot& snapshot) {
  const std::array<int64_t, 4> counts = {snapshot.queued, snapshot.prefilling,
                                         snapshot.transferring, snapshot.decoding};
  for (size_t i = 0; i < counts.size(); ++i) active_[i]->Set(static_cast<double>(counts[i]));
  vllm_waiting_.Set(static_cast<double>(snapshot.queued));
  vllm_running_.Set(static_cast<double>(counts[1] + counts[2] + counts[3]));
  prefix_index_pages_.Set(static_cast<double>(snapshot.indexed_pages));
  queued_tokens_.Set(static_cast<double>(snapshot.queued_tokens));
  UpdateEndpoints(snapshot);
}

void RouterMetrics::UpdateEndpoints(const RouterSnapshot& snapshot) {
  std::map<std::pair<std::string, std::string>, int> counts;
  for (const char* role : {"prefill", "decode", "mixed"}) {
    for (const InstanceState state :
         {InstanceState::kLoading, InstanceState::kReady, InstanceState::kDraining,
          InstanceState::kWedged, InstanceState::kDead}) {
      counts[{role, std::string(InstanceStateName(state))}] = 0;
    }
  }
  for (const InstanceSnapshot& instance : snapshot.instances) {
    const int role = std::clamp<int>(instance.hello.role(), 0, kRoles.size() - 1);
    ++counts[{kRoles[static_cast<size_t>(role)], std::string(InstanceStateName(instance.state))}];
  }
  for (const auto& [key, count] : counts) {
    metrics_
        .Gauge("sluice_router_endpoints", "Instances by role and state",
               {{"target_role", key.first}, {"state", key.second}})
        .Set(count);
  }
}

v1::GetStatusResponse RouterMetrics::Status(const RouterSnapshot& snapshot) const {
  const absl::Time now = clock_.Now();
  v1::GetStatusResponse status;
  status.set_ready(snapshot.can_place);
  status.set_draining(snapshot.draining);
  for (const InstanceSnapshot& instance : snapshot.instances) {
    v1::InstanceStatus* out = status.add_instances();
    const int role = std::clamp<int>(instance.hello.role(), 0, kRoles.size() - 1);
    out->set_instance(instance.hello.instance());
    out->set_role(kRoles[static_cast<size_t>(role)]);
    out->set_state(std::string(InstanceStateName(instance.state)));
    *out->mutable_capacity() = instance.hello.capacity();
    *out->mutable_load() = instance.load;
  }
  v1::RouterStatus* router = status.mutable_router();
  router->set_queued(static_cast<uint32_t>(snapshot.queued));
  router->set_active(
      static_cast<uint32_t>(snapshot.prefilling + snapshot.transferring + snapshot.decoding));
  router->set_requests_per_second(recent_requests_.PerSecond(now));
  router->set_output_tokens_per_second(recent_tokens_.PerSecond(now));
  router->set_ttft_p50_ms(absl::ToDoubleMilliseconds(recent_ttft_.Percentile(0.5, now)));
  router->set_ttft_p99_ms(absl::ToDoubleMilliseconds(recent_ttft_.Percentile(0.99, now)));
  router->set_tpot_p50_ms(absl::ToDoubleMilliseconds(recent_tpot_.Percentile(0.5, now)));
  router->set_tpot_p99_ms(absl::ToDoubleMilliseconds(recent_tpot_.Percentile(0.99, now)));
  return status;
}

}  // namespace sluice::router
