#include "tools/sluice/printer.h"

#include <unistd.h>

#include <csignal>
#include <cstdio>

namespace sluice::cli {
namespace {

// The terminal must not stay dim when the reply is interrupted.
void UndimAndDie(int signal_number) {
  constexpr char kPlain[] = "\x1b[0m\n";
  [[maybe_unused]] const ssize_t written = write(STDOUT_FILENO, kPlain, sizeof(kPlain) - 1);
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

void Write(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

}  // namespace

Printer::Printer(bool in_thinking, OnSignal on_signal) : color_(isatty(STDOUT_FILENO) == 1) {
  if (color_ && on_signal == OnSignal::kUndimAndDie) {
    for (const int signal_number : {SIGINT, SIGTERM}) std::signal(signal_number, &UndimAndDie);
  }
  if (in_thinking) OpenReasoning();
}

void Printer::Print(const model::ReplyDelta& delta) {
  if (!delta.reasoning.empty()) {
    if (!reasoning_) OpenReasoning();
    Write(delta.reasoning);
  }
  if (!delta.content.empty()) {
    if (reasoning_) CloseReasoning();
    Write(delta.content);
  }
  std::fflush(stdout);
}

void Printer::Finish() {
  if (reasoning_) CloseReasoning();
  std::fputs("\n", stdout);
  std::fflush(stdout);
}

void Printer::OpenReasoning() {
  reasoning_ = true;
  Write(color_ ? "\x1b[2m" : "<think>\n");
}

void Printer::CloseReasoning() {
  reasoning_ = false;
  Write(color_ ? "\x1b[0m\n\n" : "\n</think>\n\n");
}

}  // namespace sluice::cli
