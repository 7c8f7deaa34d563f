// sluice top: what a running cluster is doing.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/base/status.h"
#include "services/rpc/admin_client.h"
#include "tools/sluice/commands.h"

namespace sluice::cli {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(2);

struct TopOptions {
  std::string admin = "127.0.0.1:9002";
  double interval_s = 1;
  bool once = false;
};

std::string Percent(uint64_t part, uint64_t whole) {
  return whole == 0 ? "-"
                    : absl::StrFormat(
                          "%.0f%%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string StatusText(const v1::GetStatusResponse& status) {
  std::string text = absl::StrFormat(
      "%s (%s), up %s, %s\n", status.service(), status.software(),
      absl::FormatDuration(absl::Seconds(static_cast<int64_t>(status.uptime_seconds()))),
      status.draining() ? "draining"
      : status.ready()  ? "ready"
                        : "not ready");
  if (status.has_router()) {
    const v1::RouterStatus& router = status.router();
    absl::StrAppendFormat(&text,
                          "requests  %u active, %u queued, %.1f/s\n"
                          "output    %.0f tokens/s\n"
                          "TTFT      p50 %.0f ms, p99 %.0f ms\n"
                          "TPOT      p50 %.1f ms, p99 %.1f ms\n",
                          router.active(), router.queued(), router.requests_per_second(),
                          router.output_tokens_per_second(), router.ttft_p50_ms(),
                          router.ttft_p99_ms(), router.tpot_p50_ms(), router.tpot_p99_ms());
  }
  absl::StrAppendFormat(&text, "\n%-14s %-8s %-9s %9s %7s %8s %6s %7s %6s %10s %10s\n", "INSTANCE",
                        "ROLE", "STATE", "RUNNING", "WAITING", "KV PAGES", "USED", "CACHED", "QUAR",
                        "PROMPT t/s", "OUTPUT t/s");
  for (const v1::InstanceStatus& instance : status.instances()) {
    const v1::Capacity& capacity = instance.capacity();
    const v1::Load& load = instance.load();
    absl::StrAppendFormat(
        &text, "%-14s %-8s %-9s %9s %7u %8u %6s %7u %6u %10.0f %10.0f\n", instance.instance(),
        instance.role(), instance.state(), absl::StrCat(load.running(), "/", capacity.slots()),
        load.waiting(), capacity.kv_pages(),
        Percent(capacity.kv_pages() - std::min(load.kv_pages_free(), capacity.kv_pages()),
                capacity.kv_pages()),
        load.kv_pages_cached(), load.kv_pages_quarantined(), load.prompt_tokens_per_second(),
        load.output_tokens_per_second());
  }
  if (status.instances().empty()) absl::StrAppend(&text, "none attached\n");
  return text;
}

absl::Status Top(const TopOptions& options) {
  const rpc::AdminClient client(options.admin);
  const bool on_terminal = isatty(STDOUT_FILENO) == 1;
  while (true) {
    const absl::StatusOr<v1::GetStatusResponse> status = client.GetStatus(kTimeout);
    if (!status.ok() && (options.once || !on_terminal)) return status.status();
    const std::string text =
        status.ok() ? StatusText(*status)
                    : absl::StrCat("no answer: ", std::string(status.status().message()), "\n");
    if (on_terminal && !options.once) std::fputs("\x1b[H\x1b[2J", stdout);
    std::fputs(text.c_str(), stdout);
    if (options.once) return absl::OkStatus();
    if (!on_terminal) std::fputs("\n", stdout);
    if (std::fflush(stdout) != 0) return absl::OkStatus();  // told by the caller
    absl::SleepFor(absl::Seconds(options.interval_s));
  }
}

}  // namespace

Command AddTopCommand(CLI::App* parent) {
  auto options = std::make_shared<TopOptions>();
  CLI::App* command = parent->add_subcommand(
      "top", "what a running cluster is doing: instances, queues, KV pages, speed");
  command->add_option("--admin", options->admin, "the admin address of a router, or of any process")
      ->option_text("HOST:PORT [127.0.0.1:9002]");
  command->add_option("--interval", options->interval_s, "seconds between two looks")
      ->check(CLI::Range(0.1, 3600.0))
      ->option_text("X [1]");
  command->add_flag("--once", options->once, "one look, and end");
  return [options] { return Top(*options); };
}

}  // namespace sluice::cli
