// Which rows of KV go out when: the pages of a prompt leave layer by layer while later layers and
// later chunks are still being computed.
//
// The engine says "layer l of step n is written"; whatever that completes of a request with a lease
// is handed to the transport at once. A page goes when it is full, the last one with its last row.
// What was computed (or found in the prefix cache) before the lease came goes when it comes. On a
// device that computes behind the engine's back, "written" means "once its stream has come to a
// point": every page carries that of the chunk that completed it in its layer, or of a later one of
// its request; pages from the cache carry none, for whoever finds a page there finds it written.
//
// Threads: OnKvWritten on the engine's thread; everything else on the loop's thread. One mutex,
// held for the writes of one layer at a time.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "services/engine/layer_listener.h"
#include "services/transport/kv_transfer.h"

namespace sluice::instance {

class KvPush final : public engine::LayerListener {
 public:
  // `sender` must outlive the object.
  KvPush(int64_t layers, transport::KvSender* sender);

  // A request whose first `positions` positions are to be sent.
  void Add(uint64_t request, int64_t positions);
  // The step `number`, about to be submitted, computes positions [first, first + count) of a
  // request that was added; `pages` hold all positions up to there. Positions before `first` are
  // computed in all layers when the step begins.
  void OnPlanned(uint64_t number, uint64_t request, int64_t first, int64_t count,
                 absl::Span<const int32_t> pages);
  // Sends pages first_page, first_page + 1, … of the request along `transfer`, as they are ready.
  void Grant(uint64_t request, transport::TransferId transfer, int64_t first_page);
  // When it returns, nothing of the request is being handed over, and nothing will be.
  void Drop(uint64_t request);

  void OnKvWritten(uint64_t step, int64_t layer, StreamPoint point) override;

 private:
  struct Sequence {
    int64_t positions = 0;
    bool granted = false;
    transport::TransferId transfer = 0;
    std::vector<int32_t> pages;
    std::vector<int64_t> ready;       // by layer: positions [0, ready) are computed
    std::vector<StreamPoint> points;  // by layer: once the stream has come there
    std::vector<int64_t> sent;  // by layer: positions [0, sent) need not be handed over any more
  };
  struct Chunk {
    uint64_t step = 0;
    uint64_t request = 0;
    int64_t end = 0;  // first position after the chunk
  };

  void Send(Sequence* sequence, int64_t layer);

  const int64_t layers_;
  transport::KvSender* const sender_;
  std::mutex mutex_;  // guards all below
  absl::flat_hash_map<uint64_t, Sequence> sequences_;
  std::vector<Chunk> chunks_;                 // of steps not yet through all layers, oldest first
  std::vector<transport::PageWrite> writes_;  // of one call of Send
};

}  // namespace sluice::instance
