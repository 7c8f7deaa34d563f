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

TEST(HttpReader, BoundsWhatItKeepsOfChunkHeadersAndTrailers) {
  constexpr size_t kMax = 200;
  const std::string head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
  const struct {
    const char* name;
    std::string begin;  // of what is to be bounded
  } cases[] = {
      {"extension of the first chunk", "5;"},
      {"extension of the next chunk", "1\r\nx\r\n5;"},
      {"extension of the last chunk", "0;"},
      {"trailer", "0\r\nA: "},
      {"size", "0"},
  };
  for (const auto& c : cases) {
    for (const size_t piece : {size_t{1}, size_t{7}, size_t{4096}}) {
      SCOPED_TRACE(absl::StrCat(c.name, " in pieces of ", piece));
      HttpReader reader({.header_bytes_max = kMax, .body_bytes_max = 10});
      ASSERT_EQ(reader.Feed(head + c.begin), State::kBody);
      const std::string bytes(piece, c.begin == "0" ? '0' : 'a');
      for (size_t sent = 0; sent < 8192 && reader.state() != State::kError; sent += piece) {
        reader.Feed(bytes);
        if (reader.state() != State::kError) {
          ASSERT_LE(reader.num_kept_bytes(), kMax);
        }
      }
      ASSERT_EQ(reader.state(), State::kError);
      EXPECT_EQ(reader.http_status(), 400) << reader.error();
    }
  }
}

TEST(HttpReader, RefusesCompleteChunkExtensionsAndTrailersThatAreTooLong) {
  const std::string head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::string longer(300, 'a');
  for (const std::string& rest :
       {"1;" + longer + "\r\nx\r\n0\r\n\r\n", "1\r\nx\r\n0\r\nA: " + longer + "\r\n\r\n"}) {
    for (const uint32_t max : {200u, 400u}) {
      HttpReader reader({.header_bytes_max = max, .body_bytes_max = 10});
      EXPECT_EQ(reader.Feed(head + rest), max == 200 ? State::kError : State::kReady)
          << rest << ": " << reader.error();
    }
  }
}

TEST(HttpReader, RefusesTransferEncodingsThatDoNotEndInChunked) {
  for (const char* coding : {"gzip", "identity", "chunked, identity", "chunked, gzip", ""}) {
    for (const char* length : {"", "Content-Length: 25\r\n"}) {
      HttpReader reader({});
      reader.Feed(absl::StrCat("POST / HTTP/1.1\r\nTransfer-Encoding: ", coding, "\r\n", length,
                               "\r\nGET /hidden HTTP/1.1\r\n\r\n"));
      EXPECT_EQ(reader.state(), State::kError) << coding;
      EXPECT_EQ(reader.http_status(), 400) << coding;
    }
  }
  HttpReader reader({});
  EXPECT_EQ(reader.Feed("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            State::kError)
      << "HTTP/1.0 has none";
}

TEST(HttpReader, CountsTheRequestLineHoweverTheHeaderIsCut) {
  const std::string line = "GET / HTTP/1.1\r\n";
  for (const size_t size : {200, 201}) {
    const std::string bytes = line + "A: " + std::string(size - line.size() - 7, 'a') + "\r\n\r\n";
    ASSERT_EQ(bytes.size(), size);
    for (const size_t piece : {size_t{1}, line.size(), size}) {
      HttpReader reader({.header_bytes_max = 200});
      for (size_t i = 0; i < size && reader.state() != State::kError; i += piece) {
        reader.Feed(absl::string_view(bytes).substr(i, piece));
      }
      EXPECT_EQ(reader.state(), size == 200 ? State::kReady : State::kError) << piece;
      EXPECT_EQ(reader.http_status(), size == 200 ? 0 : 431) << piece;
    }
  }
}

TEST(HttpReader, TellsTheHeadBeforeTheBody) {
  HttpReader reader({});
  ASSERT_EQ(reader.Feed("POST /x?y HTTP/1.1\r\nAuthorization: k\r\nContent-Length: 2\r\n\r\nh"),
            State::kBody);
  EXPECT_EQ(reader.Head().path, "/x");
  EXPECT_EQ(reader.Head().Header("authorization"), "k");
  ASSERT_EQ(reader.Feed("i"), State::kReady);
  EXPECT_EQ(reader.Take().body, "hi");
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
