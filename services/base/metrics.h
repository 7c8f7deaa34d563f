// Prometheus metrics: a thin layer over prometheus-cpp.
//
// Names: `sluice_<role>_...` for our own, `vllm:...` for the set that existing dashboards know.
// Units last (`_seconds`, `_bytes`), `_total` on counters alone. Labels never hold request or user
// ids.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace sluice {

using MetricLabels = std::map<std::string, std::string>;
using MetricBuckets = prometheus::Histogram::BucketBoundaries;

// Bucket bounds in seconds, but for kTokenBuckets.
extern const MetricBuckets kTtftBuckets;      // to the first token
extern const MetricBuckets kItlBuckets;       // between tokens, per output token
extern const MetricBuckets kRequestBuckets;   // whole requests, and their phases
extern const MetricBuckets kTransferBuckets;  // KV transfers
extern const MetricBuckets kStepBuckets;      // engine steps
extern const MetricBuckets kOverheadBuckets;  // decisions within the router
extern const MetricBuckets kTokenBuckets;     // numbers of tokens: 1, 2, 5, 10, ... 1,000,000

// What every series of a process says about where it comes from.
struct MetricsIdentity {
  std::string model;     // as clients name it
  std::string role;      // router, prefill, decode, mixed, balancer
  std::string instance;  // "decode-1"
};

// All metrics of one process. From any thread; what is returned lives as long as this object, and
// changing it takes no lock worth naming. Asking again for the same name and labels gives the same
// object, but costs a lookup: ask once and keep the reference.
//
// REQUIRES: names and label names are what Prometheus allows, and a name keeps its type and help.
class Metrics {
 public:
  // Series are labelled model, role, instance; those named vllm:... model_name, engine.
  explicit Metrics(MetricsIdentity identity);

  prometheus::Counter& Counter(const std::string& name, const std::string& help,
                               const MetricLabels& labels = {});
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help,
                           const MetricLabels& labels = {});
  prometheus::Histogram& Histogram(const std::string& name, const std::string& help,
                                   const MetricBuckets& buckets, const MetricLabels& labels = {});

  // In Prometheus' text format, with the process's own (process_cpu_seconds_total,
  // process_resident_memory_bytes, process_open_fds, process_start_time_seconds).
  std::string Text() const;
  static constexpr char kContentType[] = "text/plain; version=0.0.4; charset=utf-8";

 private:
  friend class MetricsServer;
  MetricLabels LabelsFor(const std::string& name) const;

  const MetricsIdentity identity_;
  const std::shared_ptr<prometheus::Registry> registry_;
  const std::shared_ptr<prometheus::Collectable> process_;
};

// Serves /metrics over HTTP until destroyed, on threads of its own.
class MetricsServer {
 public:
  // `address`: "127.0.0.1:9150"; port 0 takes a free one. Unavailable when the port is taken.
  // `metrics` must outlive the server.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& address,
                                                              const Metrics& metrics);
  ~MetricsServer();
  int port() const { return port_; }

 private:
  struct Exposer;
  explicit MetricsServer(std::unique_ptr<Exposer> exposer);
  std::unique_ptr<Exposer> exposer_;
  int port_ = 0;
};

}  // namespace sluice
