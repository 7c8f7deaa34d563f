// A reply on its way to stdout.
#pragma once

#include <string>

#include "services/model/reply.h"

namespace sluice::cli {

// Streams to stdout as the reply comes; reasoning dimmed on a terminal, in <think> tags elsewhere.
class Printer {
 public:
  enum class OnSignal { kUndimAndDie, kLeave };
  // On a terminal SIGINT and SIGTERM undim it and then end the program, unless somebody else takes
  // care of signals.
  explicit Printer(bool in_thinking, OnSignal on_signal = OnSignal::kUndimAndDie);
  void Print(const model::ReplyDelta& delta);
  void Finish();

 private:
  void OpenReasoning();
  void CloseReasoning();

  const bool color_;
  bool reasoning_ = false;
};

}  // namespace sluice::cli
