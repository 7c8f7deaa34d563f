// The cluster file: one YAML file that every program of a cluster reads.
//
//   model: {dir: ../models/sluice-tiny}
//   prefill: {count: 2, threads: 1}
//   decode: {count: 2, threads: 1}
//
// Each key, its default and its range are documented at the field that holds it. Unknown keys are
// errors that name the nearest known one; errors name file, line and key ("local.yaml:12:
// router.http: ..."). Durations are written "250ms", "10s", "5m"; sizes "512MiB", "4GiB";
// addresses "HOST:PORT", where port 0 stands for a free port that `sluice up` chooses.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/base/config_file.h"
#include "services/base/log.h"

namespace sluice {

struct ModelSection {
  std::string dir;                 // required; relative to the cluster file; absolute once read
  std::string name;                // what clients call it; default: the last part of dir
  std::string numerics = "exact";  // exact, fast
  std::string kv_dtype = "auto";   // auto, fp8
  std::string load_format = "safetensors";  // safetensors, dummy
  uint64_t dummy_seed = 0;                  // for load_format dummy
  std::string chat_template;                // its name, when the model's own is not recognised
};

// Who may ask. With no keys everybody may.
struct ApiKey {
  std::string name;    // required; for logs and metrics, and the tenant of its prefix cache
  std::string sha256;  // required; of the key, 64 hexadecimal digits (printf %s KEY | sha256sum)
};

// PEM files, relative to the cluster file; absolute once read. They are read again when they
// change.
struct TlsSection {
  std::string certificate;  // the server's, then those that lead to its CA; empty: no TLS
  std::string key;          // of the first certificate, without a passphrase
  std::string client_ca;    // when given, clients need a certificate that one of these signed
  bool enabled() const { return !certificate.empty(); }
};

// What requests of a class should get: 0, none.
struct ClassSection {
  absl::Duration ttft;  // to the first token; those that would wait longer are refused
  absl::Duration tpot;  // per token after it
};

struct RouterSection {
  int count = 1;                       // 1..64; the n-th (from 0) has 10 n added to its ports
  Address http{"127.0.0.1", 8000};     // OpenAI API, /health, /metrics
  Address grpc{"127.0.0.1", 9000};     // public gRPC API
  Address attach{"127.0.0.1", 9001};   // where workers come
  Address admin{"127.0.0.1", 9002};    // health, reflection, Admin
  int io_threads = 2;                  // 1..64; tokenizing and hashing, beside the event loop
  int connections_max = 16384;         // 1..1000000, HTTP
  uint64_t body_bytes_max = 16 << 20;  // of one HTTP request; 1KiB..1GiB
  int active_requests_max = 4096;      // placed on instances at once; 1..1000000
  int queued_requests_max = 1024;      // waiting for a worker; 0..1000000; beyond: 429
  absl::Duration queue_timeout = absl::Seconds(30);    // then 429; 0: as long as request_timeout
  absl::Duration request_timeout = absl::Minutes(30);  // of a whole request; 0: none
  int64_t prompt_tokens_max = 0;  // 0: what the model's context holds; longer is refused or cut
  // Over-long prompts: none: refuse them; left: cut their beginning.
  std::string truncate_prompt = "none";
  std::vector<ClassSection> classes;  // by priority, from 0; at most 8
  std::vector<ApiKey> api_keys;
  TlsSection tls;  // of http and grpc
};

// Prefill, decode or mixed instances, all alike.
struct InstanceSection {
  int count = 0;               // 0..4096; named prefill-1, prefill-2, ...
  std::string device = "cpu";  // cpu, cuda, cuda:N
  int threads = 0;             // 0..1024; 0: one per core
  int slots = 16;              // 1..65536; requests in one step
  int step_tokens = 512;       // 1..1048576, and no fewer than slots; tokens in one step
  // One of the two; without either 1 GiB of memory.
  std::optional<uint64_t> kv_pages;   // 1..33,554,431; of 64 tokens
  std::optional<uint64_t> kv_memory;  // bytes; 1 MiB or more
  int waiting_requests_max = 256;     // 1..1000000; admitted without a slot; beyond: refused
  Address admin;    // health, reflection, Admin; the n-th (from 0) has n added to its port
  Address metrics;  // /metrics over HTTP; likewise
  std::string kv_host = "127.0.0.1";  // IP address under which prefills reach its KV transport
};

struct BalancerSection {
  bool enabled = true;
  Address grpc{"127.0.0.1", 9003};            // Balancer, health, reflection, Admin
  Address metrics{"127.0.0.1", 9004};         // /metrics over HTTP
  absl::Duration window = absl::Minutes(10);  // over which expert load is summed; 1s..24h
};

struct LoggingSection {
  LogLevel level = LogLevel::kInfo;     // error, warn, info, debug, trace
  LogFormat format = LogFormat::kText;  // json, text
};

struct TimeoutsSection {
  // 10ms..400ms; how often workers tell that they live. A router gives them 1 s.
  absl::Duration heartbeat = absl::Milliseconds(250);
  // 0..24h; what is not done by then is handed over or ended.
  absl::Duration drain = absl::Seconds(30);
  // 1s..24h; how long a decode keeps pages for KV, from the moment it promised them: a prefill's
  // queue and the whole computation of the prompt are in it.
  absl::Duration kv = absl::Minutes(10);
  absl::Duration start = absl::Minutes(10);  // 1s..24h; `sluice up` gives up when not ready by then
};

struct ClusterConfig {
  ModelSection model;
  RouterSection router;
  InstanceSection prefill{.admin = {"127.0.0.1", 9100}, .metrics = {"127.0.0.1", 9150}};
  InstanceSection decode{.admin = {"127.0.0.1", 9200}, .metrics = {"127.0.0.1", 9250}};
  InstanceSection mixed{.admin = {"127.0.0.1", 9300}, .metrics = {"127.0.0.1", 9350}};
  BalancerSection balancer;
  LoggingSection logging;
  TimeoutsSection timeouts;
};

// One process of the cluster, with its own addresses.
struct ProcessConfig {
  std::string name;     // "router-1", "prefill-2", "balancer"
  std::string role;     // router, prefill, decode, mixed, balancer
  std::string program;  // "sluice-prefill"; mixed instances run sluice-decode
  std::optional<Address> http, grpc, attach, admin, metrics;  // those that it has
};

// InvalidArgument for what is wrong in the file; NotFound and the like when it cannot be read.
absl::StatusOr<ClusterConfig> LoadClusterConfig(const std::string& path);
// `path` is for messages and for what is relative to it.
absl::StatusOr<ClusterConfig> ParseClusterConfig(absl::string_view text, const std::string& path);

// As a cluster file that says everything, defaults too.
std::string ToYaml(const ClusterConfig& config);

// All processes: routers, the balancer, prefills, decodes, mixed.
std::vector<ProcessConfig> Processes(const ClusterConfig& config);
// NotFound, naming those there are.
absl::StatusOr<ProcessConfig> FindProcess(const ClusterConfig& config, absl::string_view name);
// The section of an instance role: prefill, decode or mixed. REQUIRES: it is one of them.
const InstanceSection& SectionOf(const ClusterConfig& config, absl::string_view role);
// Where workers dial: one for each router.
std::vector<Address> AttachAddresses(const ClusterConfig& config);

}  // namespace sluice
