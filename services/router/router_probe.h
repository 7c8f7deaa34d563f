// What the core lets others measure. Every method does nothing here: whoever exports metrics
// overrides them; tests count with it. Calls come on the core's thread and must not call it.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/router/generation.h"

namespace sluice::router {

enum class Migration {
  kNew,      // placed anew before its first token
  kOngoing,  // placed anew in mid-answer
};

class RouterProbe {
 public:
  virtual ~RouterProbe() = default;

  // Submit refused it; reason: queue_full, ttft_target, timeout, no_endpoint, draining or invalid.
  virtual void OnRejected(absl::string_view reason) { (void)reason; }
  // A request that Submit took is over: OK, CANCELLED by the client, or the sink's error.
  virtual void OnRequestEnd(absl::StatusCode code, const Usage& usage, const Timings& timings) {
    (void)code, (void)usage, (void)timings;
  }
  // Since Submit, or since it was placed anew, until an attempt was started.
  virtual void OnPlaced(absl::Duration queued) { (void)queued; }
  virtual void OnFirstToken(absl::Duration since_submit) { (void)since_submit; }
  // A request's class has a target (ttft or tpot), and it was met or missed.
  virtual void OnTarget(absl::string_view target, uint32_t klass, bool met) {
    (void)target, (void)klass, (void)met;
  }
  // `tokens` tokens came together, `gap` after the ones before: each counts as gap / tokens.
  virtual void OnTokens(int64_t tokens, absl::Duration gap) { (void)tokens, (void)gap; }
  // Around the choice of instances, so that the caller can take the time.
  virtual void OnDecisionBegin() {}
  virtual void OnDecisionEnd() {}
  // Prompt tokens that the chosen prefill is thought to have, by those of the prompt.
  virtual void OnPrefixMatch(double ratio) { (void)ratio; }
  // An attempt failed; reason: worker_gone, worker_dead, worker_wedged, kv_failed, engine, protocol
  // or damaged.
  virtual void OnAttemptFailed(absl::string_view reason) { (void)reason; }
  virtual void OnHandedBack() {}
  virtual void OnRefusedByWorker() {}
  virtual void OnMigration(Migration kind) { (void)kind; }
  virtual void OnKvTransfer(int64_t bytes, absl::Duration duration) { (void)bytes, (void)duration; }
  // status: applied, snapshot, gap, or waiting (for a snapshot).
  virtual void OnKvEvents(absl::string_view status) { (void)status; }
};

}  // namespace sluice::router
