#include "tests/bench/chat_check.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "tests/bench/emit_table.h"

namespace sluice::bench {
namespace {

absl::Status Wrong(absl::string_view what) { return absl::DataLossError(what); }

}  // namespace

absl::Status ChatCheck::OnEvent(absl::string_view data, simdjson::dom::parser* parser) {
  if (done_) return Wrong("an event after [DONE]");
  if (data == "[DONE]") {
    done_ = true;
    return absl::OkStatus();
  }
  simdjson::dom::element event;
  if (parser->parse(data.data(), data.size()).get(event) != simdjson::SUCCESS) {
    return Wrong(absl::StrCat("an event is no JSON: ", data.substr(0, 100)));
  }
  simdjson::dom::element error;
  if (event["error"].get(error) == simdjson::SUCCESS) {
    return Wrong(absl::StrCat("an error: ", data.substr(0, 200)));
  }
  simdjson::dom::array choices;
  if (event["choices"].get(choices) != simdjson::SUCCESS) return Wrong("an event without choices");
  simdjson::dom::element usage;
  if (event["usage"].get(usage) == simdjson::SUCCESS && usage.is_object()) {
    SLUICE_RETURN_IF_ERROR(OnUsage(usage));
  }
  for (const simdjson::dom::element choice : choices) {
    for (const char* field : {"reasoning_content", "content"}) {
      std::string_view text;
      if (choice["delta"][field].get(text) != simdjson::SUCCESS) continue;
      SLUICE_RETURN_IF_ERROR(OnText({text.data(), text.size()}));
    }
    std::string_view reason;
    if (choice["finish_reason"].get(reason) != simdjson::SUCCESS) continue;
    if (finished_ || reason != "length" || received_ != tokens_) {
      return Wrong(absl::StrCat("finish_reason ", std::string(reason), " after ", received_, " of ",
                                tokens_, " tokens"));
    }
    finished_ = true;
  }
  return absl::OkStatus();
}

absl::Status ChatCheck::OnText(absl::string_view text) {
  for (const char c : text) {
    const char wanted = static_cast<char>('a' + LetterOf(seed_, received_));
    if (c != wanted || finished_) {
      return Wrong(absl::StrCat("output ", received_, " of seed ", seed_, " is '", text,
                                "', wanted ", std::string(1, wanted)));
    }
    ++received_;
  }
  return absl::OkStatus();
}

absl::Status ChatCheck::OnUsage(const simdjson::dom::element& usage) {
  int64_t completion = -1;
  if (usage["completion_tokens"].get(completion) != simdjson::SUCCESS ||
      usage["prompt_tokens"].get(prompt_tokens_) != simdjson::SUCCESS || completion != tokens_ ||
      prompt_tokens_ < 1) {
    return Wrong(absl::StrCat("usage says ", completion, " tokens of ", tokens_,
                              " and a prompt of ", prompt_tokens_));
  }
  usage_ = true;
  return absl::OkStatus();
}

absl::Status ChatCheck::Complete() const {
  if (done_ && usage_ && finished_ && received_ == tokens_) return absl::OkStatus();
  return Wrong(absl::StrCat("the stream ended after ", received_, " of ", tokens_, " tokens",
                            finished_ ? "" : ", without finish_reason", usage_ ? "" : ", usage",
                            done_ ? "" : ", [DONE]"));
}

}  // namespace sluice::bench
