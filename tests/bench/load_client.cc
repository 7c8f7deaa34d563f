// Load for a router: keeps streamed chat answers open over HTTP, checks each of them to the letter,
// and measures how long tokens take from the mock worker to here. One thread. Prints one line of
// JSON at the end; exit status 1 when an answer was wrong.
//
// The latency of a token is the time between the mock worker handing it to gRPC (emit_table.h) and
// the read that brought it here: the time it waited for this program is part of it.

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/base/status.h"
#include "services/base/mapped_file.h"
#include "services/base/open_files.h"
#include "services/base/program.h"
#include "tests/bench/chat_check.h"
#include "tests/bench/emit_table.h"
#include "tests/bench/sse_reader.h"

namespace sluice::bench {
namespace {

constexpr int64_t kSecond = 1'000'000'000;  // ns
constexpr int64_t kSilenceMax = 60 * kSecond;
constexpr size_t kErrorsTold = 5;
constexpr size_t kLongBytesMax = 16 << 20;

struct Options {
  std::string router;  // 127.0.0.1:8000
  std::string emits;
  std::string long_prompt;
  int streams = 1;
  double rate = 0;  // starts a second at most; 0: as fast as it goes
  int64_t requests = 0;
  double seconds = 0;
  double settle = 0;
  double hold = 0;
  uint32_t tokens = 32;
  int words = 100;
  double long_every = 1;
};

// One connection and the answer under way on it.
struct Stream {
  int fd = -1;
  bool is_long = false;
  int64_t started = 0;
  int64_t last_read = 0;
  std::string output;
  size_t written = 0;
  bool waits_to_write = false;
  uint64_t seed = 0;
  std::optional<ChatCheck> check;
  SseReader reader;
  size_t index = 0;  // in live_
};

struct Samples {
  std::vector<int64_t> ns;
  std::string Json() {
    std::sort(ns.begin(), ns.end());
    const auto at = [&](double share) {
      if (ns.empty()) return 0.0;
      const size_t index = static_cast<size_t>(share * static_cast<double>(ns.size() - 1));
      return static_cast<double>(ns[index]) / 1e6;
    };
    return absl::StrCat("{\"count\":", ns.size(), ",\"p50_ms\":", at(0.5), ",\"p90_ms\":", at(0.9),
                        ",\"p99_ms\":", at(0.99), ",\"p999_ms\":", at(0.999), ",\"max_ms\":", at(1),
                        "}");
  }
};

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

class LoadClient {
 public:
  LoadClient(Options options, EmitTable emits, std::string long_text)
      : options_(std::move(options)),
        emits_(std::move(emits)),
        long_text_(std::move(long_text)),
        epoll_(epoll_create1(EPOLL_CLOEXEC)),
        buffer_(256 << 10) {}
  ~LoadClient() { close(epoll_); }

  absl::Status Run() {
    const std::vector<std::string> parts = absl::StrSplit(options_.router, ':');
    int port = 0;
    address_.sin_family = AF_INET;
    if (parts.size() != 2 || inet_pton(AF_INET, parts[0].c_str(), &address_.sin_addr) != 1 ||
        !absl::SimpleAtoi(parts[1], &port)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--router: '", options_.router, "', wanted an IPv4 address and a port"));
    }
    address_.sin_port = htons(static_cast<uint16_t>(port));
    begin_ = next_start_ = next_long_ = NowNs();
    while (true) {
      const int64_t now = NowNs();
      SLUICE_RETURN_IF_ERROR(StartDue(now));
      if (options_.hold > 0) {
        if (Held(now)) break;
      } else if (live_.empty() && !MayStart(now)) {
        break;
      }
      SLUICE_RETURN_IF_ERROR(Wait(now));
    }
    end_ = NowNs();
    held_open_ = static_cast<int64_t>(live_.size());
    while (!live_.empty()) Close(live_.back().get());
    return absl::OkStatus();
  }

  std::string Json() {
    const double seconds = static_cast<double>(end_ - begin_) / 1e9;
    std::string json = absl::StrCat(
        "{\"seconds\":", seconds, ",\"started\":", started_, ",\"finished\":", finished_,
        ",\"failed\":", failed_, ",\"tokens\":", tokens_, ",\"open_max\":", open_max_,
        ",\"held_open\":", held_open_, ",\"requests_per_second\":", finished_ / seconds,
        ",\"cpu_seconds\":", CpuSeconds(), ",\"long_finished\":", long_finished_,
        ",\"long_prompt_tokens\":", long_prompt_tokens_, ",\"latency\":", latency_.Json(),
        ",\"ttft\":", ttft_.Json(), ",\"long_ttft\":", long_ttft_.Json(), ",\"errors\":[");
    for (const std::string& error : errors_) {
      absl::StrAppend(&json, json.back() == '[' ? "" : ",", "\"");
      for (const char c : error) json += c == '"' || c == '\\' || c < ' ' ? '\'' : c;
      json += '"';
    }
    return json + "]}";
  }

