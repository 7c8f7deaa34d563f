// Which experts a cluster's tokens went to: the balancer's memory, without threads, sockets or
// clock.
//
// Workers report once a second how many tokens each logical expert of each MoE layer got (a token
// counts once for each expert it chose). Kept are the sums since an instance attached and the sums
// over a sliding window.
//
// Balancedness of a layer: the mean over its experts of the tokens in the window, by the maximum.
// In (0, 1]; 1: all got the same. It is what one rank per expert would see, so a lower bound for
// any placement that spreads experts over fewer ranks. A layer that got no token has none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "sluice/v1/balancer.pb.h"

namespace sluice::balancer {

struct ExpertLoadOptions {
  absl::Duration window = absl::Minutes(10);
  size_t instances_max = 4096;
  size_t layers_max = 512;
  size_t experts_max = 4096;  // of a layer
};

struct Balance {
  double min = 0;  // of the worst layer
  double average = 0;
  uint32_t worst_layer = 0;
  uint64_t tokens = 0;  // in the window, all layers
};

// One thread at a time.
class ExpertLoad {
 public:
  explicit ExpertLoad(ExpertLoadOptions options) : options_(options) {}

  // Another incarnation of an instance begins anew. InvalidArgument, and nothing is taken: no
  // instance name, role unspecified, a layer twice, more layers or experts than the options allow,
  // or another number of experts in a layer than this incarnation had. ResourceExhausted: too many
  // instances.
  absl::Status Report(const v1::ExpertLoadReport& report, absl::Time now);

  // Its stream has ended: what it told is forgotten, unless a newer incarnation has reported since.
  void Remove(const std::string& instance, uint64_t incarnation);

  // Sums since each instance attached, by instance name. Unspecified: of all roles.
  v1::GetExpertLoadResponse Sums(v1::Role role) const;

  // Over the window that ends now, all instances of that role together; nothing when no token came.
  std::optional<Balance> BalanceOf(v1::Role role, absl::Time now);

  size_t num_instances(v1::Role role) const;
  // Since the instance that has been silent for longest spoke; zero without instances.
  absl::Duration StalestReport(absl::Time now) const;

 private:
  using LayerTokens = std::map<uint32_t, std::vector<uint64_t>>;  // layer -> tokens by expert

  // Tokens of a part of the window.
  struct Slice {
    absl::Time start;
    LayerTokens tokens;
  };

  struct Instance {
    uint64_t incarnation = 0;
    v1::Role role = v1::ROLE_UNSPECIFIED;
    std::string model_hash;
    uint64_t epoch = 0;
    uint64_t steps = 0;
    absl::Time reported;
    LayerTokens sums;
    std::deque<Slice> slices;  // oldest first; those older than the window go
  };

  absl::Status Check(const v1::ExpertLoadReport& report) const;
  void DropOldSlices(Instance* instance, absl::Time now) const;

  const ExpertLoadOptions options_;
  std::map<std::string, Instance> instances_;
};

}  // namespace sluice::balancer
