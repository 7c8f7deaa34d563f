#include "services/router/http_reader.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace sluice::router {
namespace {

using State = HttpReader::State;

TEST(HttpReader, ReadsRequestsHoweverTheyAreCut) {
  const std::string bytes =
      "POST /v1/x?a=b HTTP/1.1\r\nHost: h\r\nX-Request-ID: r1\r\nContent-Length: 5\r\n\r\nhello"
      "GET /y HTTP/1.0\r\n\r\n"
      "POST /z HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
  for (const size_t piece : {size_t{1}, size_t{2}, size_t{7}, bytes.size()}) {
    SCOPED_TRACE(piece);
    HttpReader reader({});
    std::vector<HttpRequest> requests;
    for (size_t i = 0; i < bytes.size(); i += piece) {
      reader.Feed(absl::string_view(bytes).substr(i, piece));
      while (reader.state() == State::kReady) requests.push_back(reader.Take());
    }
    EXPECT_EQ(reader.state(), State::kIdle);
    ASSERT_EQ(requests.size(), 3u);
    EXPECT_EQ(requests[0].method, "POST");
    EXPECT_EQ(requests[0].path, "/v1/x");
    EXPECT_EQ(requests[0].Header("x-request-id"), "r1");
    EXPECT_EQ(requests[0].body, "hello");
    EXPECT_TRUE(requests[0].keep_alive);
    EXPECT_EQ(requests[1].path, "/y");
    EXPECT_TRUE(requests[1].http_1_0);
    EXPECT_FALSE(requests[1].keep_alive);
    EXPECT_EQ(requests[2].body, "abcde");
  }
}

TEST(HttpReader, RefusesWhatIsTooMuchOrNoHttp) {
  const HttpLimits limits{.header_bytes_max = 200, .body_bytes_max = 10};
  const struct {
    const char* name;
    std::string bytes;
    int status;
  } cases[] = {
      {"garbage", "hello world\r\n\r\n", 400},
      {"TLS", std::string("\x16\x03\x01\x02\x00\x01\x00\x01", 8) + std::string(64, 'x'), 400},
      {"long header", "GET / HTTP/1.1\r\nA: " + std::string(300, 'a') + "\r\n\r\n", 431},
      {"endless target", "GET /" + std::string(500, 'a'), 431},
      {"announced body", "POST / HTTP/1.1\r\nContent-Length: 11\r\n\r\n", 413},
      {"chunked body",
       "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n", 413},
      {"length and chunks",
       "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"two lengths", "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
       400},
      {"negative length", "POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\nhello", 400},
      {"another version", "GET / HTTP/3.0\r\n\r\n", 400},
  };
  for (const auto& c : cases) {
    HttpReader reader(limits);
    EXPECT_EQ(reader.Feed(c.bytes), State::kError) << c.name;
    EXPECT_EQ(reader.http_status(), c.status) << c.name << ": " << reader.error();
    EXPECT_FALSE(reader.error().empty()) << c.name;
  }
}

TEST(HttpReader, TellsOnceThatAClientWaitsForContinue) {
  HttpReader reader({});
  reader.Feed("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(reader.state(), State::kBody);
  EXPECT_TRUE(reader.TakeExpectsContinue());
  EXPECT_FALSE(reader.TakeExpectsContinue());
  EXPECT_EQ(reader.Feed("hi"), State::kReady);
}

}  // namespace
}  // namespace sluice::router
