// The `messages` of a chat request.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "services/model/chat_template.h"

namespace sluice::router {

// A message's content is a text, or a list of parts of type "text", joined by newlines. "developer"
// counts as "system". Reasoning of earlier answers is dropped, as the templates want it. Appends
// the names of unknown fields ("messages[].foo") to `ignored`. Errors: FieldError.
absl::Status ParseMessages(const nlohmann::json& messages, std::vector<model::ChatMessage>* out,
                           std::vector<std::string>* ignored);

}  // namespace sluice::router
