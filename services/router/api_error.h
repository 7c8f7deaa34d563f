// Errors as clients of the HTTP API see them. Inside the router they travel as absl::Status, with
// what HTTP wants to know besides in payloads.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace sluice::router {

// InvalidArgument about one field of a request; clients read its name as `param`.
absl::Status FieldError(absl::string_view field, absl::string_view message);

// The prompt, or prompt and output together, does not fit: InvalidArgument, code
// "context_length_exceeded".
absl::Status ContextLengthError(absl::string_view field, int64_t prompt_tokens,
                                int64_t output_tokens, int64_t limit);
absl::Status ContextLengthError(absl::string_view field, absl::string_view message);

// NotFound, code "model_not_found".
absl::Status UnknownModelError(absl::string_view model);

struct ApiError {
  int http_status = 500;
  std::string message;
  std::string type;
  std::string param;          // empty: null
  std::string code;           // empty: null
  int64_t retry_after_s = 0;  // 0: no hint
};

// By the table in docs/reference/api.md. An overload without RetryAfter() gets one second.
ApiError ToApiError(const absl::Status& status);

// An error that HTTP knows and absl::Status does not (405, 415, 431, ...).
ApiError HttpError(int http_status, absl::string_view message);

// {"error":{"message":...,"type":...,"param":...,"code":...}}
std::string ErrorJson(const ApiError& error);

}  // namespace sluice::router
