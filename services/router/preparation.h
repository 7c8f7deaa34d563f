// From what a client asks for to what the core takes: template, token ids, page hashes, limits and
// defaults. Everything whose time grows with the prompt happens here, on threads of
// preparation_pool.h.
//
// Threads: any number at once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/router/api_request.h"
#include "services/router/generation.h"
#include "services/router/openai_request.h"
#include "services/router/openai_response.h"
#include "services/router/served_model.h"

namespace sluice::router {

struct PreparedPrompt {
  std::shared_ptr<const Prompt> prompt;  // of the core
  bool in_thinking = false;
};

struct PreparedRequest {
  ApiRequest request;
  std::vector<PreparedPrompt> prompts;
  // Filled where the answers show it: echo, return_token_ids.
  std::vector<PromptEcho> echoes;
  // Of the first answer; answer i has seed + i.
  v1::Sampling sampling;
};

struct PreparationContext {
  // Of the core's snapshot; empty: no page is named, as nothing could be placed either.
  std::string kv_layout_hash;
  std::string tenant;        // whose prefix cache it is: the API key's name, may be empty
  uint64_t random_seed = 0;  // for requests that have none
};

// Errors: InvalidArgument naming the field (api_error.h), "context_length_exceeded" for prompts
// that are too long and not to be cut; NotFound for another model.
absl::StatusOr<PreparedRequest> Prepare(const ServedModel& model, ApiRequest request,
                                        const PreparationContext& context);

// Empty names and the model's own are right. NotFound.
absl::Status CheckModelName(const ServedModel& model, absl::string_view name);

// The ids of a chat, or of a text, as Prepare() makes them.
absl::StatusOr<model::EncodedPrompt> EncodeChat(const ServedModel& model,
                                                const std::vector<model::ChatMessage>& messages,
                                                bool thinking);
absl::StatusOr<std::vector<int32_t>> EncodeText(const ServedModel& model, absl::string_view text,
                                                bool add_special_tokens);
// What a tokenization call asks for. Errors as of Prepare().
absl::StatusOr<std::vector<int32_t>> Tokenize(const ServedModel& model,
                                              const TokenizeBody& request);

}  // namespace sluice::router
