// What a router measures, as Prometheus metrics: our own names and those of vLLM that dashboards
// know (services/base/metrics.h). Their help texts say what they are.
//
// Threads: the loop's.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/base/clock.h"
#include "services/base/metrics.h"
#include "services/router/recent_times.h"
#include "services/router/router_core.h"
#include "services/router/router_probe.h"
#include "sluice/v1/admin.pb.h"

namespace sluice::router {

class RouterMetrics final : public RouterProbe {
 public:
  // Both outlive it.
  RouterMetrics(Metrics* metrics, const Clock* clock);

  // From the edge.
  void OnCallEnd(absl::string_view api, absl::StatusCode code);
  void OnAnswer(bool length);  // one of a call's answers is complete
  prometheus::Histogram& tokenize_seconds() { return tokenize_seconds_; }
  prometheus::Gauge& sse_streams() { return sse_streams_; }
  prometheus::Gauge& connections() { return connections_; }

  // The gauges, now and then.
  void Update(const RouterSnapshot& snapshot);
  // What `sluice top` shows of the router itself and of its instances.
  v1::GetStatusResponse Status(const RouterSnapshot& snapshot) const;

  // From the core.
  void OnRejected(absl::string_view reason) override;
  void OnRequestEnd(absl::StatusCode code, const Usage& usage, const Timings& timings) override;
  void OnPlaced(absl::Duration queued) override;
  void OnFirstToken(absl::Duration since_submit) override;
  void OnTarget(absl::string_view target, uint32_t klass, bool met) override;
  void OnTokens(int64_t tokens, absl::Duration gap) override;
  void OnDecisionBegin() override;
  void OnDecisionEnd() override;
  void OnPrefixMatch(double ratio) override;
  void OnAttemptFailed(absl::string_view reason) override;
  void OnHandedBack() override;
  void OnRefusedByWorker() override;
  void OnMigration(Migration kind) override;
  void OnKvTransfer(int64_t bytes, absl::Duration duration) override;
  void OnKvEvents(absl::string_view status) override;

 private:
  void UpdateEndpoints(const RouterSnapshot& snapshot);

  Metrics& metrics_;
  const Clock& clock_;
  prometheus::Histogram& tokenize_seconds_;
  prometheus::Gauge& sse_streams_;
  prometheus::Gauge& connections_;
  prometheus::Histogram& queue_seconds_;
  prometheus::Histogram& ttft_seconds_;
  prometheus::Histogram& itl_seconds_;
  prometheus::Histogram& tpot_seconds_;
  prometheus::Histogram& e2e_seconds_;
  prometheus::Histogram& prompt_tokens_;
  prometheus::Histogram& output_tokens_;
  prometheus::Histogram& cached_tokens_;
  prometheus::Histogram& decision_seconds_;
  prometheus::Histogram& prefix_match_ratio_;
  prometheus::Histogram& kv_transfer_seconds_;
  prometheus::Counter& kv_transfer_bytes_;
  prometheus::Gauge& prefix_index_pages_;
  prometheus::Gauge& queued_tokens_;
  std::array<prometheus::Gauge*, 4> active_;  // by phase

  prometheus::Histogram& vllm_ttft_;
  prometheus::Histogram& vllm_itl_;
  prometheus::Histogram& vllm_tpot_;
  prometheus::Histogram& vllm_e2e_;
  prometheus::Histogram& vllm_queue_;
  prometheus::Histogram& vllm_prefill_;
  prometheus::Histogram& vllm_decode_;
  prometheus::Histogram& vllm_inference_;
  prometheus::Counter& vllm_prompt_tokens_;
  prometheus::Counter& vllm_generation_tokens_;
  prometheus::Counter& vllm_prefix_queries_;
  prometheus::Counter& vllm_prefix_hits_;
  prometheus::Gauge& vllm_running_;
  prometheus::Gauge& vllm_waiting_;

  absl::Time decision_start_;
  RecentTimes recent_ttft_, recent_tpot_;
  RecentRate recent_requests_, recent_tokens_;
};

}  // namespace sluice::router
