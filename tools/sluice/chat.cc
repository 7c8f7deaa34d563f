// sluice chat: a conversation with a running cluster, streamed.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "tools/sluice/commands.h"
#include "tools/sluice/http_client.h"
#include "tools/sluice/printer.h"

namespace sluice::cli {
namespace {

// A prompt that waits in a queue is silent for long.
constexpr absl::Duration kSilenceMax = absl::Minutes(10);

struct ChatOptions {
  std::string endpoint = "http://127.0.0.1:8000";
  std::string api_key, ca, model, system;
  std::optional<std::string> ask;
  std::optional<double> temperature;
  std::optional<int64_t> max_tokens;
  std::optional<int64_t> seed;
};

// Ctrl-C: ends the answer that is coming, or the conversation when none is.
std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");

void TakeInterrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };  // without SA_RESTART: reading ends, too
  sigaction(SIGINT, &action, nullptr);
}

// One answer, as its events come.
class Answer {
 public:
  void OnEvent(absl::string_view data) {
    if (data == "[DONE]") {
      done_ = true;
      return;
    }
    const auto json = nlohmann::json::parse(data.begin(), data.end(), nullptr, false);
    if (json.is_object() && json.contains("error")) {
      error_ =
          ErrorOf({.status = 500,
                   .body = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)});
      return;
    }
    const auto text = [&](const char* pointer) -> std::string {
      const nlohmann::json::json_pointer path(pointer);
      if (!json.contains(path) || !json.at(path).is_string()) return "";
      return json.at(path).get<std::string>();
    };
    const auto number = [&](const char* pointer) -> int64_t {
      const nlohmann::json::json_pointer path(pointer);
      return json.contains(path) && json.at(path).is_number() ? json.at(path).get<int64_t>() : 0;
    };
    const model::ReplyDelta delta = {.reasoning = text("/choices/0/delta/reasoning_content"),
                                     .content = text("/choices/0/delta/content")};
    if (!delta.reasoning.empty() || !delta.content.empty()) {
      if (!first_.has_value()) first_ = std::chrono::steady_clock::now();
      printer_.Print(delta);
      content_ += delta.content;
    }
    if (const std::string finish = text("/choices/0/finish_reason"); !finish.empty()) {
      finish_reason_ = finish;
    }
    prompt_tokens_ += number("/usage/prompt_tokens");
    output_tokens_ += number("/usage/completion_tokens");
  }

  // After the last event. What was wrong with the answer, if anything.
  absl::Status Finish(const absl::Status& transport) {
    printer_.Finish();
    if (!transport.ok()) return transport;
    if (!error_.ok()) return error_;
    if (!done_) return absl::UnavailableError("the answer was cut off: the connection ended early");
    const auto seconds = [](auto from, auto to) {
      return std::chrono::duration<double>(to - from).count();
    };
    const auto end = std::chrono::steady_clock::now();
    const auto first = first_.value_or(end);
    std::fprintf(
        stderr, "%ld prompt tokens, %ld output tokens; first text after %.0f ms, %.0f tokens/s%s\n",
        static_cast<long>(prompt_tokens_), static_cast<long>(output_tokens_),
        1000 * seconds(start_, first),
        static_cast<double>(output_tokens_) / std::max(seconds(start_, end), 1e-9),
        finish_reason_ == "length" ? "; cut at the limit of tokens" : "");
    return absl::OkStatus();
  }

  const std::string& content() const { return content_; }

 private:
  Printer printer_{/*in_thinking=*/false, Printer::OnSignal::kLeave};
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::optional<std::chrono::steady_clock::time_point> first_;
  std::string content_, finish_reason_;
  absl::Status error_ = absl::OkStatus();
  bool done_ = false;
  int64_t prompt_tokens_ = 0, output_tokens_ = 0;
};

class Conversation {
 public:
  Conversation(const ChatOptions& options, const HttpClient& client, std::string model)
      : options_(options), client_(client), model_(std::move(model)) {
    if (!options.system.empty()) Add("system", options.system);
  }

