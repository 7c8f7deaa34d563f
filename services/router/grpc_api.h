// The public gRPC API (sluice/v1/generation.proto): Generation, Tokenizer, Models. This header
// brings no gRPC header with it.
//
// Errors come as gRPC status with google.rpc details (services/rpc/status.h). A call's deadline is
// its request's; a client that goes, or does not read, ends it. With API keys, every call carries
// one in the metadata "authorization: Bearer KEY". "x-request-id" is echoed.
//
// Threads: gRPC's; everything of the edge is done on the loop, through Edge::post.
#pragma once

#include <memory>
#include <vector>

#include "services/router/api_call.h"
#include "services/router/api_keys.h"
#include "services/rpc/server.h"

namespace sluice::router {

class GrpcApi {
 public:
  // Both outlive it. It must live until the server it is registered with has shut down, and what
  // was posted has run.
  GrpcApi(Edge* edge, const ApiKeys* keys);
  ~GrpcApi();

  std::vector<rpc::NamedService> services() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::router