  bool ok() const { return failed_ == 0; }

 private:
  bool MayStart(int64_t now) const {
    if (options_.requests > 0 && started_ >= options_.requests) return false;
    return options_.seconds == 0 || now < begin_ + static_cast<int64_t>(options_.seconds * 1e9);
  }

  absl::Status StartDue(int64_t now) {
    const auto due = [&] { return options_.rate == 0 || next_start_ <= now; };
    while (open_ < options_.streams && MayStart(now) && due()) {
      if (options_.rate > 0) next_start_ += static_cast<int64_t>(1e9 / options_.rate);
      SLUICE_RETURN_IF_ERROR(Start(/*is_long=*/false, now));
    }
    if (options_.rate > 0 && open_ >= options_.streams) next_start_ = std::max(next_start_, now);
    if (!long_text_.empty() && MayStart(now) && next_long_ <= now) {
      next_long_ += static_cast<int64_t>(options_.long_every * 1e9);
      SLUICE_RETURN_IF_ERROR(Start(/*is_long=*/true, now));
    }
    return absl::OkStatus();
  }

  absl::Status Start(bool is_long, int64_t now) {
    std::unique_ptr<Stream> stream;
    if (idle_.empty()) {
      stream = std::make_unique<Stream>();
      SLUICE_RETURN_IF_ERROR(Connect(stream.get()));
    } else {
      stream = std::move(idle_.back());
      idle_.pop_back();
    }
    const uint64_t seed = next_seed_++;
    for (uint64_t i = 0; i < std::min<uint64_t>(options_.tokens, kEmitColumns); ++i) {
      emits_.Set(seed, i, 0);
    }
    stream->is_long = is_long;
    stream->seed = seed;
    stream->started = stream->last_read = now;
    stream->check.emplace(seed, options_.tokens);
    stream->reader.Reset();
    stream->output = Request(seed, is_long);
    stream->written = 0;
    stream->index = live_.size();
    (is_long ? long_started_ : started_) += 1;
    if (!is_long) open_max_ = std::max(open_max_, ++open_);
    live_.push_back(std::move(stream));
    Write(live_.back().get());
    return absl::OkStatus();
  }

  absl::Status Connect(Stream* stream) {
    stream->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (stream->fd < 0 ||
        connect(stream->fd, reinterpret_cast<const sockaddr*>(&address_), sizeof address_) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat(options_.router, ": cannot connect"));
    }
    const int one = 1;
    setsockopt(stream->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(stream->fd, F_SETFL, fcntl(stream->fd, F_GETFL) | O_NONBLOCK);
    epoll_event event{.events = EPOLLIN, .data = {.ptr = stream}};
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, stream->fd, &event) != 0) {
      return absl::ErrnoToStatus(errno, "epoll_ctl");
    }
    return absl::OkStatus();
  }

  // Every prompt begins differently: none is in a prefix cache.
  std::string Request(uint64_t seed, bool is_long) const {
    std::string prompt = absl::StrCat("Question ", seed, ". ");
    if (is_long) {
      prompt += long_text_;
    } else {
      for (int i = 0; i < options_.words; ++i)
        absl::StrAppend(&prompt, "and ", (seed + i) % 7, " ");
    }
    const std::string body = absl::StrCat(
        "{\"messages\":[{\"role\":\"user\",\"content\":\"", prompt,
        "\"}],\"stream\":true,\"stream_options\":{\"include_usage\":true},\"ignore_eos\":true,"
        "\"max_tokens\":",
        options_.tokens, ",\"seed\":", seed, "}");
    return absl::StrCat("POST /v1/chat/completions HTTP/1.1\r\nHost: ", options_.router,
                        "\r\nContent-Type: application/json\r\nContent-Length: ", body.size(),
                        "\r\n\r\n", body);
  }

