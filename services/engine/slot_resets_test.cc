#include "services/engine/slot_resets.h"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "services/engine/fake_backend.h"

namespace sluice::engine {
namespace {

constexpr int64_t kVocab = 50;

// Copies happen when somebody waits for them.
class LateBackend : public FakeBackend {
 public:
  absl::Status CopyToDevice(void* device, const void* host, size_t bytes, StreamId) override {
    queue_.emplace_back([=] { std::memcpy(device, host, bytes); });
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<StreamEvent>> MakeEvent() override {
    return std::make_unique<Event>();
  }
  absl::Status Mark(StreamEvent* event, StreamId) override {
    static_cast<Event*>(event)->place = run_ + queue_.size();
    return absl::OkStatus();
  }
  absl::Status Wait(const StreamEvent& event) override {
    while (run_ < static_cast<const Event&>(event).place) RunOne();
    return absl::OkStatus();
  }
  size_t queued() const { return queue_.size(); }
  void RunAll() {
    while (!queue_.empty()) RunOne();
  }

 private:
  struct Event : StreamEvent {
    size_t place = 0;  // copies before it
  };
  void RunOne() {
    queue_.front()();
    queue_.pop_front();
    ++run_;
  }

  std::deque<std::function<void()>> queue_;
  size_t run_ = 0;
};

TEST(SlotResetsTest, RowsOfManySlotsArriveWhole) {
  constexpr int64_t kSlots = 3 * SlotResets::kAtOnce;
  LateBackend backend;
  std::vector<uint8_t> mask(kSlots * kVocab, 0xAA);
  std::vector<int32_t> counts(kSlots * kVocab, -1);
  auto resets = SlotResets::Create(&backend, TensorView(mask.data(), DType::kU8, {kSlots, kVocab}),
                                   TensorView(counts.data(), DType::kI32, {kSlots, kVocab}));
  ASSERT_TRUE(resets.ok()) << resets.status();
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    const std::vector<int32_t> prompt = {slot, slot, 49}, output = {0, slot, slot, slot};
    ASSERT_TRUE((*resets)->Reset(slot, prompt, output, {}).ok());
    // As many as have a row of their own are not waited for.
    if (slot < SlotResets::kAtOnce) {
      EXPECT_EQ(backend.queued(), 2u * (slot + 1));
    }
  }
  EXPECT_EQ(backend.num_syncs(), 0);
  backend.RunAll();
  for (int32_t slot = 0; slot < kSlots; ++slot) {
    for (int32_t id = 0; id < kVocab; ++id) {
      SCOPED_TRACE(testing::Message() << "slot " << slot << ", id " << id);
      EXPECT_EQ(mask[slot * kVocab + id], id == slot || id == 49 ? 1 : 0);
      EXPECT_EQ(counts[slot * kVocab + id], (id == slot ? 3 : 0) + (id == 0 ? 1 : 0));
    }
  }
}

TEST(SlotResetsTest, ASlotTakenTwiceHasWhatCameLast) {
  LateBackend backend;
  std::vector<uint8_t> mask(2 * kVocab);
  std::vector<int32_t> counts(2 * kVocab);
  auto resets = SlotResets::Create(&backend, TensorView(mask.data(), DType::kU8, {2, kVocab}),
                                   TensorView(counts.data(), DType::kI32, {2, kVocab}));
  ASSERT_TRUE(resets.ok()) << resets.status();
  for (const int32_t id : {3, 4, 5}) {
    ASSERT_TRUE((*resets)->Reset(1, {id}, {id, id}, {}).ok());
  }
  backend.RunAll();
  for (int32_t id = 0; id < kVocab; ++id) {
    EXPECT_EQ(mask[kVocab + id], id == 5 ? 1 : 0) << id;
    EXPECT_EQ(counts[kVocab + id], id == 5 ? 2 : 0) << id;
    EXPECT_EQ(mask[id], 0) << id;
  }
}

TEST(SlotResetsTest, NoPinnedMemoryIsTold) {
  FakeBackend backend;
  backend.FailAllocation("penalties of a slot");
  uint8_t mask = 0;
  int32_t counts = 0;
  const auto resets = SlotResets::Create(&backend, TensorView(&mask, DType::kU8, {1, 1}),
                                         TensorView(&counts, DType::kI32, {1, 1}));
  EXPECT_EQ(resets.status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace sluice::engine
