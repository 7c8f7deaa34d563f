#include "services/base/cluster_config.h"

#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/device_name.h"
#include "kernels/base/status.h"
#include "services/base/mapped_file.h"

namespace sluice {
namespace {

constexpr size_t kClassesMax = 8;  // that routers tell apart

constexpr int64_t kMillion = 1'000'000;
constexpr int64_t kKvPagesMax = INT32_MAX / 64;  // rows of the cache have 32-bit numbers
constexpr uint64_t kTiB = uint64_t{1} << 40;
constexpr absl::Duration kDay = absl::Hours(24);

void Describe(ConfigVisitor& v, ModelSection& s, const std::string& path) {
  v.Text("dir", &s.dir);
  v.Text("name", &s.name);
  v.Choice("numerics", &s.numerics, {"exact", "fast"});
  v.Choice("kv_dtype", &s.kv_dtype, {"auto", "fp8"});
  v.Choice("load_format", &s.load_format, {"safetensors", "dummy"});
  v.Int("dummy_seed", &s.dummy_seed, 0, INT64_MAX);
  v.Text("chat_template", &s.chat_template);
  if (s.dir.empty()) {
    v.Problem("dir", "is needed: the directory of the model's checkpoint");
    return;
  }
  std::error_code ignored;
  std::filesystem::path dir = std::filesystem::absolute(path, ignored).parent_path() / s.dir;
  dir = dir.lexically_normal();
  if (!dir.has_filename()) dir = dir.parent_path();  // "model/"
  s.dir = dir.string();
  if (s.name.empty()) s.name = dir.filename().string();
}

void Describe(ConfigVisitor& v, ApiKey& s) {
  v.Text("name", &s.name);
  v.Text("sha256", &s.sha256);
  absl::AsciiStrToLower(&s.sha256);
  if (s.name.empty()) v.Problem("name", "is needed: whose key it is");
  const bool is_digest =
      s.sha256.size() == 64 && s.sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
  // The value is not repeated: somebody may have put the key itself here.
  if (!is_digest) {
    v.Problem("sha256", absl::StrCat("has ", s.sha256.size(),
                                     " characters; wanted the SHA-256 of the key as 64 hexadecimal "
                                     "digits (printf %s KEY | sha256sum)"));
  }
}

// Absolute; what is relative is so to the file at `path`.
void Resolve(const std::string& path, std::string* file) {
  if (file->empty()) return;
  std::error_code ignored;
  *file = (std::filesystem::absolute(path, ignored).parent_path() / *file).lexically_normal();
}

void Describe(ConfigVisitor& v, TlsSection& s, const std::string& path) {
  v.Text("certificate", &s.certificate);
  v.Text("key", &s.key);
  v.Text("client_ca", &s.client_ca);
  for (std::string* file : {&s.certificate, &s.key, &s.client_ca}) Resolve(path, file);
  if (s.certificate.empty() && (!s.key.empty() || !s.client_ca.empty())) {
    v.Problem("certificate", "is needed: the PEM file of the certificate to serve with");
  }
  if (!s.certificate.empty() && s.key.empty()) {
    v.Problem("key", "is needed: the PEM file of the certificate's private key");
  }
}

void Describe(ConfigVisitor& v, RouterSection& s, const std::string& path) {
  v.Int("count", &s.count, 1, 64);
  v.HostPort("http", &s.http);
  v.HostPort("grpc", &s.grpc);
  v.HostPort("attach", &s.attach);
  v.HostPort("admin", &s.admin);
  v.Int("io_threads", &s.io_threads, 1, 64);
  v.Int("connections_max", &s.connections_max, 1, kMillion);
  v.Size("body_bytes_max", &s.body_bytes_max, 1 << 10, 1 << 30);
  v.Int("active_requests_max", &s.active_requests_max, 1, kMillion);
  v.Int("queued_requests_max", &s.queued_requests_max, 0, kMillion);
  v.Duration("queue_timeout", &s.queue_timeout, absl::ZeroDuration(), kDay);
  v.Duration("request_timeout", &s.request_timeout, absl::ZeroDuration(), 7 * kDay);
  v.Int("prompt_tokens_max", &s.prompt_tokens_max, 0, int64_t{1} << 31);
  v.Choice("truncate_prompt", &s.truncate_prompt, {"none", "left"});
  v.List("classes", &s.classes, [](ConfigVisitor& item, ClassSection& section) {
    item.Duration("ttft", &section.ttft, absl::ZeroDuration(), kDay);
    item.Duration("tpot", &section.tpot, absl::ZeroDuration(), kDay);
  });
  if (s.classes.size() > kClassesMax) {
    v.Problem("classes", absl::StrCat("are ", s.classes.size(), ", wanted at most ", kClassesMax));
  }
  v.List("api_keys", &s.api_keys, [](ConfigVisitor& item, ApiKey& key) { Describe(item, key); });
  v.Section("tls", [&](ConfigVisitor& tls) { Describe(tls, s.tls, path); });
}

void Describe(ConfigVisitor& v, InstanceSection& s) {
  v.Int("count", &s.count, 0, 4096);
  v.Text("device", &s.device);
  if (const auto device = ParseDeviceName(s.device); !device.ok()) {
    v.Problem("device", std::string(device.status().message()));
  }
  v.Int("threads", &s.threads, 0, 1024);
  v.Int("slots", &s.slots, 1, 4096);
  v.Int("step_tokens", &s.step_tokens, 1, 1 << 20);
  v.OptionalInt("kv_pages", &s.kv_pages, 1, kKvPagesMax);
  v.OptionalSize("kv_memory", &s.kv_memory, 1 << 20, 64 * kTiB);
  v.Int("waiting_requests_max", &s.waiting_requests_max, 1, kMillion);
  v.HostPort("admin", &s.admin);
  v.HostPort("metrics", &s.metrics);
  v.Text("kv_host", &s.kv_host);
  if (s.kv_pages.has_value() && s.kv_memory.has_value()) {
    v.Problem("kv_memory", "stands beside kv_pages: give one of the two");
  }
  if (s.step_tokens < s.slots) {
    v.Problem("step_tokens", absl::StrCat("is ", s.step_tokens, ", fewer than the ", s.slots,
                                          " slots; each running request takes a token of a step"));
  }
  if (s.kv_host.empty()) v.Problem("kv_host", "is empty; wanted an IP address of this machine");
}

void Describe(ConfigVisitor& v, BalancerSection& s) {
  v.Bool("enabled", &s.enabled);
  v.HostPort("grpc", &s.grpc);
  v.HostPort("metrics", &s.metrics);
  v.Duration("window", &s.window, absl::Seconds(1), kDay);
}

void Describe(ConfigVisitor& v, LoggingSection& s) {
  std::string level(LogLevelName(s.level));
  v.Choice("level", &level, {"error", "warn", "info", "debug", "trace"});
  if (const auto parsed = ParseLogLevel(level); parsed.ok()) s.level = *parsed;
  std::string format = s.format == LogFormat::kJson ? "json" : "text";
  v.Choice("format", &format, {"json", "text"});
  s.format = format == "json" ? LogFormat::kJson : LogFormat::kText;
}

void Describe(ConfigVisitor& v, TimeoutsSection& s) {
  v.Duration("heartbeat", &s.heartbeat, absl::Milliseconds(10), absl::Milliseconds(400));
  v.Duration("drain", &s.drain, absl::ZeroDuration(), kDay);
  v.Duration("kv", &s.kv, absl::Seconds(1), kDay);
  v.Duration("start", &s.start, absl::Seconds(1), kDay);
}

void CheckInstances(ConfigVisitor& v, const ClusterConfig& config) {
  if (config.mixed.count > 0 || (config.prefill.count > 0 && config.decode.count > 0)) return;
  v.Problem(config.prefill.count > 0 ? "decode" : "prefill",
            absl::StrCat("nobody to answer: there are ", config.prefill.count, " prefill and ",
                         config.decode.count,
                         " decode instances; wanted one or more of each, or mixed instances"));
}

// No two processes may want the same port of the same machine.
void CheckAddresses(ConfigVisitor& v, const ClusterConfig& config) {
  const auto everywhere = [](const std::string& host) { return host == "0.0.0.0" || host == "::"; };
  std::map<int, std::vector<std::pair<std::string, std::string>>> taken;  // port -> host, whose
  for (const ProcessConfig& process : Processes(config)) {
    const std::pair<const char*, std::optional<Address>> addresses[] = {
        {"http", process.http},   {"grpc", process.grpc},       {"attach", process.attach},
        {"admin", process.admin}, {"metrics", process.metrics},
    };
    for (const auto& [what, address] : addresses) {
      if (!address.has_value() || address->port == 0) continue;
      const std::string whose = absl::StrCat(what, " of ", process.name);
      if (address->port > 65535) {
        v.Problem(process.role, absl::StrCat("the port for ", whose, " would be ", address->port,
                                             ", and 65535 is the last one"));
        return;  // once is enough, and there may be thousands
      }
      for (const auto& [host, other] : taken[address->port]) {
        if (host != address->host && !everywhere(host) && !everywhere(address->host)) continue;
        v.Problem(process.role,
                  absl::StrCat(whose, " and ", other, " both have ", address->ToString()));
        return;
      }
      taken[address->port].emplace_back(address->host, whose);
    }
  }
}

void Describe(ConfigVisitor& v, ClusterConfig& config, const std::string& path) {
  v.Section("model", [&](ConfigVisitor& s) { Describe(s, config.model, path); });
  v.Section("router", [&](ConfigVisitor& s) { Describe(s, config.router, path); });
  v.Section("prefill", [&](ConfigVisitor& s) { Describe(s, config.prefill); });
  v.Section("decode", [&](ConfigVisitor& s) { Describe(s, config.decode); });
  v.Section("mixed", [&](ConfigVisitor& s) { Describe(s, config.mixed); });
  v.Section("balancer", [&](ConfigVisitor& s) { Describe(s, config.balancer); });
  v.Section("logging", [&](ConfigVisitor& s) { Describe(s, config.logging); });
  v.Section("timeouts", [&](ConfigVisitor& s) { Describe(s, config.timeouts); });
  // Else there may be instances, under a misspelt name.
  if (v.KnowsAllKeys()) CheckInstances(v, config);
  CheckAddresses(v, config);
}

Address Shifted(const Address& address, int by) {
  return {address.host, address.port == 0 ? 0 : address.port + by};
}

}  // namespace

absl::StatusOr<ClusterConfig> ParseClusterConfig(absl::string_view text, const std::string& path) {
  ClusterConfig config;
  SLUICE_RETURN_IF_ERROR(
      ReadConfig(text, path, [&](ConfigVisitor& v) { Describe(v, config, path); }));
  return config;
}

absl::StatusOr<ClusterConfig> LoadClusterConfig(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 20));
  return ParseClusterConfig(text, path);
}

