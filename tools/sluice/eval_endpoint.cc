#include "tools/sluice/eval_endpoint.h"

#include <algorithm>
#include <thread>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "kernels/base/status.h"

namespace sluice::cli {
namespace {

constexpr absl::Duration kAnswerTimeout = absl::Minutes(30);
constexpr absl::Duration kRetriesMax = absl::Minutes(5);

struct Answer {
  std::string content;
  bool stopped = false;
  int64_t num_tokens = 0;
};

absl::StatusOr<Answer> ParseAnswer(const std::string& body) {
  const auto json = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  const auto at = [](const nlohmann::json& value, const char* pointer) {
    const nlohmann::json::json_pointer path(pointer);
    return value.contains(path) ? value.at(path) : nlohmann::json();
  };
  const nlohmann::json content = at(json, "/choices/0/message/content");
  const nlohmann::json finish = at(json, "/choices/0/finish_reason");
  const nlohmann::json tokens = at(json, "/usage/completion_tokens");
  if (!finish.is_string() || !tokens.is_number_unsigned()) {
    return absl::InternalError(
        absl::StrCat("not the answer of a chat completion: ", body.substr(0, 200)));
  }
  return Answer{.content = content.is_string() ? content.get<std::string>() : "",
                .stopped = finish == "stop",
                .num_tokens = tokens.get<int64_t>()};
}

absl::StatusOr<Answer> Ask(const HttpClient& client, const std::string& request) {
  const absl::Time give_up = absl::Now() + kRetriesMax;
  while (true) {
    SLUICE_ASSIGN_OR_RETURN(const HttpResponse response,
                            client.Post("/v1/chat/completions", request, kAnswerTimeout));
    if ((response.status != 429 && response.status != 503) || absl::Now() > give_up) {
      SLUICE_RETURN_IF_ERROR(ErrorOf(response));
      return ParseAnswer(response.body);
    }
    absl::SleepFor(std::clamp(response.retry_after, absl::Milliseconds(200), absl::Seconds(10)));
  }
}

std::string RequestFor(const Problem& problem, const EndpointEvalOptions& options) {
  nlohmann::json messages = nlohmann::json::array();
  for (const model::ChatMessage& message : problem.messages) {
    messages.push_back({{"role", message.role}, {"content", message.content}});
  }
  return nlohmann::json({{"model", options.model},
                         {"messages", std::move(messages)},
                         {"temperature", 0},
                         {"max_tokens", options.max_tokens}})
      .dump();
}

}  // namespace

absl::Status EvalOverEndpoint(const HttpClient& client, const EndpointEvalOptions& options,
                              const std::vector<Problem>& problems, Tally* tally) {
  absl::Mutex mutex;
  absl::Status failure = absl::OkStatus();  // both under the mutex
  size_t next = 0;
  const auto work = [&] {
    while (true) {
      const Problem* problem = nullptr;
      {
        absl::MutexLock lock(&mutex);
        if (!failure.ok() || next == problems.size()) return;
        problem = &problems[next++];
      }
      const absl::StatusOr<Answer> answer = Ask(client, RequestFor(*problem, options));
      absl::MutexLock lock(&mutex);
      if (answer.ok()) {
        tally->Add(*problem, answer->content, answer->stopped, answer->num_tokens);
        tally->ShowProgress();
      } else if (failure.ok()) {
        failure = absl::Status(answer.status().code(), absl::StrCat("problem ", problem->id, ": ",
                                                                    answer.status().message()));
      }
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < std::min<int>(options.in_flight, static_cast<int>(problems.size())); ++i) {
    threads.emplace_back(work);
  }
  for (std::thread& thread : threads) thread.join();
  return failure;
}

}  // namespace sluice::cli
