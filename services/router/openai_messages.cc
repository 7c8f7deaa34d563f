#include "services/router/openai_messages.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/json.h"
#include "services/router/api_error.h"
#include "services/router/api_request.h"
#include "services/router/json_fields.h"

namespace sluice::router {
namespace {

// More names than a header has room for; each new one is compared with all before.
constexpr size_t kIgnoredMax = 128;

absl::Status Wrong(const std::string& field, const nlohmann::json& value, const char* wanted) {
  return FieldError(field, absl::StrCat(field, " is ", JsonForMessage(value), ", wanted ", wanted));
}

absl::Status ParseParts(const nlohmann::json& parts, const std::string& field, std::string* text) {
  for (size_t i = 0; i < parts.size(); ++i) {
    const nlohmann::json& part = parts[i];
    const std::string path = absl::StrCat(field, "[", i, "]");
    if (!part.is_object()) return Wrong(path, part, R"(an object {"type": "text", "text": ...})");
    const auto type = part.find("type");
    if (type == part.end() || *type != "text") {
      return Wrong(path + ".type", type == part.end() ? nlohmann::json() : *type,
                   "\"text\": this model reads text only");
    }
    const auto content = part.find("text");
    if (content == part.end() || !content->is_string()) {
      return Wrong(path + ".text", content == part.end() ? nlohmann::json() : *content, "a text");
    }
    if (i > 0) text->push_back('\n');
    text->append(content->get_ref<const std::string&>());
  }
  return absl::OkStatus();
}

absl::Status ParseMessage(const nlohmann::json& message, const std::string& path,
                          model::ChatMessage* out, std::vector<std::string>* ignored) {
  if (!message.is_object()) {
    return Wrong(path, message, R"(an object {"role": ..., "content": ...})");
  }
  JsonFields fields(message, path + ".");
  const nlohmann::json* role = fields.Get("role");
  if (role == nullptr || !role->is_string()) {
    fields.Fail("role", kRoles);
    return fields.status();
  }
  out->role = role->get<std::string>();
  if (!ToTemplateRole(&out->role)) fields.Fail("role", kRoles);
  const nlohmann::json* content = fields.Get("content");
  if (content == nullptr) {
    if (out->role != "assistant") fields.Fail("content", "a text, or a list of parts");
  } else if (content->is_string()) {
    out->content = content->get<std::string>();
  } else if (content->is_array()) {
    fields.FailWith(ParseParts(*content, path + ".content", &out->content));
  } else {
    fields.Fail("content", "a text, or a list of parts");
  }
  const nlohmann::json none = nlohmann::json::array();
  fields.Neutral("tool_calls", {none});
  fields.Neutral("function_call", {});
  fields.Neutral("audio", {});
  fields.Neutral("prefix", {false});
  for (const char* name : {"name", "refusal", "annotations", "reasoning", "reasoning_content"}) {
    fields.Skip(name);
  }
  SLUICE_RETURN_IF_ERROR(fields.status());
  for (const std::string& name : fields.Ignored()) {
    if (ignored->size() >= kIgnoredMax) break;
    const std::string shown = "messages[]" + name.substr(path.size());
    if (std::find(ignored->begin(), ignored->end(), shown) == ignored->end()) {
      ignored->push_back(shown);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ParseMessages(const nlohmann::json& messages, std::vector<model::ChatMessage>* out,
                           std::vector<std::string>* ignored) {
  if (!messages.is_array() || messages.empty()) {
    return Wrong("messages", messages, "a list of at least one message");
  }
  out->resize(messages.size());
  for (size_t i = 0; i < messages.size(); ++i) {
    SLUICE_RETURN_IF_ERROR(
        ParseMessage(messages[i], absl::StrCat("messages[", i, "]"), &(*out)[i], ignored));
  }
  return absl::OkStatus();
}

}  // namespace sluice::router
