#include "services/router/api_error.h"

#include <algorithm>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "services/router/json_writer.h"
#include "services/router/retry_hint.h"

namespace sluice::router {
namespace {

constexpr char kParam[] = "sluice/param";
constexpr char kCode[] = "sluice/code";

std::string Payload(const absl::Status& status, const char* url) {
  const auto payload = status.GetPayload(url);
  return payload.has_value() ? std::string(*payload) : std::string();
}

struct Kind {
  int http_status;
  const char* type;
};

Kind KindOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
      return {400, "invalid_request_error"};
    case absl::StatusCode::kUnauthenticated:
      return {401, "authentication_error"};
    case absl::StatusCode::kPermissionDenied:
      return {403, "permission_error"};
    case absl::StatusCode::kNotFound:
      return {404, "not_found_error"};
    case absl::StatusCode::kResourceExhausted:
      return {429, "rate_limit_error"};
    case absl::StatusCode::kCancelled:
      return {499, "cancelled_error"};
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAborted:
      return {503, "overloaded_error"};
    case absl::StatusCode::kDeadlineExceeded:
      return {504, "timeout_error"};
    default:
      return {500, "server_error"};
  }
}

const char* TypeOf(int http_status) {
  if (http_status == 401) return "authentication_error";
  if (http_status == 404) return "not_found_error";
  return http_status < 500 ? "invalid_request_error" : "server_error";
}

}  // namespace

absl::Status FieldError(absl::string_view field, absl::string_view message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kParam, absl::Cord(field));
  return status;
}

absl::Status ContextLengthError(absl::string_view field, absl::string_view message) {
  absl::Status status = FieldError(field, message);
  status.SetPayload(kCode, absl::Cord("context_length_exceeded"));
  return status;
}

absl::Status ContextLengthError(absl::string_view field, int64_t prompt_tokens,
                                int64_t output_tokens, int64_t limit) {
  return ContextLengthError(
      field,
      output_tokens == 0
          ? absl::StrCat("This model's maximum context length is ", limit,
                         " tokens, and one must be left for the answer. However, your prompt has ",
                         prompt_tokens, " tokens. Please shorten it, or set truncate_prompt_tokens")
          : absl::StrCat("This model's maximum context length is ", limit,
                         " tokens. However, you requested ", prompt_tokens + output_tokens,
                         " tokens (", prompt_tokens, " in the prompt, ", output_tokens,
                         " for the answer). Please shorten the prompt or lower max_tokens"));
}

absl::Status UnknownModelError(absl::string_view model) {
  absl::Status status =
      absl::NotFoundError(absl::StrCat("The model `", model, "` does not exist."));
  status.SetPayload(kParam, absl::Cord("model"));
  status.SetPayload(kCode, absl::Cord("model_not_found"));
  return status;
}

ApiError ToApiError(const absl::Status& status) {
  const Kind kind = KindOf(status.code());
  ApiError error{.http_status = kind.http_status,
                 .message = std::string(status.message()),
                 .type = kind.type,
                 .param = Payload(status, kParam),
                 .code = Payload(status, kCode)};
  if (kind.http_status == 401 && error.code.empty()) error.code = "invalid_api_key";
  if (kind.http_status == 429 || kind.http_status == 503) {
    const absl::Duration wait = RetryAfter(status).value_or(absl::Seconds(1));
    error.retry_after_s =
        std::max<int64_t>(1, absl::ToInt64Seconds(absl::Ceil(wait, absl::Seconds(1))));
  }
  return error;
}

ApiError HttpError(int http_status, absl::string_view message) {
  return {.http_status = http_status, .message = std::string(message), .type = TypeOf(http_status)};
}

std::string ErrorJson(const ApiError& error) {
  const auto text_or_null = [](const std::string& text, std::string* out) {
    if (text.empty()) {
      out->append("null");
    } else {
      AppendJsonString(text, out);
    }
  };
  std::string out = R"({"error":{"message":)";
  AppendJsonString(error.message, &out);
  out += R"(,"type":)";
  AppendJsonString(error.type, &out);
  out += R"(,"param":)";
  text_or_null(error.param, &out);
  out += R"(,"code":)";
  text_or_null(error.code, &out);
  out += "}}";
  return out;
}

}  // namespace sluice::router
