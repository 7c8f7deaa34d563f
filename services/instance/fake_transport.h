// Both ends of a KV transport that does what a test says, when it says so: no bytes, no threads.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "services/transport/kv_transfer.h"

namespace sluice::instance {

class FakeReceiver final : public transport::KvReceiver {
 public:
  const std::string& endpoint() const override { return endpoint_; }
  uint64_t incarnation() const override { return 7; }

  absl::Status Open(const v1::Lease& lease, int64_t rows, transport::LeaseDone on_done) override {
    if (!fail_open_.ok()) return std::exchange(fail_open_, absl::OkStatus());
    leases[lease.lease()] = {lease, rows, std::move(on_done)};
    return absl::OkStatus();
  }
  absl::Status Close(uint64_t lease, absl::Duration) override {
    if (holding) return absl::DeadlineExceededError("a copy is in flight");
    leases.erase(lease);
    return absl::OkStatus();
  }
  transport::KvReceiverStats receiver_stats() const override { return {}; }

  // The lease's result, as the transport would report it.
  void Finish(uint64_t lease, absl::Status status = absl::OkStatus()) {
    leases.at(lease).on_done({.lease = lease,
                              .status = std::move(status),
                              .bytes = 1000,
                              .duration = absl::Milliseconds(3)});
  }
  void FailNextOpen(absl::Status status) { fail_open_ = std::move(status); }

  struct Lease {
    v1::Lease lease;
    int64_t rows = 0;
    transport::LeaseDone on_done;
  };
  std::map<uint64_t, Lease> leases;  // open ones
  bool holding = false;              // Close finds copies in flight

 private:
  const std::string endpoint_ = "fake";
  absl::Status fail_open_;
};

class FakeSender final : public transport::KvSender {
 public:
  absl::StatusOr<transport::TransferId> Begin(const v1::Lease& lease, absl::Duration,
                                              transport::SentDone on_sent) override {
    if (!fail_begin_.ok()) return std::exchange(fail_begin_, absl::OkStatus());
    transfers[++last_] = {lease, std::move(on_sent)};
    return last_;
  }
  absl::Status Write(transport::TransferId transfer,
                     absl::Span<const transport::PageWrite> writes) override {
    const auto it = transfers.find(transfer);
    if (it == transfers.end()) return absl::NotFoundError("ended");
    it->second.writes.insert(it->second.writes.end(), writes.begin(), writes.end());
    return absl::OkStatus();
  }
  void Abort(transport::TransferId transfer) override {
    const auto it = transfers.find(transfer);
    if (it != transfers.end()) it->second.aborted = true;
  }
  transport::KvSenderStats sender_stats() const override { return {}; }

  void Finish(transport::TransferId transfer, const absl::Status& status = absl::OkStatus()) {
    const auto node = transfers.extract(transfer);
    node.mapped().on_sent(transfer, status);
  }
  void FailNextBegin(absl::Status status) { fail_begin_ = std::move(status); }

  struct Transfer {
    v1::Lease lease;
    transport::SentDone on_sent;
    std::vector<transport::PageWrite> writes;
    bool aborted = false;
  };
  std::map<transport::TransferId, Transfer> transfers;  // that have not ended

 private:
  transport::TransferId last_ = 0;
  absl::Status fail_begin_;
};

}  // namespace sluice::instance