  // An answer that failed leaves no trace; of one that was interrupted, what has come stays.
  absl::Status Ask(const std::string& question) {
    Add("user", question);
    nlohmann::json request = {{"model", model_},
                              {"messages", messages_},
                              {"stream", true},
                              {"stream_options", {{"include_usage", true}}}};
    if (options_.temperature.has_value()) request["temperature"] = *options_.temperature;
    if (options_.max_tokens.has_value()) request["max_tokens"] = *options_.max_tokens;
    if (options_.seed.has_value()) request["seed"] = *options_.seed;
    interrupted = false;
    Answer answer;
    absl::Status status = client_.PostForEvents(
        "/v1/chat/completions",
        request.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), kSilenceMax,
        &interrupted, [&](absl::string_view data) { answer.OnEvent(data); });
    status = answer.Finish(status);
    if (status.ok() || (absl::IsCancelled(status) && !answer.content().empty())) {
      Add("assistant", answer.content());
    } else {
      messages_.erase(messages_.size() - 1);
    }
    return status;
  }

 private:
  void Add(const std::string& role, const std::string& content) {
    messages_.push_back({{"role", role}, {"content", content}});
  }

  const ChatOptions& options_;
  const HttpClient& client_;
  const std::string model_;
  nlohmann::json messages_ = nlohmann::json::array();
};

// A line of stdin without its end; nothing at its end or on Ctrl-C.
std::optional<std::string> ReadLine() {
  interrupted = false;
  char* line = nullptr;
  size_t capacity = 0;
  const ssize_t length = getline(&line, &capacity, stdin);
  std::optional<std::string> text;
  if (length >= 0 && !interrupted) text = std::string(line, static_cast<size_t>(length));
  std::free(line);
  return text;
}

absl::Status Chat(const ChatOptions& options) {
  SLUICE_ASSIGN_OR_RETURN(const HttpClient client,
                          HttpClient::Create(options.endpoint, options.api_key, options.ca));
  std::string model = options.model;
  if (model.empty()) {
    SLUICE_ASSIGN_OR_RETURN(model, FirstModel(client));
  }
  Conversation conversation(options, client, model);
  TakeInterrupts();
  if (options.ask.has_value()) return conversation.Ask(*options.ask);
  const bool on_terminal = isatty(STDIN_FILENO) == 1;
  if (on_terminal) {
    std::fprintf(stderr, "Talking to %s at %s. Ctrl-C ends an answer, Ctrl-D the conversation.\n",
                 model.c_str(), client.endpoint().c_str());
  }
  while (true) {
    if (on_terminal) std::fputs("\n> ", stderr);
    const std::optional<std::string> line = ReadLine();
    if (!line.has_value()) break;
    const std::string question(absl::StripAsciiWhitespace(*line));
    if (question.empty()) continue;
    const absl::Status status = conversation.Ask(question);
    if (status.ok() || absl::IsCancelled(status)) continue;
    // A person may try again; a script is told at once.
    if (!on_terminal) return status;
    std::fprintf(stderr, "sluice: %s\n", std::string(status.message()).c_str());
  }
  if (on_terminal) std::fputs("\n", stderr);
  return absl::OkStatus();
}

}  // namespace

Command AddChatCommand(CLI::App* parent) {
  auto options = std::make_shared<ChatOptions>();
  CLI::App* command =
      parent->add_subcommand("chat", "talk to a running cluster; answers stream, history is kept");
  command->add_option("--endpoint", options->endpoint, "where its OpenAI API is")
      ->envname("SLUICE_ENDPOINT")
      ->option_text("URL [$SLUICE_ENDPOINT or http://127.0.0.1:8000]");
  command->add_option("--api-key", options->api_key, "when the cluster wants one")
      ->envname("SLUICE_API_KEY")
      ->option_text("KEY [$SLUICE_API_KEY]");
  command->add_option("--ca", options->ca, "for https: who signs its certificate, a PEM file")
      ->envname("SLUICE_CA")
      ->option_text("FILE [$SLUICE_CA or whom the system trusts]");
  command->add_option("--model", options->model, "which of its models")
      ->option_text("NAME [the first it offers]");
  command->add_option("--ask", options->ask, "one question, and end after its answer")
      ->option_text("TEXT");
  command->add_option("--system", options->system, "the system message")->option_text("TEXT");
  command->add_option("--temperature", options->temperature, "default: the cluster's")
      ->option_text("X");
  command->add_option("--max-tokens", options->max_tokens, "of an answer; default: as many as fit")
      ->check(CLI::Range(int64_t{1}, INT64_MAX))
      ->option_text("N");
  command->add_option("--seed", options->seed, "default: drawn anew")->option_text("N");
  return [options] { return Chat(*options); };
}

}  // namespace sluice::cli
