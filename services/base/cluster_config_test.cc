#include "services/base/cluster_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"

namespace sluice {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kSmallest[] =
    "model: {dir: ../models/sluice-tiny}\n"
    "prefill: {count: 1}\n"
    "decode: {count: 1}\n";

TEST(ClusterConfigTest, WhatIsLeftOutHasItsDefault) {
  const auto config = ParseClusterConfig(kSmallest, "/deploy/clusters/x.yaml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.dir, "/deploy/models/sluice-tiny");
  EXPECT_EQ(config->model.name, "sluice-tiny");
  EXPECT_EQ(config->model.numerics, "exact");
  EXPECT_EQ(config->router.http, (Address{"127.0.0.1", 8000}));
  EXPECT_EQ(config->router.grpc, (Address{"127.0.0.1", 9000}));
  EXPECT_EQ(config->decode.kv_pages, std::nullopt);
  EXPECT_EQ(config->mixed.count, 0);
  EXPECT_TRUE(config->balancer.enabled);
}

TEST(ClusterConfigTest, TheExamplesAreRight) {
  int seen = 0;
  for (const auto& entry : std::filesystem::directory_iterator("deploy/clusters")) {
    if (entry.path().extension() != ".yaml") continue;
    const auto config = LoadClusterConfig(entry.path().string());
    EXPECT_TRUE(config.ok()) << config.status();
    ++seen;
  }
  EXPECT_GE(seen, 3);
}

TEST(ClusterConfigTest, EveryKeyIsRead) {
  const char text[] = R"(
model: {dir: /m/v3/, name: deepseek, numerics: fast, load_format: dummy, dummy_seed: 7, chat_template: r1}
router:
  count: 2
  http: 0.0.0.0:80
  grpc: "[::1]:5000"
  attach: router.local:6000
  admin: 10.0.0.1:7000
  io_threads: 3
  connections_max: 100
  body_bytes_max: 1MiB
  active_requests_max: 7
  queued_requests_max: 0
  queue_timeout: 1m30s
  request_timeout: 0
  prompt_tokens_max: 1000
  truncate_prompt: left
  classes: [{ttft: 2s, tpot: 50ms}, {}, {ttft: 1m}]
  api_keys:
    - {name: team-a, sha256: 2CF24DBA5FB0A30E26E83B2AC5B9E29E1B161E5C1FA7425E73043362938B9824}
  tls: {certificate: tls/cert.pem, key: /keys/key.pem, client_ca: ../ca.pem}
prefill: {count: 2, device: "cuda:1", threads: 4, slots: 8, step_tokens: 1024, kv_pages: 512, waiting_requests_max: 9}
decode: {count: 3, kv_memory: 2GiB, admin: 127.0.0.1:0, metrics: 127.0.0.1:0, kv_host: 10.0.0.9}
mixed: {count: 1}
balancer: {enabled: false, window: 30s}
logging: {level: debug, format: json}
timeouts: {heartbeat: 100ms, drain: 0, kv: 90s, start: 20s}
)";
  const auto config = ParseClusterConfig(text, "x.yaml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.dir, "/m/v3");
  EXPECT_EQ(config->model.name, "deepseek");
  EXPECT_EQ(config->model.numerics, "fast");
  EXPECT_EQ(config->model.load_format, "dummy");
  EXPECT_EQ(config->model.dummy_seed, 7u);
  EXPECT_EQ(config->model.chat_template, "r1");
  EXPECT_EQ(config->prefill.device, "cuda:1");
  EXPECT_EQ(config->mixed.device, "cpu");
  EXPECT_EQ(config->router.count, 2);
  EXPECT_EQ(config->router.http, (Address{"0.0.0.0", 80}));
  EXPECT_EQ(config->router.grpc, (Address{"::1", 5000}));
  EXPECT_EQ(config->router.grpc.ToString(), "[::1]:5000");
  EXPECT_EQ(config->router.attach.host, "router.local");
  EXPECT_EQ(config->router.admin.port, 7000);
  EXPECT_EQ(config->router.io_threads, 3);
  EXPECT_EQ(config->router.connections_max, 100);
  EXPECT_EQ(config->router.body_bytes_max, 1u << 20);
  EXPECT_EQ(config->router.active_requests_max, 7);
  EXPECT_EQ(config->router.queued_requests_max, 0);
  EXPECT_EQ(config->router.queue_timeout, absl::Seconds(90));
  EXPECT_EQ(config->router.request_timeout, absl::ZeroDuration());
  EXPECT_EQ(config->router.prompt_tokens_max, 1000);
  EXPECT_EQ(config->router.truncate_prompt, "left");
  ASSERT_EQ(config->router.classes.size(), 3u);
  EXPECT_EQ(config->router.classes[0].ttft, absl::Seconds(2));
  EXPECT_EQ(config->router.classes[0].tpot, absl::Milliseconds(50));
  EXPECT_EQ(config->router.classes[1].ttft, absl::ZeroDuration());
  EXPECT_EQ(config->router.classes[2].ttft, absl::Minutes(1));
  ASSERT_EQ(config->router.api_keys.size(), 1u);
  EXPECT_EQ(config->router.api_keys[0].name, "team-a");
  EXPECT_EQ(config->router.api_keys[0].sha256.substr(0, 4), "2cf2");
  EXPECT_TRUE(std::filesystem::path(config->router.tls.certificate).is_absolute());
  EXPECT_THAT(config->router.tls.certificate, EndsWith("/tls/cert.pem"));
  EXPECT_EQ(config->router.tls.key, "/keys/key.pem");
  EXPECT_THAT(config->router.tls.client_ca, AllOf(EndsWith("/ca.pem"), Not(HasSubstr(".."))));
  EXPECT_EQ(config->prefill.count, 2);
  EXPECT_EQ(config->prefill.threads, 4);
  EXPECT_EQ(config->prefill.slots, 8);
  EXPECT_EQ(config->prefill.step_tokens, 1024);
  EXPECT_EQ(config->prefill.kv_pages, 512u);
  EXPECT_EQ(config->prefill.waiting_requests_max, 9);
  EXPECT_EQ(config->decode.kv_memory, uint64_t{2} << 30);
  EXPECT_EQ(config->decode.kv_host, "10.0.0.9");
  EXPECT_FALSE(config->balancer.enabled);
  EXPECT_EQ(config->balancer.window, absl::Seconds(30));
  EXPECT_EQ(config->logging.level, LogLevel::kDebug);
  EXPECT_EQ(config->logging.format, LogFormat::kJson);
  EXPECT_EQ(config->timeouts.heartbeat, absl::Milliseconds(100));
  EXPECT_EQ(config->timeouts.drain, absl::ZeroDuration());
  EXPECT_EQ(config->timeouts.kv, absl::Seconds(90));
  EXPECT_EQ(config->timeouts.start, absl::Seconds(20));

  // What is written reads as the same.
  const std::string yaml = ToYaml(*config);
  const auto again = ParseClusterConfig(yaml, "y.yaml");
  ASSERT_TRUE(again.ok()) << again.status() << yaml;
  EXPECT_EQ(ToYaml(*again), yaml);
  EXPECT_EQ(again->router.api_keys[0].sha256, config->router.api_keys[0].sha256);
  EXPECT_EQ(again->timeouts.heartbeat, config->timeouts.heartbeat);
  EXPECT_EQ(again->decode.kv_memory, config->decode.kv_memory);
  EXPECT_EQ(again->prefill.kv_pages, config->prefill.kv_pages);
  EXPECT_EQ(again->decode.kv_pages, std::nullopt);
}

// Each addition to the smallest file, and what the error must say.
TEST(ClusterConfigTest, EveryMistakeIsNamedWithItsPlace) {
  const struct {
    const char* text;
    const char* wanted;
  } cases[] = {
      // Keys.
      {"ruoter: {}", "x.yaml:4: ruoter: no such key; did you mean router?"},
      {"router:\n  htpp: 127.0.0.1:1", "x.yaml:5: router.htpp: no such key; did you mean http?"},
      {"router: {completely_other: 1}", "no such key; there are: active_requests_max, admin,"},
      {"mixed: {kv_dtype: fp8}", "x.yaml:4: mixed.kv_dtype: no such key; it stands under model"},
      {"numerics: fast", "x.yaml:4: numerics: no such key; it stands under model"},
      {"router: {step_tokens: 1}",
       "router.step_tokens: no such key; it stands under decode, mixed, prefill"},
      {"mixed: {sha256: x}", "mixed.sha256: no such key; there are: admin,"},
      {"router: {api_keys: [{name: a, tls: 1}]}",
       "router.api_keys[0].tls: no such key; it stands under router"},
      {"mixed: {router: {}}", "mixed.router: no such key; it stands at the top"},
      {"mixed: {slots: 1, slots: 2}", "mixed.slots: stands here for the second time"},
      {"mixed: {[1]: 2}", "mixed: has a key that is not a word"},
      {"prefill: {count: 1}", "prefill: stands here for the second time"},
      // Types.
      {"mixed: 3", "x.yaml:4: mixed: must be a map"},
      {"mixed: [1]", "mixed: must be a map"},
      {"mixed: {slots: }", "mixed.slots: is empty; wanted a whole number, 1 to 4096"},
      {"mixed: {slots: {}}", "mixed.slots: is a map; wanted a whole number"},
      {"mixed: {slots: []}", "mixed.slots: is a list; wanted a whole number"},
      {"mixed: {slots: many}", "mixed.slots: is 'many'; wanted a whole number"},
      {"mixed: {slots: 1.5}", "mixed.slots: is '1.5'"},
      {"mixed: {slots: 0x10}", "mixed.slots: is '0x10'"},
      {"balancer: {enabled: yes}", "balancer.enabled: is 'yes'; wanted true or false"},
      {"logging: {level: warning}", "logging.level: is 'warning'; wanted error, warn, info"},
      {"logging: {format: jsn}", "wanted json, text (json?)"},
      {"router: {truncate_prompt: right}", "router.truncate_prompt: is 'right'; wanted none, left"},
      {"router: {api_keys: hunter2}", "router.api_keys: must be a list"},
      {"router: {api_keys: [x]}", "router.api_keys[0]: must be a map"},
      // Ranges.
      {"mixed: {slots: 0}", "mixed.slots: is '0'"},
      {"mixed: {slots: 65537}", "mixed.slots: is '65537'"},
      {"mixed: {threads: -1}", "mixed.threads: is '-1'; wanted a whole number, 0 to 1024"},
      {"mixed: {threads: 1025}", "mixed.threads"},
      {"mixed: {count: 4097}", "mixed.count"},
      {"mixed: {slots: 99999999999999999999}", "mixed.slots"},
      {"mixed: {kv_host: ''}", "mixed.kv_host: is empty"},
      {"mixed: {kv_pages: 0}", "mixed.kv_pages: is '0'"},
      {"mixed: {kv_pages: 33554432}", "mixed.kv_pages: is '33554432'"},
      {"mixed: {kv_memory: 1}",
       "mixed.kv_memory: is '1'; wanted a size like 512MiB, 1MiB to 64TiB"},
      {"mixed: {kv_memory: 1GB}", "mixed.kv_memory: is '1GB'"},
      {"mixed: {kv_memory: -1GiB}", "mixed.kv_memory"},
      {"mixed: {kv_memory: 99999999999TiB}", "mixed.kv_memory"},
      {"mixed: {waiting_requests_max: 0}", "mixed.waiting_requests_max"},
      {"router: {count: 0}", "router.count: is '0'; wanted a whole number, 1 to 64"},
      {"router: {body_bytes_max: 2GiB}", "router.body_bytes_max"},
      {"router: {io_threads: 0}", "router.io_threads"},
      {"router: {tls: {key: k.pem}}", "router.tls.certificate: is needed"},
      {"router: {tls: {client_ca: ca.pem}}", "router.tls.certificate: is needed"},
      {"router: {tls: {certificate: c.pem}}", "router.tls.key: is needed"},
      {"router: {queue_timeout: -1s}", "router.queue_timeout: is '-1s'; wanted a duration like"},
      {"router: {queue_timeout: 5}", "router.queue_timeout: is '5'"},
      {"router: {queue_timeout: inf}", "router.queue_timeout: is 'inf'"},
      {"timeouts: {heartbeat: 1ms}", "timeouts.heartbeat: is '1ms'; wanted a duration like"},
      {"balancer: {window: 25h}", "balancer.window"},
      // Addresses.
      {"router: {http: 8000}", "router.http: is '8000'; wanted HOST:PORT"},
      {"router: {http: \":8000\"}", "router.http"},
      {"router: {http: 127.0.0.1:65536}", "router.http"},
      {"router: {http: 127.0.0.1:-1}", "router.http"},
      {"router:\n  http: \"127.0.0.1:\"", "x.yaml:5: router.http"},
      {"router: {http: \"::1:80\"}", "router.http"},
      {"router: {http: \"[::1:80\"}", "router.http"},
      {"router: {http: \"a b:80\"}", "router.http"},
      {"router: {http: http://x:80}", "router.http"},
      // What does not fit together.
      {"mixed: {kv_pages: 1, kv_memory: 1GiB}", "mixed.kv_memory: stands beside kv_pages"},
      {"mixed: {slots: 9, step_tokens: 8}", "mixed.step_tokens: is 8, fewer than the 9 slots"},
      {"mixed: {count: 1, device: gpu}", "mixed.device: is 'gpu', wanted cpu, cuda or cuda:N"},
      {"timeouts: {kv: 0}", "timeouts.kv: is '0'; wanted a duration like"},
      {"timeouts: {heartbeat: 600ms}", "timeouts.heartbeat: is '600ms'"},
      {"router: {admin: 127.0.0.1:8000}",
       "admin of router-1 and http of router-1 both have 127.0.0.1:8000"},
      {"router: {admin: 0.0.0.0:9100}", "admin of prefill-1 and admin of router-1"},
      {"mixed: {count: 2, admin: 127.0.0.1:65535}",
       "mixed: the port for admin of mixed-2 would be 65536"},
      {"router: {api_keys: [{name: a}]}", "router.api_keys[0].sha256: has 0 characters"},
      {"router: {api_keys: [{sha256: x}]}", "router.api_keys[0].name: is needed"},
      {"---\nmixed: {slots: 2}", "x.yaml:5: a further YAML document begins here"},
      {"---\n---\nnonsense", "x.yaml:6: a further YAML document begins here"},
      {"...\n# end\nmixed: {slots: 2}", "x.yaml:6: a further YAML document begins here"},
      // Not YAML.
      {"mixed: {", "is not YAML"},
      {"\tmixed: 1", "is not YAML"},
      {"mixed: *unknown", "is not YAML"},
  };
  for (const auto& c : cases) {
    const auto config = ParseClusterConfig(absl::StrCat(kSmallest, c.text, "\n"), "x.yaml");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(config.status().message()),
                AllOf(HasSubstr("x.yaml"), HasSubstr(c.wanted)))
        << c.text;
  }
  // One document may have its marks.
  EXPECT_TRUE(ParseClusterConfig(absl::StrCat("---\n", kSmallest, "---\n"), "x.yaml").ok());
}

TEST(ClusterConfigTest, SomebodyMustAnswer) {
  const struct {
    const char* text;
    const char* wanted;
  } cases[] = {
      {"", "model.dir: is needed"},
      {"model: {dir: m}", "nobody to answer: there are 0 prefill and 0 decode"},
      {"model: {dir: m}\nprefill: {count: 1}", "decode: nobody to answer"},
      {"model: {dir: m}\ndecode: {count: 1}", "prefill: nobody to answer"},
      {"- model", "must be a map"},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(std::string(ParseClusterConfig(c.text, "x.yaml").status().message()),
                HasSubstr(c.wanted))
        << c.text;
  }
  EXPECT_TRUE(ParseClusterConfig("model: {dir: m}\nmixed: {count: 1}", "x.yaml").ok());
}

TEST(ClusterConfigTest, WhatFollowsFromAMisspeltSectionIsNotTold) {
  const std::string message(
      ParseClusterConfig("model: {dir: m}\nmixd: {count: 1}", "x.yaml").status().message());
  EXPECT_EQ(message, "x.yaml:2: mixd: no such key; did you mean mixed?");
  const std::string below(
      ParseClusterConfig("model: {dir: m}\nmixed: {cuont: 1}", "x.yaml").status().message());
  EXPECT_EQ(below, "x.yaml:2: mixed.cuont: no such key; did you mean count?");
}

TEST(ClusterConfigTest, TellsSeveralMistakesAtOnceButNotHundreds) {
  std::string text = kSmallest;
  for (int i = 0; i < 100; ++i) absl::StrAppend(&text, "wrong_", i, ": 1\n");
  const std::string message(ParseClusterConfig(text, "x.yaml").status().message());
  EXPECT_THAT(message, AllOf(HasSubstr("wrong_0"), HasSubstr("wrong_1"), HasSubstr("and 90 more")));
  EXPECT_LT(message.size(), 3000u);
}

TEST(ClusterConfigTest, AKeyInTheWrongPlaceIsNotRepeated) {
  const std::string text =
      absl::StrCat(kSmallest, "router: {api_keys: [{name: a, sha256: sk-secret}]}");
  const std::string message(ParseClusterConfig(text, "x.yaml").status().message());
  EXPECT_THAT(message, AllOf(HasSubstr("api_keys[0].sha256"), Not(HasSubstr("sk-secret"))));
}

TEST(ClusterConfigTest, ProcessesHaveNamesAndPortsOfTheirOwn) {
  const auto config =
      ParseClusterConfig(absl::StrCat("model: {dir: m}\nrouter: {count: 2}\nprefill: {count: 2}\n",
                                      "decode: {count: 1, admin: 127.0.0.1:0}\nmixed: {count: 1}"),
                         "x.yaml");
  ASSERT_TRUE(config.ok()) << config.status();
  std::string all;
  for (const ProcessConfig& process : Processes(*config)) {
    absl::StrAppend(&all, process.name, " ", process.role, " ", process.program, " ",
                    process.admin.has_value() ? process.admin->port : -1, "\n");
  }
  EXPECT_EQ(all,
            "router-1 router sluice-router 9002\n"
            "router-2 router sluice-router 9012\n"
            "balancer balancer sluice-balancer -1\n"
            "prefill-1 prefill sluice-prefill 9100\n"
            "prefill-2 prefill sluice-prefill 9101\n"
            "decode-1 decode sluice-decode 0\n"
            "mixed-1 mixed sluice-decode 9300\n");
  EXPECT_EQ(AttachAddresses(*config),
            (std::vector<Address>{{"127.0.0.1", 9001}, {"127.0.0.1", 9011}}));
  EXPECT_EQ(FindProcess(*config, "prefill-2")->metrics->port, 9151);
  EXPECT_THAT(std::string(FindProcess(*config, "prefill-3").status().message()),
              HasSubstr("has no 'prefill-3'; there are: router-1, router-2, balancer, prefill-1"));
}

TEST(LoadClusterConfigTest, NamesAFileThatIsNotThere) {
  EXPECT_THAT(LoadClusterConfig("/nowhere/x.yaml").status().ToString(),
              AllOf(HasSubstr("NOT_FOUND"), HasSubstr("/nowhere/x.yaml")));
}

}  // namespace
}  // namespace sluice
