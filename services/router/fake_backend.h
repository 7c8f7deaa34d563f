// For tests: a backend whose tokens the test gives.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "services/router/token_backend.h"

namespace sluice::router {

class FakeBackend final : public TokenBackend {
 public:
  struct Running {
    GenerationRequest request;
    GenerationSink* sink = nullptr;
  };

  absl::StatusOr<RequestId> Submit(GenerationRequest request, GenerationSink* sink) override {
    if (!refusal.ok()) return refusal;
    submitted.push_back(request);
    running[next_id] = {std::move(request), sink};
    return next_id++;
  }
  void Cancel(RequestId id) override {
    if (running.erase(id) > 0) ++num_cancelled;
  }
  bool CanPlace() const override { return can_place; }
  std::string KvLayoutHash() const override { return std::string(16, 'k'); }
  absl::Time Now() const override { return absl::Now(); }

  // The request must be running. With a finish it ends.
  void Give(RequestId id, const std::vector<uint32_t>& ids,
            v1::Finish finish = v1::FINISH_UNSPECIFIED,
            const google::protobuf::RepeatedPtrField<v1::TokenLogprobs>* logprobs = nullptr) {
    const Running entry = running.at(id);
    Output output{.token_ids = ids, .logprobs = logprobs, .finish = finish};
    output.usage = {.prompt_tokens = static_cast<uint32_t>(entry.request.prompt->ids.size()),
                    .output_tokens = static_cast<uint32_t>(ids.size()),
                    .cached_tokens = cached_tokens};
    if (finish != v1::FINISH_UNSPECIFIED) running.erase(id);
    entry.sink->OnOutput(output);
  }
  void Fail(RequestId id, const absl::Status& status) {
    GenerationSink* sink = running.at(id).sink;
    running.erase(id);
    sink->OnError(status);
  }

  absl::Status refusal;
  bool can_place = true;
  uint32_t cached_tokens = 0;
  RequestId next_id = 1;
  int num_cancelled = 0;
  std::map<RequestId, Running> running;
  std::vector<GenerationRequest> submitted;
};

}  // namespace sluice::router
