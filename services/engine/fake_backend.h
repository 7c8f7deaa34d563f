// A backend without arithmetic, for tests of what is around the ops: matrix products and attention
// do nothing, KV rows are filled with ones, sampling gives FakeToken(slot, position). Can fail or
// hold a step on demand.
//
// Threads: Fail…, Hold and Release from any thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/base/aligned_buffer.h"
#include "kernels/ops/backend.h"

namespace sluice::engine {

inline int32_t FakeToken(int32_t slot, int32_t position, int64_t vocab) {
  return static_cast<int32_t>((slot * 1009 + position * 31 + 5) % vocab);
}

class FakeBackend : public Backend,
                    private LinearOps,
                    private ElementwiseOps,
                    private AttentionOps,
                    private MoeOps,
                    private SamplingOps {
 public:
  LinearOps& linear() override { return *this; }
  ElementwiseOps& elementwise() override { return *this; }
  AttentionOps& attention() override { return *this; }
  MoeOps& moe() override { return *this; }
  SamplingOps& sampling() override { return *this; }

  bool reads_host_memory() const override { return true; }

  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes, const std::string& what) override {
    if (what == fail_allocation_) return absl::ResourceExhaustedError("no room for " + what);
    auto memory = std::make_shared<AlignedBuffer>(bytes);
    return DeviceBuffer{std::shared_ptr<void>(memory, memory->data()), bytes};
  }
  absl::Status CopyToDevice(void* device, const void* host, size_t bytes, StreamId) override {
    std::memcpy(device, host, bytes);
    return absl::OkStatus();
  }
  absl::Status CopyToHost(void* host, const void* device, size_t bytes, StreamId) override {
    std::memcpy(host, device, bytes);
    return absl::OkStatus();
  }
  absl::Status Sync(StreamId) override {
    syncs_.fetch_add(1);
    return absl::OkStatus();
  }
  void StopWaiting() override { stopped_waiting_ = true; }
  std::string Describe() const override { return "fake"; }

  bool records() const override { return records_; }
  absl::StatusOr<std::unique_ptr<Recording>> Record(absl::FunctionRef<absl::Status()> queue,
                                                    StreamId) override {
    auto recording = std::make_unique<FakeRecording>();
    recording_ = recording.get();
    const absl::Status status = queue();
    recording_ = nullptr;
    if (!status.ok()) return status;
    return recording;
  }
  absl::Status Replay(const Recording& recording, StreamId) override {
    for (const auto& op : static_cast<const FakeRecording&>(recording).ops) {
      if (const absl::Status status = op(); !status.ok()) return status;
    }
    replays_.fetch_add(1);
    return absl::OkStatus();
  }

  // Before an engine is made: decode steps are recorded.
  void RecordSteps() { records_ = true; }
  int64_t num_replays() const { return replays_.load(); }
  const KernelCalls* kernel_calls() const override { return &calls_; }

  int64_t num_syncs() const { return syncs_.load(); }
  bool stopped_waiting() const { return stopped_waiting_.load(); }
  int64_t num_cache_writes() const { return cache_writes_.load(); }

  void FailAllocation(std::string what) { fail_allocation_ = std::move(what); }
  void FailNextSample(absl::Status status) {
    const std::lock_guard lock(mutex_);
    next_sample_ = std::move(status);
  }
  // From now on every row's logits count as not finite.
  void DamageLogits() {
    const std::lock_guard lock(mutex_);
    damaged_ = true;
  }
  // Steps wait before sampling until Release.
  void Hold() {
    const std::lock_guard lock(mutex_);
    held_ = true;
  }
  void Release() {
    {
      const std::lock_guard lock(mutex_);
      held_ = false;
    }
    released_.notify_all();
  }

 private:
  struct FakeRecording final : Recording {
    std::vector<std::function<absl::Status()>> ops;
  };
  // Keeps the op for replays while a recording is made.
  template <typename Op>
  absl::Status Queue(Op op) {
    if (recording_ == nullptr) return op();
    recording_->ops.push_back(op);
    return absl::OkStatus();
  }

