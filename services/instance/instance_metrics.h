// What /metrics says of an instance: our own names by role, and the set that dashboards for vLLM
// know.
//
// Threads: one at a time (the loop's).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "kernels/ops/backend.h"
#include "kernels/ops/kernel_calls.h"
#include "services/base/metrics.h"
#include "services/instance/instance_core.h"

namespace sluice::instance {

// What an instance has of its device's memory, in bytes.
struct MemoryUse {
  uint64_t weights = 0;  // and what is made of them once
  uint64_t kv = 0;
  uint64_t activations = 0;  // and everything else that the process has asked for by name
};
MemoryUse UseOf(const DeviceMemory& memory);

class InstanceMetrics {
 public:
  // `role`: prefill, decode or mixed. `metrics` must outlive the object.
  InstanceMetrics(const std::string& role, const v1::Capacity& capacity, Metrics* metrics);
  ~InstanceMetrics();

  // A step that has ended, and what was in it.
  void OnStep(absl::Duration duration, int64_t prompt_tokens, int64_t output_tokens);
  // A lease's KV, all of it.
  void OnKvReceived(absl::Duration duration);
  // Brings gauges and counters up to date.
  void Update(const InstanceCore& core, const v1::Heartbeat& heartbeat);
  // Once, of a device that has memory of its own.
  void SetMemory(const MemoryUse& use);
  void UpdateKernels(const std::vector<KernelCalls::Entry>& calls);

 private:
  class Rising;
  struct Prefill;
  struct Decode;
  struct Kv;
  struct Requests;
  struct Vllm;

  Metrics* const metrics_;
  const v1::Capacity capacity_;
  std::unique_ptr<Prefill> prefill_;  // null where the role has no such leg
  std::unique_ptr<Decode> decode_;
  std::unique_ptr<Kv> kv_;
  std::unique_ptr<Requests> requests_;
  std::unique_ptr<Vllm> vllm_;
  std::vector<Rising> kernels_;  // as entries come
};

}  // namespace sluice::instance
