#include "services/instance/kv_push.h"

#include <algorithm>

#include "kernels/ops/attention.h"

namespace sluice::instance {

KvPush::KvPush(int64_t layers, transport::KvSender* sender) : layers_(layers), sender_(sender) {}

void KvPush::Add(uint64_t request, int64_t positions) {
  const std::lock_guard lock(mutex_);
  Sequence& sequence = sequences_[request];
  sequence.positions = positions;
  sequence.ready.assign(layers_, 0);
  sequence.points.assign(layers_, {});
  sequence.sent.assign(layers_, 0);
}

void KvPush::OnPlanned(uint64_t number, uint64_t request, int64_t first, int64_t count,
                       absl::Span<const int32_t> pages) {
  const std::lock_guard lock(mutex_);
  const auto it = sequences_.find(request);
  if (it == sequences_.end()) return;
  Sequence& sequence = it->second;
  sequence.pages.assign(pages.begin(), pages.end());
  const bool first_chunk = std::none_of(
      chunks_.begin(), chunks_.end(), [&](const Chunk& chunk) { return chunk.request == request; });
  if (first_chunk) {
    // What lies before is in the cache already, in every layer.
    for (int64_t layer = 0; layer < layers_; ++layer) {
      sequence.ready[layer] = std::max(sequence.ready[layer], first);
      Send(&sequence, layer);
    }
  }
  chunks_.push_back({number, request, first + count});
}

void KvPush::Grant(uint64_t request, transport::TransferId transfer, int64_t first_page) {
  for (int64_t layer = 0; layer < layers_; ++layer) {
    const std::lock_guard lock(mutex_);
    const auto it = sequences_.find(request);
    if (it == sequences_.end()) return;
    Sequence& sequence = it->second;
    sequence.granted = true;
    sequence.transfer = transfer;
    if (layer == 0) sequence.sent.assign(layers_, first_page * kPageTokens);
    Send(&sequence, layer);
  }
}

void KvPush::Drop(uint64_t request) {
  const std::lock_guard lock(mutex_);
  sequences_.erase(request);
}

void KvPush::OnKvWritten(uint64_t step, int64_t layer, StreamPoint point) {
  const std::lock_guard lock(mutex_);
  for (const Chunk& chunk : chunks_) {
    if (chunk.step != step) continue;
    const auto it = sequences_.find(chunk.request);
    if (it == sequences_.end()) continue;
    it->second.ready[layer] = std::max(it->second.ready[layer], chunk.end);
    it->second.points[layer] = point;
    Send(&it->second, layer);
  }
  if (layer + 1 < layers_) return;
  chunks_.erase(std::remove_if(chunks_.begin(), chunks_.end(),
                               [&](const Chunk& chunk) { return chunk.step <= step; }),
                chunks_.end());
}

void KvPush::Send(Sequence* sequence, int64_t layer) {
  if (!sequence->granted) return;
  const int64_t ready = std::min(sequence->ready[layer], sequence->positions);
  int64_t& sent = sequence->sent[layer];
  writes_.clear();
  while (sent < ready) {
    const int64_t end = std::min(sent + kPageTokens, sequence->positions);
    if (end > ready) break;  // the page is not complete
    const int64_t index = sent / kPageTokens;
    writes_.push_back({.layer = layer,
                       .index = index,
                       .page = sequence->pages[index],
                       .rows = end - sent,
                       .after = sequence->points[layer]});
    sent = end;
  }
  if (writes_.empty()) return;
  // A transfer that has ended takes no more; its end says why, and is handled there.
  if (!sender_->Write(sequence->transfer, writes_).ok()) sender_->Abort(sequence->transfer);
}

}  // namespace sluice::instance
