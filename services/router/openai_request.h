// The JSON body of POST /v1/chat/completions and /v1/completions as an ApiRequest.
//
// Every field that OpenAI, vLLM or SGLang documents is either done, or must hold the value that
// asks for nothing (else an error names it), or is of no consequence here. Names that none of them
// knows are listed in `ignored`. The table for people: docs/reference/api.md.
//
// Errors: InvalidArgument, mostly a FieldError (api_error.h) with the field, its value and what is
// wanted. Whether the model exists and the prompt fits is not looked at here.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/router/api_request.h"

namespace sluice::router {

struct ParsedRequest {
  ApiRequest request;
  std::vector<std::string> ignored;  // as "x-sluice-ignored-fields" tells them
};

absl::StatusOr<ParsedRequest> ParseChatRequest(absl::string_view body);
absl::StatusOr<ParsedRequest> ParseCompletionRequest(absl::string_view body);

struct TokenizeBody {
  std::string model;
  bool chat = false;
  std::string prompt;
  std::vector<model::ChatMessage> messages;
  bool thinking = false;
  bool add_special_tokens = true;  // BOS before the prompt
  bool plain = false;  // control tokens in the prompt are text like any other, and no BOS is added
  bool return_token_strs = false;
};
absl::StatusOr<TokenizeBody> ParseTokenizeRequest(absl::string_view body);

struct DetokenizeBody {
  std::string model;
  std::vector<int32_t> tokens;
};
absl::StatusOr<DetokenizeBody> ParseDetokenizeRequest(absl::string_view body);

}  // namespace sluice::router