  void Write(Stream* stream) {
    const std::string& output = stream->output;
    while (stream->written < output.size()) {
      const ssize_t sent = send(stream->fd, output.data() + stream->written,
                                output.size() - stream->written, MSG_NOSIGNAL);
      if (sent < 0 && errno == EAGAIN) break;
      if (sent < 0) return Fail(stream, absl::ErrnoToStatus(errno, "cannot send"));
      stream->written += static_cast<size_t>(sent);
    }
    const bool waits = stream->written < output.size();
    if (waits != stream->waits_to_write) {
      stream->waits_to_write = waits;
      epoll_event event{.events = EPOLLIN | (waits ? uint32_t{EPOLLOUT} : 0),
                        .data = {.ptr = stream}};
      epoll_ctl(epoll_, EPOLL_CTL_MOD, stream->fd, &event);
    }
    if (!waits) std::string().swap(stream->output);
  }

  absl::Status Wait(int64_t now) {
    int64_t until = now + kSecond / 10;
    if (options_.rate > 0 && open_ < options_.streams && MayStart(now)) {
      until = std::min(until, next_start_);
    }
    if (!long_text_.empty() && MayStart(now)) until = std::min(until, next_long_);
    const int timeout_ms =
        static_cast<int>(std::max<int64_t>(0, until - now + 999'999) / 1'000'000);
    epoll_event events[64];
    const int count = epoll_wait(epoll_, events, 64, timeout_ms);
    if (count < 0 && errno != EINTR) return absl::ErrnoToStatus(errno, "epoll_wait");
    for (int i = 0; i < count; ++i) {
      Stream* stream = static_cast<Stream*>(events[i].data.ptr);
      if ((events[i].events & EPOLLOUT) != 0 && stream->waits_to_write) Write(stream);
      if ((events[i].events & ~uint32_t{EPOLLOUT}) != 0) Read(stream);
    }
    dead_.clear();
    CheckSilence(now);
    return absl::OkStatus();
  }

  void Read(Stream* stream) {
    if (stream->fd < 0) return;  // failed since the wait
    const ssize_t bytes = recv(stream->fd, buffer_.data(), buffer_.size(), 0);
    const int64_t now = NowNs();
    if (bytes < 0 && errno == EAGAIN) return;
    if (!stream->check.has_value()) return CloseIdle(stream);
    if (bytes < 0) return Fail(stream, absl::ErrnoToStatus(errno, "cannot receive"));
    if (bytes == 0) return Fail(stream, absl::DataLossError("the connection ended"));
    stream->last_read = now;
    const uint32_t before = stream->check->received();
    const absl::Status status = stream->reader.Feed(
        {buffer_.data(), static_cast<size_t>(bytes)},
        [&](absl::string_view data) { return stream->check->OnEvent(data, &parser_); });
    Measure(*stream, before, now);
    if (!status.ok()) return Fail(stream, status);
    if (stream->reader.complete()) Complete(stream);
  }

  void Measure(const Stream& stream, uint32_t before, int64_t now) {
    const uint32_t received = stream.check->received();
    if (before == 0 && received > 0) {
      ++with_tokens_;
      (stream.is_long ? long_ttft_ : ttft_).ns.push_back(now - stream.started);
    }
    if (stream.is_long) return;
    tokens_ += received - before;
    const bool steady =
        now >= begin_ + static_cast<int64_t>(options_.settle * 1e9) && MayStart(now);
    for (uint64_t i = before; i < received && steady; ++i) {
      const int64_t emitted = emits_.Get(stream.seed, i);
      if (emitted > 0) latency_.ns.push_back(now - emitted);
    }
  }

  void Complete(Stream* stream) {
    if (stream->reader.status() != 200) {
      return Fail(stream, absl::InternalError(absl::StrCat("HTTP ", stream->reader.status(), " ",
                                                           stream->reader.body())));
    }
    const absl::Status status = stream->check->Complete();
    if (!status.ok()) return Fail(stream, status);
    if (stream->is_long) {
      ++long_finished_;
      long_prompt_tokens_ = stream->check->prompt_tokens();
    } else {
      ++finished_;
    }
    if (!stream->reader.keep_alive()) return Close(stream);
    idle_.push_back(TakeLive(stream));
  }

  void Fail(Stream* stream, const absl::Status& status) {
    ++failed_;
    if (errors_.size() < kErrorsTold) errors_.push_back(status.ToString());
    Close(stream);
  }

  std::unique_ptr<Stream> TakeLive(Stream* stream) {
    const size_t index = stream->index;
    std::unique_ptr<Stream> taken = std::move(live_[index]);
    if (index + 1 < live_.size()) {
      live_[index] = std::move(live_.back());
      live_[index]->index = index;
    }
    live_.pop_back();
    if (!stream->is_long) --open_;
    stream->check.reset();
    return taken;
  }

  void Close(Stream* stream) {
    close(stream->fd);
    stream->fd = -1;
    dead_.push_back(TakeLive(stream));  // events of this round may still point to it
  }

  void CloseIdle(Stream* stream) {
    close(stream->fd);
    stream->fd = -1;
    const auto it = std::find_if(idle_.begin(), idle_.end(),
                                 [&](const auto& other) { return other.get() == stream; });
    dead_.push_back(std::move(*it));
    idle_.erase(it);
  }

  void CheckSilence(int64_t now) {
    if (options_.hold > 0 || now < next_silence_check_) return;
    next_silence_check_ = now + kSecond;
    for (size_t i = live_.size(); i-- > 0;) {
      if (now - live_[i]->last_read < kSilenceMax) continue;
      Fail(live_[i].get(), absl::DeadlineExceededError("nothing came for a minute"));
    }
    dead_.clear();
  }

  // Whether all streams have been open for the time they were to be.
  bool Held(int64_t now) {
    if (failed_ > 0) return true;
    if (with_tokens_ < options_.streams) return false;
    if (held_since_ == 0) {
      held_since_ = now;
      std::printf("{\"held\":%lld}\n", static_cast<long long>(with_tokens_));
      std::fflush(stdout);
    }
    return now >= held_since_ + static_cast<int64_t>(options_.hold * 1e9);
  }

  const Options options_;
  EmitTable emits_;
  const std::string long_text_;
  sockaddr_in address_{};
  const int epoll_;
  std::vector<char> buffer_;
  simdjson::dom::parser parser_;
  std::vector<std::unique_ptr<Stream>> live_, idle_, dead_;

  int64_t begin_ = 0, end_ = 0, next_start_ = 0, next_long_ = 0, next_silence_check_ = 0;
  int64_t held_since_ = 0;
  uint64_t next_seed_ = 1;
  int64_t open_ = 0, open_max_ = 0, held_open_ = 0, with_tokens_ = 0;
  int64_t started_ = 0, finished_ = 0, failed_ = 0, tokens_ = 0;
  int64_t long_started_ = 0, long_finished_ = 0, long_prompt_tokens_ = 0;
  Samples latency_, ttft_, long_ttft_;
  std::vector<std::string> errors_;
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Load for a router: streamed chat answers, each checked to the letter");
  app.add_option("--router", options.router, "its HTTP address, IPv4:PORT")->required();
  app.add_option("--emits", options.emits, "the mock worker's file of times")->required();
  app.add_option("--streams", options.streams, "kept open at once")->check(CLI::Range(1, 30000));
  app.add_option("--rate", options.rate, "starts a second at most");
  app.add_option("--requests", options.requests, "in all; 0: as many as --seconds allow");
  app.add_option("--seconds", options.seconds, "in which requests are started");
  app.add_option("--settle", options.settle, "seconds at the start whose tokens are not measured");
  app.add_option("--hold", options.hold, "open all streams, keep them so many seconds, and go");
  app.add_option("--tokens", options.tokens, "of each answer");
  app.add_option("--words", options.words, "of each prompt, half of them numbers");
  app.add_option("--long-prompt", options.long_prompt, "a text to ask beside, without \" and \\");
  app.add_option("--long-every", options.long_every, "seconds between such prompts");
  CLI11_PARSE(app, argc, argv);
  if (options.requests == 0 && options.seconds == 0) {
    return ExitWith(absl::InvalidArgumentError("one of --requests and --seconds is needed"));
  }
  RaiseOpenFilesLimit();
  auto emits = EmitTable::Open(options.emits);
  if (!emits.ok()) return ExitWith(emits.status());
  std::string long_text;
  if (!options.long_prompt.empty()) {
    auto text = ReadFile(options.long_prompt, kLongBytesMax);
    if (!text.ok()) return ExitWith(text.status());
    long_text = *std::move(text);
  }
  LoadClient client(options, *std::move(emits), std::move(long_text));
  if (const absl::Status status = client.Run(); !status.ok()) return ExitWith(status);
  std::printf("%s\n", client.Json().c_str());
  return client.ok() ? 0 : 1;
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) { return sluice::bench::Main(argc, argv); }
