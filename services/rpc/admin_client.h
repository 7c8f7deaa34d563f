// Asking a service on its admin port. This header brings no gRPC header with it.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "sluice/v1/admin.pb.h"

namespace grpc {
class Channel;
}

namespace sluice::rpc {

// One connection, kept. From any thread. Errors name the address; DeadlineExceeded and Unavailable
// when nobody answers.
class AdminClient {
 public:
  explicit AdminClient(std::string address);  // "127.0.0.1:9002"

  absl::StatusOr<v1::GetStatusResponse> GetStatus(absl::Duration timeout) const;
  absl::Status Drain(absl::Duration timeout) const;
  // Gives the level that was.
  absl::StatusOr<std::string> SetLogLevel(const std::string& level, absl::Duration timeout) const;

 private:
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace sluice::rpc
