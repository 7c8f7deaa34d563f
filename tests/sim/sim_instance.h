// What the simulated cluster asks of an instance, whatever is inside.
#pragma once

#include <cstdint>

#include "sluice/v1/control.pb.h"

namespace sluice::sim {

inline constexpr uint32_t kVocab = 1000;

// What all tokens of a sequence are folded into, and the token that follows them: a model that
// every instance agrees on, and that notices any wrong token before it.
inline constexpr uint64_t kNoTokens = 14695981039346656037u;
inline uint64_t Fold(uint64_t hash, uint32_t token) {
  hash = (hash ^ token) * 1099511628211u;
  return hash ^ (hash >> 29);
}
inline uint32_t NextToken(uint64_t hash) {
  return static_cast<uint32_t>((hash * 0x9E3779B97F4A7C15) >> 40) % kVocab;
}

// Chances of faults, each time there is an occasion. All zero: a good instance.
struct Faults {
  double refuse = 0;       // an admit, though there is room
  double hand_back = 0;    // a request, in a step
  double kv_fails = 0;     // a transfer
  double kv_is_lost = 0;   // a transfer, silently
  double damaged = 0;      // a step's logits of a request
  double contradicts = 0;  // a token that was sent already, in a step
  double gap = 0;          // tokens left out, in a step
  double repeats = 0;      // the last token sent once more: allowed
  double kv_gap = 0;       // a sequence number of KV events left out
};

class Instance {
 public:
  virtual ~Instance() = default;
  virtual v1::Hello hello() const = 0;
  virtual void OnMessage(const v1::RouterMessage& message) = 0;
  // Its stream broke: everything that the router had placed here is over.
  virtual void OnRouterGone() = 0;
  // KV for one of its leases has come.
  virtual void OnKv(uint64_t lease, bool fails) = 0;
  // The loop's turn: one step, and what is due.
  virtual void Step() = 0;
  virtual void Heartbeat() = 0;
  // Wedged: it says that it lives, but its steps stand still.
  virtual void SetWedged(bool wedged) = 0;
  virtual void BeginDrain() = 0;
  // It makes no faults of its own from now on.
  virtual void StopFaults() = 0;
  // It holds nothing for anybody.
  virtual bool idle() const = 0;
};

}  // namespace sluice::sim
