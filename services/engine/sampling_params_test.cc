#include "services/engine/sampling_params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

struct Case {
  const char* message;  // empty: allowed
  SamplingParams params;
};

TEST(SamplingParamsTest, NamesFieldValueAndLimit) {
  const std::vector<Case> cases = {
      {"", {.max_tokens = 1}},
      {"max_tokens is 0", {}},
      {"", {.temperature = 0, .max_tokens = 1}},
      {"temperature is -0.5, allowed is 0 to 100", {.temperature = -0.5f, .max_tokens = 1}},
      {"temperature is nan", {.temperature = NAN, .max_tokens = 1}},
      {"top_p is 0", {.top_p = 0, .max_tokens = 1}},
      {"top_p is 1.5", {.top_p = 1.5f, .max_tokens = 1}},
      {"top_p is nan", {.top_p = NAN, .max_tokens = 1}},
      {"top_k is -1", {.top_k = -1, .max_tokens = 1}},
      {"min_p is 2", {.min_p = 2, .max_tokens = 1}},
      {"repetition_penalty is 0", {.repetition_penalty = 0, .max_tokens = 1}},
      {"presence_penalty is 3", {.presence_penalty = 3, .max_tokens = 1}},
      {"frequency_penalty is -3", {.frequency_penalty = -3, .max_tokens = 1}},
      {"logit_bias holds token id 10", {.logit_bias = {{10, 1.0f}}, .max_tokens = 1}},
      {"logit_bias is 101", {.logit_bias = {{9, 101.0f}}, .max_tokens = 1}},
      {"logit_bias has 1025 entries",
       {.logit_bias = std::vector<std::pair<int32_t, float>>(1025, {1, 1.0f}), .max_tokens = 1}},
      {"min_tokens is 2, allowed is 0 to max_tokens (1)", {.max_tokens = 1, .min_tokens = 2}},
      {"stop_token_ids holds token id -1", {.max_tokens = 1, .stop_token_ids = {-1}}},
      {"stop_token_ids has 129 entries",
       {.max_tokens = 1, .stop_token_ids = std::vector<int32_t>(129, 1)}},
      {"logprobs is 11, allowed is -1 to 10", {.max_tokens = 1, .num_logprobs = 11}},
  };
  for (const Case& test_case : cases) {
    const absl::Status status = ValidateSamplingParams(test_case.params, /*vocab_size=*/10);
    EXPECT_EQ(status.ok(), std::string(test_case.message).empty()) << status;
    EXPECT_THAT(status.message(), HasSubstr(test_case.message));
  }
}

}  // namespace
}  // namespace sluice::engine
