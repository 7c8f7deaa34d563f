#include "services/balancer/expert_load.h"

#include <algorithm>
#include <limits>
#include <set>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice::balancer {
namespace {

// The window moves in steps of this part of it.
constexpr int kSlicesPerWindow = 20;

void Add(const std::vector<uint64_t>& tokens, std::vector<uint64_t>* sums) {
  if (sums->size() < tokens.size()) sums->resize(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) (*sums)[i] += tokens[i];
}

std::vector<uint64_t> TokensOf(const v1::LayerLoad& layer) {
  return {layer.tokens().begin(), layer.tokens().end()};
}

}  // namespace

absl::Status ExpertLoad::Check(const v1::ExpertLoadReport& report) const {
  if (report.instance().empty()) return absl::InvalidArgumentError("instance is empty");
  if (report.role() != v1::ROLE_PREFILL && report.role() != v1::ROLE_DECODE &&
      report.role() != v1::ROLE_MIXED) {
    return absl::InvalidArgumentError(absl::StrCat(report.instance(), ": role is ",
                                                   static_cast<int>(report.role()),
                                                   "; wanted prefill, decode or mixed"));
  }
  if (static_cast<size_t>(report.layers_size()) > options_.layers_max) {
    return absl::InvalidArgumentError(absl::StrCat(report.instance(), ": ", report.layers_size(),
                                                   " layers; at most ", options_.layers_max));
  }
  const auto known = instances_.find(report.instance());
  const bool same = known != instances_.end() && known->second.incarnation == report.incarnation();
  std::set<uint32_t> seen;
  for (const v1::LayerLoad& layer : report.layers()) {
    const std::string where = absl::StrCat(report.instance(), ": layer ", layer.layer());
    if (!seen.insert(layer.layer()).second) {
      return absl::InvalidArgumentError(absl::StrCat(where, " stands twice in one report"));
    }
    const auto experts = static_cast<size_t>(layer.tokens_size());
    if (experts == 0 || experts > options_.experts_max) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, " has ", experts, " experts; wanted 1 to ", options_.experts_max));
    }
    if (!same) continue;
    const auto sums = known->second.sums.find(layer.layer());
    if (sums != known->second.sums.end() && sums->second.size() != experts) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, " has ", experts, " experts, and had ", sums->second.size()));
    }
    if (sums == known->second.sums.end() && known->second.sums.size() >= options_.layers_max) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, " is one more than the ", options_.layers_max, " allowed"));
    }
  }
  return absl::OkStatus();
}

absl::Status ExpertLoad::Report(const v1::ExpertLoadReport& report, absl::Time now) {
  SLUICE_RETURN_IF_ERROR(Check(report));
  if (instances_.size() >= options_.instances_max && instances_.count(report.instance()) == 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat(report.instance(), ": ", options_.instances_max, " instances report already"));
  }
  Instance& instance = instances_[report.instance()];
  if (instance.incarnation != report.incarnation()) instance = Instance();
  instance.incarnation = report.incarnation();
  instance.role = report.role();
  instance.model_hash = report.model_hash();
  instance.epoch = report.epoch();
  instance.steps += report.steps();
  instance.reported = now;
  DropOldSlices(&instance, now);
  const absl::Duration slice = options_.window / kSlicesPerWindow;
  if (instance.slices.empty() || now - instance.slices.back().start >= slice) {
    instance.slices.push_back({.start = now, .tokens = {}});
  }
  for (const v1::LayerLoad& layer : report.layers()) {
    const std::vector<uint64_t> tokens = TokensOf(layer);
    Add(tokens, &instance.sums[layer.layer()]);
    Add(tokens, &instance.slices.back().tokens[layer.layer()]);
  }
  return absl::OkStatus();
}

void ExpertLoad::Remove(const std::string& instance, uint64_t incarnation) {
  const auto known = instances_.find(instance);
  if (known != instances_.end() && known->second.incarnation == incarnation) {
    instances_.erase(known);
  }
}

void ExpertLoad::DropOldSlices(Instance* instance, absl::Time now) const {
  while (!instance->slices.empty() && now - instance->slices.front().start >= options_.window) {
    instance->slices.pop_front();
  }
}

v1::GetExpertLoadResponse ExpertLoad::Sums(v1::Role role) const {
  v1::GetExpertLoadResponse response;
  for (const auto& [name, instance] : instances_) {
    if (role != v1::ROLE_UNSPECIFIED && role != instance.role) continue;
    v1::ExpertLoadReport& report = *response.add_instances();
    report.set_instance(name);
    report.set_incarnation(instance.incarnation);
    report.set_role(instance.role);
    report.set_model_hash(instance.model_hash);
    report.set_epoch(instance.epoch);
    report.set_steps(instance.steps);
    for (const auto& [layer, tokens] : instance.sums) {
      v1::LayerLoad& load = *report.add_layers();
      load.set_layer(layer);
      load.mutable_tokens()->Add(tokens.begin(), tokens.end());
    }
  }
  return response;
}

std::optional<Balance> ExpertLoad::BalanceOf(v1::Role role, absl::Time now) {
  LayerTokens sums;
  for (auto& [name, instance] : instances_) {
    if (instance.role != role) continue;
    DropOldSlices(&instance, now);
    for (const Slice& slice : instance.slices) {
      for (const auto& [layer, tokens] : slice.tokens) Add(tokens, &sums[layer]);
    }
  }
  Balance balance{.min = std::numeric_limits<double>::infinity()};
  size_t layers = 0;
  for (const auto& [layer, tokens] : sums) {
    uint64_t total = 0;
    for (const uint64_t count : tokens) total += count;
    if (total == 0) continue;
    const double mean = static_cast<double>(total) / static_cast<double>(tokens.size());
    const double value =
        mean / static_cast<double>(*std::max_element(tokens.begin(), tokens.end()));
    if (value < balance.min) {
      balance.min = value;
      balance.worst_layer = layer;
    }
    balance.average += value;
    balance.tokens += total;
    ++layers;
  }
  if (layers == 0) return std::nullopt;
  balance.average /= static_cast<double>(layers);
  return balance;
}

size_t ExpertLoad::num_instances(v1::Role role) const {
  return static_cast<size_t>(std::count_if(instances_.begin(), instances_.end(),
                                           [&](const auto& i) { return i.second.role == role; }));
}

absl::Duration ExpertLoad::StalestReport(absl::Time now) const {
  absl::Duration stalest;
  for (const auto& [name, instance] : instances_) {
    stalest = std::max(stalest, now - instance.reported);
  }
  return stalest;
}

}  // namespace sluice::balancer
