#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tools/sluice/http_client.h"

namespace sluice::cli {
namespace {

TEST(EventParserTest, CutsAtBlankLinesHoweverTheBytesCome) {
  const struct {
    const char* name;
    std::string bytes;
    std::vector<std::string> wanted;
  } cases[] = {
      {"nothing", "", {}},
      {"one", "data: {\"a\":1}\n\n", {"{\"a\":1}"}},
      {"no space", "data:x\n\n", {"x"}},
      {"two", "data: x\n\ndata: y\n\n", {"x", "y"}},
      {"carriage returns", "data: x\r\n\r\ndata: y\r\n\r\n", {"x", "y"}},
      {"several lines", "data: x\ndata: y\n\n", {"x\ny"}},
      {"empty data", "data:\n\n", {""}},
      {"comments and other fields", ": ping\n\nevent: e\nid: 3\ndata: x\n\n", {"x"}},
      {"cut short", "data: x\n\ndata: y\n", {"x"}},
      {"a colon in it", "data: a: b\n\n", {"a: b"}},
  };
  for (const auto& c : cases) {
    for (const size_t step : {size_t{1}, size_t{2}, size_t{3}, size_t{1000}}) {
      EventParser parser;
      std::vector<std::string> events;
      for (size_t i = 0; i < c.bytes.size(); i += step) {
        parser.Feed(c.bytes.substr(i, step),
                    [&](absl::string_view data) { events.emplace_back(data); });
      }
      EXPECT_EQ(events, c.wanted) << c.name << ", " << step << " bytes at a time";
    }
  }
}

TEST(HttpClientTest, TakesEndpointsOfSeveralForms) {
  for (const char* endpoint :
       {"http://127.0.0.1:8000", "http://localhost", "http://[::1]:80/", "http://host:1/v1",
        "http://host:1/prefix/v1/", "https://host", "https://[::1]:8443/v1"}) {
    EXPECT_TRUE(HttpClient::Create(endpoint, "").ok()) << endpoint;
  }
  for (const char* endpoint : {"", "127.0.0.1:8000", "https://", "ftp://x", "http://", "http://:80",
                               "http://x:0", "http://x:65536", "http://x:y"}) {
    EXPECT_EQ(HttpClient::Create(endpoint, "").status().code(), absl::StatusCode::kInvalidArgument)
        << endpoint;
  }
}

TEST(HttpClientTest, NamesAWrongCaFile) {
  EXPECT_EQ(HttpClient::Create("https://x", "", "/nowhere/ca.pem").status().code(),
            absl::StatusCode::kNotFound);
  const auto client = HttpClient::Create("https://x", "", "README.md");
  EXPECT_EQ(client.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(client.status().message()), testing::HasSubstr("README.md: holds no"));
}

TEST(ErrorOfTest, SaysWhatTheServerSaid) {
  EXPECT_TRUE(ErrorOf({.status = 200}).ok());
  EXPECT_EQ(ErrorOf({.status = 429, .body = R"({"error":{"message":"full"}})"}),
            absl::ResourceExhaustedError("HTTP 429: full"));
  EXPECT_EQ(ErrorOf({.status = 503, .body = "gone"}), absl::UnavailableError("HTTP 503: gone"));
  EXPECT_EQ(ErrorOf({.status = 400, .body = R"({"error":7})"}).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace sluice::cli