std::string ToYaml(const ClusterConfig& config) {
  ClusterConfig copy = config;
  return WriteConfig([&](ConfigVisitor& v) { Describe(v, copy, "/"); });
}

const InstanceSection& SectionOf(const ClusterConfig& config, absl::string_view role) {
  if (role == "prefill") return config.prefill;
  return role == "decode" ? config.decode : config.mixed;
}

std::vector<ProcessConfig> Processes(const ClusterConfig& config) {
  std::vector<ProcessConfig> processes;
  for (int i = 0; i < config.router.count; ++i) {
    const RouterSection& router = config.router;
    processes.push_back({.name = absl::StrCat("router-", i + 1),
                         .role = "router",
                         .program = "sluice-router",
                         .http = Shifted(router.http, 10 * i),
                         .grpc = Shifted(router.grpc, 10 * i),
                         .attach = Shifted(router.attach, 10 * i),
                         .admin = Shifted(router.admin, 10 * i)});
  }
  if (config.balancer.enabled) {
    processes.push_back({.name = "balancer",
                         .role = "balancer",
                         .program = "sluice-balancer",
                         .grpc = config.balancer.grpc,
                         .metrics = config.balancer.metrics});
  }
  for (const char* role : {"prefill", "decode", "mixed"}) {
    const InstanceSection& section = SectionOf(config, role);
    for (int i = 0; i < section.count; ++i) {
      processes.push_back(
          {.name = absl::StrCat(role, "-", i + 1),
           .role = role,
           .program = role == absl::string_view("prefill") ? "sluice-prefill" : "sluice-decode",
           .admin = Shifted(section.admin, i),
           .metrics = Shifted(section.metrics, i)});
    }
  }
  return processes;
}

absl::StatusOr<ProcessConfig> FindProcess(const ClusterConfig& config, absl::string_view name) {
  std::vector<std::string> names;
  for (ProcessConfig& process : Processes(config)) {
    if (process.name == name) return std::move(process);
    if (names.size() < 20) names.push_back(process.name);
  }
  return absl::NotFoundError(absl::StrCat("the cluster file has no '", name,
                                          "'; there are: ", absl::StrJoin(names, ", ")));
}

std::vector<Address> AttachAddresses(const ClusterConfig& config) {
  std::vector<Address> addresses;
  for (int i = 0; i < config.router.count; ++i) {
    addresses.push_back(Shifted(config.router.attach, 10 * i));
  }
  return addresses;
}

}  // namespace sluice
