// Mock instances for load tests of a router: several in one process, each with its own Attach
// stream and its own step, spread evenly over a step's length.

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/log.h"
#include "services/base/program.h"
#include "services/instance/attach_client.h"
#include "services/model/page_hash.h"
#include "services/model/tokenizer.h"
#include "tests/bench/mock_instance.h"

namespace sluice::bench {
namespace {

constexpr int64_t kMs = 1'000'000;  // ns
constexpr int64_t kHeartbeat = 250 * kMs;

volatile std::sig_atomic_t stopping = 0;

struct Options {
  std::string router;
  std::string model;
  std::string emits;
  int prefills = 0, decodes = 0, mixed = 0;
  int slots = 256;
  int64_t kv_pages = 1 << 20;
  double step_ms = 100;
  double prefill_step_ms = 10;
};

absl::StatusOr<std::vector<uint32_t>> Letters(const model::Tokenizer& tokenizer) {
  std::vector<uint32_t> letters(kLetters);
  int found = 0;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const absl::string_view bytes = tokenizer.TokenBytes(id);
    if (bytes.size() != 1 || bytes[0] < 'a' || bytes[0] > 'z' || tokenizer.IsSpecial(id)) continue;
    letters[static_cast<size_t>(bytes[0] - 'a')] = static_cast<uint32_t>(id);
    ++found;
  }
  if (found != kLetters) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer: has ", found, " tokens that are one letter, wanted ", kLetters));
  }
  return letters;
}

class MockWorker {
 public:
  explicit MockWorker(Options options) : options_(std::move(options)) {}

  absl::Status Start() {
    SLUICE_ASSIGN_OR_RETURN(const auto tokenizer, model::Tokenizer::Load(options_.model));
    SLUICE_ASSIGN_OR_RETURN(letters_, Letters(*tokenizer));
    SLUICE_ASSIGN_OR_RETURN(const model::PageHash hash, model::ModelHash(options_.model));
    model_hash_.assign(hash.begin(), hash.end());
    if (!options_.emits.empty()) {
      SLUICE_ASSIGN_OR_RETURN(EmitTable table, EmitTable::Open(options_.emits));
      emits_.emplace(std::move(table));
    }
    Add(v1::ROLE_PREFILL, "prefill", options_.prefills, options_.prefill_step_ms);
    Add(v1::ROLE_DECODE, "decode", options_.decodes, options_.step_ms);
    Add(v1::ROLE_MIXED, "mixed", options_.mixed, options_.step_ms);
    for (const auto& instance : instances_) {
      clients_.push_back(std::make_unique<instance::AttachClient>(
          instance::AttachOptions{.routers = {options_.router}, .hello = instance->hello()},
          instance.get()));
      instance->SetPort(clients_.back().get());
    }
    return absl::OkStatus();
  }

  // Until SIGTERM. Steps that are late are made up for at once: the pace is kept.
  void Run() {
    while (stopping == 0) {
      const Due due = due_.top();
      const timespec until = {.tv_sec = due.at / 1'000'000'000, .tv_nsec = due.at % 1'000'000'000};
      if (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) != 0) continue;
      due_.pop();
      if (due.heartbeat) {
        due.instance->Heartbeat();
      } else {
        due.instance->Step();
      }
      due_.push({due.at + due.every, due.every, due.instance, due.heartbeat});
    }
    for (const auto& client : clients_) client->Close(absl::ZeroDuration());
  }

 private:
  struct Due {
    int64_t at;
    int64_t every;
    MockInstance* instance;
    bool heartbeat;
    bool operator<(const Due& other) const { return at > other.at; }  // the first on top
  };

  void Add(v1::Role role, const char* name, int count, double step_ms) {
    const int64_t now = NowNs();
    for (int i = 0; i < count; ++i) {
      v1::Hello hello;
      hello.set_protocol_version(v1::PROTOCOL_VERSION_CURRENT);
      hello.set_instance(absl::StrCat("mock-", name, "-", i + 1));
      hello.set_incarnation(instances_.size() + 1);
      hello.set_role(role);
      hello.set_model_name("mock");
      hello.set_model_hash(model_hash_);
      hello.set_kv_layout_hash("0123456789abcdef");
      v1::Capacity* capacity = hello.mutable_capacity();
      capacity->set_slots(static_cast<uint32_t>(options_.slots));
      capacity->set_kv_pages(static_cast<uint64_t>(options_.kv_pages));
      capacity->set_positions(1 << 20);
      capacity->set_step_tokens(1 << 20);
      instances_.push_back(std::make_unique<MockInstance>(
          MockOptions{.hello = hello,
                      .letters = letters_,
                      .emits = emits_.has_value() ? &*emits_ : nullptr},
          [this](uint64_t incarnation, uint64_t lease) {
            instances_[incarnation - 1]->OnKv(lease);
          }));
      const int64_t step = static_cast<int64_t>(step_ms * kMs);
      due_.push({now + step * i / count, step, instances_.back().get(), false});
      due_.push({now + kHeartbeat * i / count, kHeartbeat, instances_.back().get(), true});
    }
  }

  const Options options_;
  std::vector<uint32_t> letters_;
  std::string model_hash_;
  std::optional<EmitTable> emits_;
  std::vector<std::unique_ptr<MockInstance>> instances_;
  std::vector<std::unique_ptr<instance::AttachClient>> clients_;
  std::priority_queue<Due> due_;
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Mock instances for load tests of a router");
  app.add_option("--router", options.router, "its attach address, HOST:PORT")->required();
  app.add_option("--model", options.model, "the checkpoint that the router serves")->required();
  app.add_option("--emits", options.emits, "the file that tells when tokens were sent");
  app.add_option("--prefills", options.prefills);
  app.add_option("--decodes", options.decodes);
  app.add_option("--mixed", options.mixed);
  app.add_option("--slots", options.slots, "requests that one decode or mixed instance holds");
  app.add_option("--kv-pages", options.kv_pages, "of each instance");
  app.add_option("--step-ms", options.step_ms, "of decode and mixed: one token each per step");
  app.add_option("--prefill-step-ms", options.prefill_step_ms);
  CLI11_PARSE(app, argc, argv);
  if (options.prefills + options.decodes + options.mixed == 0) {
    return ExitWith(absl::InvalidArgumentError("--prefills, --decodes, --mixed: all 0"));
  }
  struct sigaction stop {};
  stop.sa_handler = [](int) { stopping = 1; };
  sigaction(SIGTERM, &stop, nullptr);
  sigaction(SIGINT, &stop, nullptr);
  MockWorker worker(options);
  if (const absl::Status status = worker.Start(); !status.ok()) return ExitWith(status);
  worker.Run();
  return ExitWith(absl::OkStatus());
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) { return sluice::bench::Main(argc, argv); }
