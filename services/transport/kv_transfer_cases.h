// What every twin of KV transfer must do, as one parameterised suite: a test program lists
// kv_transfer_cases.cc among its sources and instantiates KvTransferTest with its network.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "services/transport/kv_transfer.h"
#include "services/transport/memory_mover.h"

namespace sluice::transport {

// How long a test waits for what must happen.
inline constexpr absl::Duration kPatience = absl::Seconds(20);

// Makes processes that can reach each other. Outlives them.
class TestNetwork {
 public:
  virtual ~TestNetwork() = default;
  virtual std::unique_ptr<KvTransport> Join(const KvMemory& memory, uint64_t incarnation) = 0;
};
struct TestNetworkMaker {
  std::string name;
  std::function<std::unique_ptr<TestNetwork>()> make;
};
inline std::string NetworkName(const testing::TestParamInfo<TestNetworkMaker>& info) {
  return info.param.name;
}

// A value that another thread brings. Copies share it, so that a late one finds its place.
template <typename T>
class Box {
 public:
  void Put(T value) {
    const std::lock_guard lock(state_->mutex);
    if (state_->value) ADD_FAILURE() << "a second value came";
    state_->value = std::move(value);
    state_->came.notify_all();
  }
  std::optional<T> Wait() {
    std::unique_lock lock(state_->mutex);
    state_->came.wait_for(lock, absl::ToChronoMilliseconds(kPatience),
                          [&] { return state_->value.has_value(); });
    return state_->value;
  }
  bool Has() {
    const std::lock_guard lock(state_->mutex);
    return state_->value.has_value();
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable came;
    std::optional<T> value;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

// KV memory of random bytes, which other processes may map.
class Pool {
 public:
  Pool(const KvLayout& layout, uint64_t seed);
  Pool(const Pool&) = delete;
  const KvMemory& memory() const { return memory_; }
  // As it is now, to be compared later.
  std::string Copy() const;
  std::string Rows(int64_t layer, int64_t page, int64_t rows) const;

 private:
  DeviceBuffer bytes_;
  KvMemory memory_;
};

// One process with its memory.
struct Side {
  Side(TestNetwork* network, const KvLayout& layout, uint64_t incarnation)
      : pool(layout, incarnation), transport(network->Join(pool.memory(), incarnation)) {}

  v1::Lease MakeLease(uint64_t id, uint32_t first_page, const std::vector<uint32_t>& pages) const;
  absl::Status Open(const v1::Lease& lease, int64_t rows, Box<LeaseResult> done);
  TransferId Begin(const v1::Lease& lease, Box<absl::Status> sent,
                   absl::Duration timeout = kPatience);

  Pool pool;
  std::unique_ptr<KvTransport> transport;
};

// Every (layer, page) of a lease of `count` pages, where page i of the lease is the sender's page
// i; the last page has `rows_of_last` rows. By layers, then pages.
std::vector<PageWrite> AllWrites(const KvLayout& layout, const v1::Lease& lease,
                                 int64_t rows_of_last);

// Waits until the receiver has taken that many (layer, page) pairs in all.
void WaitForPages(const Side& to, int64_t pages);

// The code of a transfer's end.
absl::StatusCode CodeOf(Box<absl::Status> sent);

// Whether the receiver's rows are the sender's.
void ExpectArrived(const Side& from, const Side& to, const v1::Lease& lease, int64_t rows_of_last);

class KvTransferTest : public testing::TestWithParam<TestNetworkMaker> {
 protected:
  void SetUp() override { network_ = GetParam().make(); }
  std::unique_ptr<TestNetwork> network_;
};

}  // namespace sluice::transport
