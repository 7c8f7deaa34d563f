// What the edge wants of whatever computes tokens: the router's core (core_backend.h), or a
// stand-in in tests. All on the loop thread.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "services/router/generation.h"

namespace sluice::router {

class TokenBackend {
 public:
  virtual ~TokenBackend() = default;
  // As RouterCore::Submit and Cancel.
  virtual absl::StatusOr<RequestId> Submit(GenerationRequest request, GenerationSink* sink) = 0;
  virtual void Cancel(RequestId id) = 0;
  // A request could be placed now.
  virtual bool CanPlace() const = 0;
  // Of the instances' KV; empty when none is known.
  virtual std::string KvLayoutHash() const = 0;
  virtual absl::Time Now() const = 0;
};

}  // namespace sluice::router
