#include "services/router/generation_call.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/memory/memory.h"
#include "kernels/base/status.h"
#include "services/router/api_error.h"

namespace sluice::router {

// One answer.
class GenerationCall::Choice final : public GenerationSink {
 public:
  Choice(GenerationCall* call, ReplyStream stream) : call_(call), stream_(std::move(stream)) {}

  void OnOutput(const Output& output) override {
    usage_ = output.usage;
    std::optional<ChoiceDelta> delta = stream_.Feed(output);
    const bool over = stream_.ended();
    if (over) {
      if (output.finish == v1::FINISH_UNSPECIFIED) call_->backend_->Cancel(*id_);
      id_.reset();
      --call_->num_running_;
      if (call_->choices_.front().get() == this) call_->timings_ = output.timings;
    }
    if (delta.has_value()) call_->listener_->OnDelta(*delta);
    // The listener may have given up in the meantime.
    if (over && call_->num_running_ == 0) call_->listener_->OnDone(call_->timings_);
  }

  void OnError(const absl::Status& status) override {
    id_.reset();
    call_->CancelAll();
    call_->listener_->OnError(status);
  }

  void set_id(RequestId id) { id_ = id; }
  void Cancel() {
    if (id_.has_value()) call_->backend_->Cancel(*id_);
    id_.reset();
  }
  const ReplyStream& stream() const { return stream_; }
  uint32_t cached_tokens() const { return usage_.cached_tokens; }

 private:
  GenerationCall* const call_;
  ReplyStream stream_;
  std::optional<RequestId> id_;  // while it runs
  Usage usage_;
};

GenerationCall::GenerationCall(PreparedRequest prepared, TokenBackend* backend,
                               CallListener* listener)
    : prepared_(std::move(prepared)), backend_(backend), listener_(listener) {}

GenerationCall::~GenerationCall() { CancelAll(); }

absl::StatusOr<std::unique_ptr<GenerationCall>> GenerationCall::Start(
    PreparedRequest prepared, const model::Tokenizer& tokenizer, TokenBackend* backend,
    CallListener* listener, absl::Time deadline) {
  auto call = absl::WrapUnique(new GenerationCall(std::move(prepared), backend, listener));
  // An error destroys the call, which cancels what was submitted.
  SLUICE_RETURN_IF_ERROR(call->SubmitAll(tokenizer, deadline));
  return call;
}

absl::Status GenerationCall::SubmitAll(const model::Tokenizer& tokenizer, absl::Time deadline) {
  const ApiRequest& request = prepared_.request;
  const uint32_t count = static_cast<uint32_t>(prepared_.prompts.size()) * request.n;
  for (uint32_t index = 0; index < count; ++index) {
    const PreparedPrompt& prompt = prepared_.prompts[index / request.n];
    SLUICE_ASSIGN_OR_RETURN(ReplyStream stream,
                            ReplyStream::Create(tokenizer, request, prompt.in_thinking, index));
    choices_.push_back(std::make_unique<Choice>(this, std::move(stream)));
    GenerationRequest submitted{.name = request.request_id,
                                .prompt = prompt.prompt,
                                .sampling = prepared_.sampling,
                                .priority = request.priority,
                                .deadline = deadline};
    submitted.sampling.set_seed(prepared_.sampling.seed() + index);
    const absl::StatusOr<RequestId> id =
        backend_->Submit(std::move(submitted), choices_.back().get());
    // The model could hold the prompt, and no instance that is there can.
    if (absl::IsOutOfRange(id.status())) {
      return ContextLengthError(request.chat ? "messages" : "prompt", id.status().message());
    }
    if (!id.ok()) return id.status();
    choices_.back()->set_id(*id);
    ++num_running_;
  }
  return absl::OkStatus();
}

void GenerationCall::CancelAll() {
  for (const auto& choice : choices_) choice->Cancel();
}

ApiUsage GenerationCall::usage() const {
  ApiUsage usage;
  for (const PreparedPrompt& prompt : prepared_.prompts) {
    usage.prompt_tokens += static_cast<uint32_t>(prompt.prompt->ids.size());
  }
  for (size_t i = 0; i < choices_.size(); ++i) {
    usage.completion_tokens += choices_[i]->stream().num_tokens();
    usage.reasoning_tokens += choices_[i]->stream().num_reasoning_tokens();
    // Further answers to a prompt find what the first one computed: that is no hit.
    if (i % prepared_.request.n == 0) usage.cached_tokens += choices_[i]->cached_tokens();
  }
  return usage;
}

}  // namespace sluice::router