  absl::Status Linear(const LinearParams&, StreamId) override { return absl::OkStatus(); }
  absl::Status MultiLinear(const MultiLinearParams&, StreamId) override { return absl::OkStatus(); }
  absl::Status GatedLinear(const GatedLinearParams&, StreamId) override { return absl::OkStatus(); }
  absl::Status GroupedLinear(const GroupedLinearParams&, StreamId) override {
    return absl::OkStatus();
  }
  absl::Status GroupedGatedLinear(const GroupedGatedLinearParams&, StreamId) override {
    return absl::OkStatus();
  }
  absl::Status Embed(const EmbedParams&, StreamId) override { return absl::OkStatus(); }
  absl::Status RmsNorm(const RmsNormParams&, StreamId) override { return absl::OkStatus(); }
  absl::Status GatherRows(const GatherRowsParams&, StreamId) override { return absl::OkStatus(); }
  absl::Status FillRandom(const FillRandomParams&, StreamId) override { return absl::OkStatus(); }
  absl::Status MlaCacheWrite(const MlaCacheWriteParams& params, StreamId) override {
    return Queue([this, params] {
      const size_t row_bytes = params.dims.kv_dim() * DTypeBytes(params.cache.dtype);
      for (int64_t i = 0; i < params.kv_rows.rows(); ++i) {
        const int32_t row = params.kv_rows.As<int32_t>()[i];
        if (row < 0) continue;
        std::memset(params.cache.As<std::byte>() + row * row_bytes, 1, row_bytes);
      }
      cache_writes_.fetch_add(1);
      return absl::OkStatus();
    });
  }
  absl::Status MlaAbsorbed(const MlaAbsorbedParams&, StreamId) override { return absl::OkStatus(); }
  absl::Status MlaPrompt(const MlaPromptParams&, StreamId) override { return absl::OkStatus(); }
  // Every token chooses the last of the experts.
  absl::Status Gate(const GateParams& params, StreamId) override {
    return Queue([params] {
      const int64_t top_k = params.expert_ids.row_elements();
      const int64_t first = params.expert_load.dims[0] - top_k;
      for (int64_t token = 0; token < params.expert_ids.rows(); ++token) {
        if (params.live.data != nullptr && params.live.As<int32_t>()[token] < 0) continue;
        for (int64_t i = 0; i < top_k; ++i) ++params.expert_load.As<int64_t>()[first + i];
      }
      return absl::OkStatus();
    });
  }
  absl::Status Permute(const MoePermuteParams&, StreamId) override { return absl::OkStatus(); }
  absl::Status Combine(const MoeCombineParams&, StreamId) override { return absl::OkStatus(); }
  absl::Status Sample(const SampleParams& params, StreamId) override {
    calls_.Count("sample", "fake");
    return Queue([this, params] { return SampleNow(params); });
  }
  absl::Status SampleNow(const SampleParams& params) {
    std::unique_lock lock(mutex_);
    released_.wait(lock, [&] { return !held_; });
    if (!next_sample_.ok()) return std::exchange(next_sample_, absl::OkStatus());
    for (int64_t i = 0; i < params.logits.rows(); ++i) {
      const SamplingRow& row = params.rows[i];
      params.not_finite.As<uint8_t>()[i] = damaged_ ? 1 : 0;
      params.tokens.As<int32_t>()[i] = FakeToken(row.slot, row.position, params.logits.dims[1]);
    }
    return absl::OkStatus();
  }

  bool records_ = false;
  FakeRecording* recording_ = nullptr;
  std::atomic<int64_t> replays_{0};
  std::atomic<int64_t> syncs_{0};
  std::atomic<bool> stopped_waiting_{false};
  KernelCalls calls_;
  std::string fail_allocation_;
  std::atomic<int64_t> cache_writes_{0};
  std::mutex mutex_;  // guards all below
  std::condition_variable released_;
  absl::Status next_sample_;
  bool held_ = false;
  bool damaged_ = false;
};

}  // namespace sluice::engine
