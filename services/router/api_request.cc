#include "services/router/api_request.h"

#include "absl/strings/str_cat.h"
#include "services/router/api_error.h"

namespace sluice::router {

bool ToTemplateRole(std::string* role) {
  if (*role == "developer") *role = "system";
  return *role == "system" || *role == "user" || *role == "assistant";
}

absl::Status CheckTogether(const ApiRequest& request, absl::string_view path) {
  if (request.echo && request.sampling.num_logprobs >= 0) {
    const std::string field = absl::StrCat(path, "logprobs");
    return FieldError(
        field, absl::StrCat(field,
                            " together with echo is not supported by this server: the prompt's "
                            "tokens have no log-probabilities here; leave out one of the two"));
  }
  if (request.prompts.size() * request.n > kChoicesMax) {
    const std::string field = absl::StrCat(path, "n");
    return FieldError(
        field, absl::StrCat(field, " is ", request.n, " for ", request.prompts.size(),
                            " prompts, wanted at most ", kChoicesMax, " answers in one request"));
  }
  return absl::OkStatus();
}

}  // namespace sluice::router
