// Both clients in one source, for each that includes grpcpp takes long to compile.
#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "services/rpc/admin_client.h"
#include "services/rpc/channel.h"
#include "services/rpc/status.h"
#include "sluice/v1/admin.grpc.pb.h"

namespace sluice::rpc {
namespace {

constexpr int kMessageBytesMax = 64 << 20;

void SetTimeout(absl::Duration timeout, grpc::ClientContext* context) {
  context->set_deadline(std::chrono::system_clock::now() +
                        absl::ToChronoNanoseconds(std::min(timeout, absl::Hours(24))));
}

absl::Status Named(const std::string& address, const grpc::Status& status) {
  const absl::Status converted = FromGrpc(status);
  if (converted.ok()) return converted;
  // gRPC has no words for a method that is not there.
  const absl::string_view what =
      status.error_code() == grpc::StatusCode::UNIMPLEMENTED && converted.message().empty()
          ? "answers, but is no admin port"
          : converted.message();
  return absl::Status(converted.code(), absl::StrCat(address, ": ", what));
}

}  // namespace

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // How long an attempt to connect may take, whatever its name says.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // between services there is none
  arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
  arguments.SetMaxSendMessageSize(kMessageBytesMax);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

AdminClient::AdminClient(std::string address)
    : address_(std::move(address)), channel_(MakeChannel(address_)) {}

absl::StatusOr<v1::GetStatusResponse> AdminClient::GetStatus(absl::Duration timeout) const {
  grpc::ClientContext context;
  SetTimeout(timeout, &context);
  v1::GetStatusResponse response;
  const grpc::Status status = v1::Admin::NewStub(channel_)->GetStatus(&context, {}, &response);
  if (!status.ok()) return Named(address_, status);
  return response;
}

absl::Status AdminClient::Drain(absl::Duration timeout) const {
  grpc::ClientContext context;
  SetTimeout(timeout, &context);
  v1::DrainResponse response;
  return Named(address_, v1::Admin::NewStub(channel_)->Drain(&context, {}, &response));
}

absl::StatusOr<std::string> AdminClient::SetLogLevel(const std::string& level,
                                                     absl::Duration timeout) const {
  grpc::ClientContext context;
  SetTimeout(timeout, &context);
  v1::SetLogLevelRequest request;
  request.set_level(level);
  v1::SetLogLevelResponse response;
  const grpc::Status status =
      v1::Admin::NewStub(channel_)->SetLogLevel(&context, request, &response);
  if (!status.ok()) return Named(address_, status);
  return response.previous();
}

}  // namespace sluice::rpc
