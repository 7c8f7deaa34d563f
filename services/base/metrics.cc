#include "services/base/metrics.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "prometheus/collectable.h"
#include "prometheus/exposer.h"
#include "prometheus/text_serializer.h"

// The system's, for libraries of this program that ask for small stacks. civetweb, behind the
// metrics port, asks for 100 KiB and has no option for it; the system takes what all libraries keep
// for each thread out of that, and cuBLAS keeps 104 KiB: then not one thread can be started.
extern "C" int pthread_attr_setstacksize(pthread_attr_t* attributes, size_t bytes) noexcept {
  constexpr size_t kBytesMin = size_t{1} << 20;  // of addresses: memory is used as it is touched
  using Set = int (*)(pthread_attr_t*, size_t);
  static const auto set = reinterpret_cast<Set>(dlsym(RTLD_NEXT, "pthread_attr_setstacksize"));
  return set(attributes, std::max(bytes, kBytesMin));
}

namespace sluice {

const MetricBuckets kTtftBuckets = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                    1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const MetricBuckets kItlBuckets = {
    .002, .004, .006, .008, .01, .015, .02, .025, .03, .035, .04, .05, .06, .075, .08, .1, .15, .2,
    .3,   .4,   .5,   .6,   .75, .8,   1,   2,    2.5, 4,    5,   6,   7.5, 8,    10,  20, 40,  80};
const MetricBuckets kRequestBuckets = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                       30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const MetricBuckets kTransferBuckets = {.0005, .001, .0025, .005, .01, .025, .05, .075,
                                        .1,    .2,   .3,    .5,   .75, 1,    5};
const MetricBuckets kStepBuckets = {.0005, .001, .002, .004, .006, .008, .01, .015,
                                    .02,   .03,  .05,  .075, .1,   .2,   .5,  1};
const MetricBuckets kOverheadBuckets = {1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4,
                                        1e-3, 2.5e-3, 5e-3, 1e-2, .05,    .1};
const MetricBuckets kTokenBuckets = {1,     2,      5,      10,     20,     50,    100,
                                     200,   500,    1000,   2000,   5000,   10000, 20000,
                                     50000, 100000, 200000, 500000, 1000000};

namespace {

// The names of Prometheus' own client libraries, from /proc.
class ProcessMetrics final : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& time) { return time.tv_sec + time.tv_usec * 1e-6; };
    int64_t total_pages = 0, resident_pages = 0;
    std::ifstream("/proc/self/statm") >> total_pages >> resident_pages;
    int64_t open_files = 0;
    std::error_code ignored;
    for (auto it = std::filesystem::directory_iterator("/proc/self/fd", ignored);
         !ignored && it != std::filesystem::directory_iterator(); it.increment(ignored)) {
      ++open_files;
    }
    const double page_bytes = static_cast<double>(sysconf(_SC_PAGESIZE));
    return {
        One("process_cpu_seconds_total", "CPU time of the process", prometheus::MetricType::Counter,
            seconds(usage.ru_utime) + seconds(usage.ru_stime)),
        One("process_resident_memory_bytes", "Memory in use", prometheus::MetricType::Gauge,
            static_cast<double>(resident_pages) * page_bytes),
        One("process_open_fds", "Open files and sockets", prometheus::MetricType::Gauge,
            static_cast<double>(open_files)),
        One("process_start_time_seconds", "When the process started, since 1970",
            prometheus::MetricType::Gauge, start_),
    };
  }

 private:
  static prometheus::MetricFamily One(const char* name, const char* help,
                                      prometheus::MetricType type, double value) {
    prometheus::ClientMetric metric;
    if (type == prometheus::MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    return {name, help, type, {metric}};
  }

  const double start_ = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch());
};

}  // namespace

Metrics::Metrics(MetricsIdentity identity)
    : identity_(std::move(identity)),
      registry_(std::make_shared<prometheus::Registry>()),
      process_(std::make_shared<ProcessMetrics>()) {}

MetricLabels Metrics::LabelsFor(const std::string& name) const {
  if (absl::StartsWith(name, "vllm:")) {
    return {{"model_name", identity_.model}, {"engine", identity_.instance}};
  }
  return {{"model", identity_.model}, {"role", identity_.role}, {"instance", identity_.instance}};
}

prometheus::Counter& Metrics::Counter(const std::string& name, const std::string& help,
                                      const MetricLabels& labels) {
  return prometheus::BuildCounter()
      .Name(name)
      .Help(help)
      .Labels(LabelsFor(name))
      .Register(*registry_)
      .Add(labels);
}

prometheus::Gauge& Metrics::Gauge(const std::string& name, const std::string& help,
                                  const MetricLabels& labels) {
  return prometheus::BuildGauge()
      .Name(name)
      .Help(help)
      .Labels(LabelsFor(name))
      .Register(*registry_)
      .Add(labels);
}

prometheus::Histogram& Metrics::Histogram(const std::string& name, const std::string& help,
                                          const MetricBuckets& buckets,
                                          const MetricLabels& labels) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Labels(LabelsFor(name))
      .Register(*registry_)
      .Add(labels, buckets);
}

std::string Metrics::Text() const {
  std::vector<prometheus::MetricFamily> families = registry_->Collect();
  for (prometheus::MetricFamily& family : process_->Collect()) {
    families.push_back(std::move(family));
  }
  return prometheus::TextSerializer().Serialize(families);
}

struct MetricsServer::Exposer {
  explicit Exposer(const std::string& address) : exposer(address, /*num_threads=*/2) {}
  prometheus::Exposer exposer;
};

MetricsServer::MetricsServer(std::unique_ptr<Exposer> exposer) : exposer_(std::move(exposer)) {
  const std::vector<int> ports = exposer_->exposer.GetListeningPorts();
  port_ = ports.empty() ? 0 : ports.front();
}

// civetweb looks whether it is to stop only when somebody connects, or every two seconds: somebody
// connects.
MetricsServer::~MetricsServer() {
  std::atomic<bool> stopped{false};
  std::thread caller([&] {
    while (!stopped) {
      const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = htons(static_cast<uint16_t>(port_));
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      if (fd >= 0) {
        (void)connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
        close(fd);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  exposer_.reset();
  stopped = true;
  caller.join();
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& address,
                                                                    const Metrics& metrics) {
  try {
    auto exposer = std::make_unique<Exposer>(address);
    exposer->exposer.RegisterCollectable(metrics.registry_);
    exposer->exposer.RegisterCollectable(metrics.process_);
    return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(exposer)));
  } catch (const std::exception&) {  // civetweb's, which says no more than that
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", address,
                     ": the port is taken, or the address is not one of this machine"));
  }
}

}  // namespace sluice
