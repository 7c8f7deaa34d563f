#include "services/model/stop_matcher.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/model/utf8.h"

namespace sluice::model {
namespace {

absl::Status CheckStops(const std::vector<std::string>& stops) {
  if (stops.size() > StopMatcher::kCountMax) {
    return absl::InvalidArgumentError(absl::StrCat("stop: ", stops.size(), " strings; at most ",
                                                   StopMatcher::kCountMax, " are allowed"));
  }
  for (size_t i = 0; i < stops.size(); ++i) {
    const std::string field = absl::StrCat("stop[", i, "]: ");
    if (stops[i].empty()) return absl::InvalidArgumentError(absl::StrCat(field, "is empty"));
    if (stops[i].size() > StopMatcher::kBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat(field, stops[i].size(), " bytes; at most ",
                                                     StopMatcher::kBytesMax, " are allowed"));
    }
    if (!IsValidUtf8(stops[i])) {
      return absl::InvalidArgumentError(absl::StrCat(field, "is not valid UTF-8"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<StopMatcher> StopMatcher::Create(const std::vector<std::string>& stops,
                                                bool include_stop) {
  const absl::Status status = CheckStops(stops);
  if (!status.ok()) return status;
  StopMatcher matcher;
  matcher.include_stop_ = include_stop;
  matcher.nodes_.emplace_back();
  for (size_t i = 0; i < stops.size(); ++i) matcher.AddStop(stops[i], static_cast<int32_t>(i));
  matcher.LinkFails();
  return matcher;
}

int32_t StopMatcher::ChildOf(int32_t node, uint8_t byte) const {
  const auto& children = nodes_[node].children;
  const auto child =
      std::lower_bound(children.begin(), children.end(), std::pair(byte, int32_t{0}));
  return child != children.end() && child->first == byte ? child->second : -1;
}

void StopMatcher::AddStop(const std::string& stop, int32_t index) {
  int32_t node = 0;
  for (const char c : stop) {
    const uint8_t byte = static_cast<uint8_t>(c);
    int32_t child = ChildOf(node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      auto& children = nodes_[node].children;
      const std::pair<uint8_t, int32_t> link(byte, child);
      children.insert(std::lower_bound(children.begin(), children.end(), link), link);
      const int32_t depth = nodes_[node].depth + 1;
      nodes_.push_back({.depth = depth});
    }
    node = child;
  }
  if (nodes_[node].stop < 0) nodes_[node].stop = index;  // of equal strings the first counts
  stop_bytes_.push_back(stop.size());
}

// Breadth first, so that the nodes that a fail link can lead to are done before.
void StopMatcher::LinkFails() {
  std::vector<int32_t> queue = {0};
  for (size_t i = 0; i < queue.size(); ++i) {
    const int32_t node = queue[i];
    for (const auto& [byte, child] : nodes_[node].children) {
      const int32_t fail = node == 0 ? 0 : Step(nodes_[node].fail, byte);
      nodes_[child].fail = fail;
      if (nodes_[child].stop < 0) nodes_[child].stop = nodes_[fail].stop;
      queue.push_back(child);
    }
  }
}

int32_t StopMatcher::Step(int32_t state, uint8_t byte) const {
  for (;;) {
    const int32_t child = ChildOf(state, byte);
    if (child >= 0) return child;
    if (state == 0) return 0;
    state = nodes_[state].fail;
  }
}

StopMatcher::Result StopMatcher::Feed(absl::string_view text) {
  if (found_) return {.text = {}, .stop = found_};
  const size_t held_bytes = held_.size();
  held_.append(text.data(), text.size());
  for (size_t i = held_bytes; i < held_.size(); ++i) {
    state_ = Step(state_, static_cast<uint8_t>(held_[i]));
    if (nodes_[state_].stop < 0) continue;
    found_ = static_cast<size_t>(nodes_[state_].stop);
    held_.resize(include_stop_ ? i + 1 : i + 1 - stop_bytes_[*found_]);
    return {.text = std::exchange(held_, {}), .stop = found_};
  }
  Result result;
  const size_t safe_bytes = held_.size() - nodes_[state_].depth;
  result.text = held_.substr(0, safe_bytes);
  held_.erase(0, safe_bytes);
  return result;
}

std::string StopMatcher::Flush() {
  state_ = 0;
  return std::exchange(held_, {});
}

}  // namespace sluice::model
