#include "services/rpc/status.h"

#include <cstdint>

#include "absl/strings/string_view.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace sluice::rpc {
namespace {

constexpr size_t kMessageBytesMax = 2048;

// Whole UTF-8 characters of `text`; what is none becomes '?'. Protobuf takes nothing else.
std::string Mended(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size() && out.size() < kMessageBytesMax;) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const size_t length = byte < 0x80                    ? 1
                          : byte >= 0xc2 && byte < 0xe0  ? 2
                          : byte >= 0xe0 && byte < 0xf0  ? 3
                          : byte >= 0xf0 && byte <= 0xf4 ? 4
                                                         : 0;
    bool whole = length > 0 && i + length <= text.size();
    for (size_t k = 1; whole && k < length; ++k) {
      whole = (static_cast<uint8_t>(text[i + k]) & 0xc0) == 0x80;
    }
    if (whole) {
      out.append(text.data() + i, length);
      i += length;
    } else {
      out.push_back('?');
      ++i;
    }
  }
  return out;
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status, const ErrorDetails& details) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message = Mended(status.message());
  const auto code = static_cast<grpc::StatusCode>(status.code());
  if (details == ErrorDetails()) return grpc::Status(code, message);
  google::rpc::Status wire;
  wire.set_code(static_cast<int>(status.code()));
  wire.set_message(message);
  if (details.retry_after.has_value()) {
    google::rpc::RetryInfo retry;
    const timespec delay = absl::ToTimespec(*details.retry_after);
    retry.mutable_retry_delay()->set_seconds(delay.tv_sec);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(delay.tv_nsec));
    wire.add_details()->PackFrom(retry);
  }
  if (!details.reason.empty()) {
    google::rpc::ErrorInfo info;
    info.set_reason(Mended(details.reason));
    info.set_domain("sluice");
    wire.add_details()->PackFrom(info);
  }
  if (!details.field.empty()) {
    google::rpc::BadRequest bad;
    bad.add_field_violations()->set_field(Mended(details.field));
    bad.mutable_field_violations(0)->set_description(message);
    wire.add_details()->PackFrom(bad);
  }
  return grpc::Status(code, message, wire.SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

ErrorDetails DetailsOf(const grpc::Status& status) {
  ErrorDetails details;
  google::rpc::Status wire;
  if (status.error_details().empty() || !wire.ParseFromString(status.error_details()))
    return details;
  for (const google::protobuf::Any& any : wire.details()) {
    google::rpc::RetryInfo retry;
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad;
    if (any.UnpackTo(&retry)) {
      details.retry_after = absl::Seconds(retry.retry_delay().seconds()) +
                            absl::Nanoseconds(retry.retry_delay().nanos());
    } else if (any.UnpackTo(&info)) {
      details.reason = info.reason();
    } else if (any.UnpackTo(&bad) && bad.field_violations_size() > 0) {
      details.field = bad.field_violations(0).field();
    }
  }
  return details;
}

}  // namespace sluice::rpc
