#include "services/base/metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>

#include "absl/strings/str_cat.h"

namespace sluice {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const MetricsIdentity kIdentity = {
    .model = "sluice-tiny", .role = "decode", .instance = "decode-1"};

TEST(MetricsTest, OwnAndCompatibleSeriesHaveTheirLabels) {
  Metrics metrics(kIdentity);
  metrics.Counter("sluice_decode_tokens_total", "Tokens", {{"kind", "new"}}).Increment(3);
  metrics.Gauge("vllm:num_requests_running", "Running").Set(2);
  metrics.Histogram("sluice_decode_step_seconds", "Steps", kStepBuckets).Observe(0.003);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("sluice_decode_tokens_total{instance=\"decode-1\","
                              "model=\"sluice-tiny\",role=\"decode\",kind=\"new\"} 3"));
  EXPECT_THAT(text, HasSubstr("vllm:num_requests_running{engine=\"decode-1\",model_name="
                              "\"sluice-tiny\"} 2"));
  EXPECT_THAT(text, HasSubstr("le=\"0.004\"} 1"));
  EXPECT_THAT(text, HasSubstr("# TYPE process_cpu_seconds_total counter"));
  EXPECT_THAT(text, Not(HasSubstr("process_resident_memory_bytes 0\n")));
}

TEST(MetricsTest, TheSameNameAndLabelsAreTheSameSeries) {
  Metrics metrics(kIdentity);
  auto& first = metrics.Counter("sluice_x_total", "X", {{"a", "1"}});
  EXPECT_EQ(&first, &metrics.Counter("sluice_x_total", "X", {{"a", "1"}}));
  EXPECT_NE(&first, &metrics.Counter("sluice_x_total", "X", {{"a", "2"}}));
}

TEST(MetricsTest, BucketBoundsRise) {
  for (const MetricBuckets* buckets :
       {&kTtftBuckets, &kItlBuckets, &kRequestBuckets, &kTransferBuckets, &kStepBuckets,
        &kOverheadBuckets, &kTokenBuckets}) {
    EXPECT_TRUE(std::is_sorted(buckets->begin(), buckets->end(), std::less_equal<>()));
    EXPECT_GT(buckets->front(), 0);
  }
}

std::string Get(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  std::array<char, 4096> buffer;
  for (ssize_t n; (n = read(fd, buffer.data(), buffer.size())) > 0;) {
    answer.append(buffer.data(), static_cast<size_t>(n));
  }
  close(fd);
  return answer;
}

TEST(MetricsServerTest, ServesAndRefusesATakenPort) {
  Metrics metrics(kIdentity);
  metrics.Gauge("sluice_decode_slots_used", "Slots").Set(5);
  const auto server = MetricsServer::Start("127.0.0.1:0", metrics);
  ASSERT_TRUE(server.ok()) << server.status();
  ASSERT_GT((*server)->port(), 0);
  EXPECT_THAT(Get((*server)->port(), "/metrics"), HasSubstr("sluice_decode_slots_used{"));

  const auto second = MetricsServer::Start(absl::StrCat("127.0.0.1:", (*server)->port()), metrics);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("the port is taken"));
}

// As much as cuBLAS keeps for each thread: the metrics port could not be opened in CUDA builds.
thread_local volatile char kept_by_each_thread[104 << 10];

TEST(MetricsServerTest, IsServedWhereThreadsKeepMuchForThemselves) {
  kept_by_each_thread[0] = 1;
  const Metrics metrics(kIdentity);
  const auto server = MetricsServer::Start("127.0.0.1:0", metrics);
  EXPECT_TRUE(server.ok()) << server.status();
}

}  // namespace
}  // namespace sluice
