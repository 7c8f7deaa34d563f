// Finds stop strings in streamed text without ever emitting any part of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice::model {

// Feed the text piece by piece, emit what comes back. The longest end of the text that may still
// become a stop string is held back. The stop string that ends first wins; of those that end at
// the same place, the longest. Time is linear in the text (Aho-Corasick), whatever the stops.
//
// Threads: one at a time. Copyable: a copy goes on from the same state.
class StopMatcher {
 public:
  static constexpr size_t kCountMax = 16;
  static constexpr size_t kBytesMax = 1024;  // of one stop string

  // include_stop: the stop string itself is emitted too.
  // Errors: InvalidArgument for too many, too long, empty or not UTF-8 stop strings, naming the
  // index ("stop[3]"). No stops at all is fine: everything passes through.
  static absl::StatusOr<StopMatcher> Create(const std::vector<std::string>& stops,
                                            bool include_stop);

  struct Result {
    std::string text;            // safe to emit
    std::optional<size_t> stop;  // index of the stop string that was found
  };

  // After a stop was found, further text is dropped and the result stays empty with that stop.
  Result Feed(absl::string_view text);

  // The text is over: what was held back, for it is no stop string after all. Empty after a stop.
  std::string Flush();

 private:
  struct Node {
    std::vector<std::pair<uint8_t, int32_t>> children;  // sorted by byte
    int32_t fail = 0;   // the longest proper suffix that is also a prefix of some stop
    int32_t depth = 0;  // bytes from the root
    int32_t stop = -1;  // the longest stop string ending here, or -1
  };

  StopMatcher() = default;
  void AddStop(const std::string& stop, int32_t index);
  void LinkFails();
  int32_t ChildOf(int32_t node, uint8_t byte) const;  // -1: none
  int32_t Step(int32_t state, uint8_t byte) const;

  std::vector<Node> nodes_;  // the root is 0
  std::vector<size_t> stop_bytes_;
  bool include_stop_ = false;
  int32_t state_ = 0;
  std::string held_;  // the last nodes_[state_].depth bytes of the text
  std::optional<size_t> found_;
};

}  // namespace sluice::model
