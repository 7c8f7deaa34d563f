// HTTP over TLS, with real sockets and clients that behave and that do not.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/ssl.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <csignal>
#include <latch>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "services/base/tls_test_files.h"
#include "services/router/http_server.h"
#include "services/router/http_test_client.h"
#include "services/router/tls_certificate.h"

namespace sluice::router {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Answers with what was sent.
class Echo final : public HttpHandler {
 public:
  bool Admit(const HttpRequest&, HttpReply*) override { return true; }
  std::unique_ptr<HttpWork> Handle(HttpRequest request, HttpReply* reply) override {
    reply->Send({.body = std::move(request.body)});
    return nullptr;
  }
};

struct ClientOptions {
  std::string ca;    // empty: trusts everybody
  TlsSection shows;  // a certificate of its own
  int version_max = TLS1_3_VERSION;
  std::string protocols;  // offered by ALPN, as on the wire
};

// One connection that blocks.
class TlsClient {
 public:
  TlsClient(int port, const ClientOptions& options)
      : socket_(port), context_(SSL_CTX_new(TLS_client_method()), SSL_CTX_free) {
    SSL_CTX_set_max_proto_version(context_.get(), options.version_max);
    if (!options.ca.empty()) {
      EXPECT_EQ(SSL_CTX_load_verify_file(context_.get(), options.ca.c_str()), 1);
      SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
    }
    if (options.shows.enabled()) {
      SSL_CTX_use_certificate_chain_file(context_.get(), options.shows.certificate.c_str());
      SSL_CTX_use_PrivateKey_file(context_.get(), options.shows.key.c_str(), SSL_FILETYPE_PEM);
    }
    ssl_.reset(SSL_new(context_.get()));
    if (!options.protocols.empty()) {
      SSL_set_alpn_protos(ssl_.get(),
                          reinterpret_cast<const unsigned char*>(options.protocols.data()),
                          static_cast<unsigned int>(options.protocols.size()));
    }
    SSL_set_fd(ssl_.get(), socket_.fd());
    connected_ = SSL_connect(ssl_.get()) == 1;
  }

  bool connected() const { return connected_; }
  std::string version() const { return SSL_get_version(ssl_.get()); }
  std::string protocol() const {
    const unsigned char* name = nullptr;
    unsigned int bytes = 0;
    SSL_get0_alpn_selected(ssl_.get(), &name, &bytes);
    return std::string(reinterpret_cast<const char*>(name), bytes);
  }
  int64_t serial() const {
    return ASN1_INTEGER_get(X509_get0_serialNumber(SSL_get0_peer_certificate(ssl_.get())));
  }

  // What comes back until the server ends the connection, and whether it said so.
  struct Answer {
    std::string text;
    bool ended_well = false;
  };
  Answer Ask(const std::string& request) {
    size_t sent = 0;
    while (sent < request.size()) {
      const int count =
          SSL_write(ssl_.get(), request.data() + sent, static_cast<int>(request.size() - sent));
      if (count <= 0) break;
      sent += static_cast<size_t>(count);
    }
    Answer answer;
    char buffer[4096];
    int count = 0;
    while ((count = SSL_read(ssl_.get(), buffer, sizeof(buffer))) > 0) {
      answer.text.append(buffer, static_cast<size_t>(count));
    }
    answer.ended_well = SSL_get_error(ssl_.get(), count) == SSL_ERROR_ZERO_RETURN;
    return answer;
  }

 private:
  HttpTestClient socket_;
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_;
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_{nullptr, SSL_free};
  bool connected_ = false;
};

std::string Request(const std::string& body) {
  return absl::StrCat("POST /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: ",
                      body.size(), "\r\n\r\n", body);
}

class HttpsTest : public ::testing::Test {
 protected:
  // OpenSSL writes to sockets that the server may have closed.
  HttpsTest() { std::signal(SIGPIPE, SIG_IGN); }
  ~HttpsTest() override {
    if (!thread_.joinable()) return;
    OnLoop([&] { server_.reset(); });
    OnLoop([] {});
    loop_.stop();
    thread_.join();
  }

  void Start(HttpServerOptions options = {}, const std::string& client_ca = "") {
    TlsSection section = files_.section();
    section.client_ca = client_ca;
    auto certificate = TlsCertificate::Load(section);
    ASSERT_TRUE(certificate.ok()) << certificate.status();
    certificate_ = *std::move(certificate);
    options.tls = certificate_.get();
    auto server = HttpServer::Start(&loop_, options, &echo_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    port_ = server_->port();
    thread_ = std::thread([this] { loop_.run(); });
  }

  template <typename F>
  void OnLoop(F f) {
    std::latch done{1};
    boost::asio::post(loop_, [&] {
      f();
      done.count_down();
    });
    done.wait();
  }
  void WaitForConnections(int count) {
    int now = -1;
    while (now != count) {
      OnLoop([&] { now = server_->num_connections(); });
      std::this_thread::yield();
    }
  }
  ClientOptions Trusting() const { return {.ca = files_.section().certificate}; }

  const TlsTestFiles files_{1};
  Echo echo_;
  std::unique_ptr<TlsCertificate> certificate_;
  boost::asio::io_context loop_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_{
      loop_.get_executor()};
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
  int port_ = 0;
};

TEST_F(HttpsTest, AnswersOfEverySizeComeWholeAndEndWell) {
  Start();
  // About a TLS record, asio's buffer, and many of both.
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{16383}, size_t{16384}, size_t{16385},
                             size_t{17408}, size_t{3000000}}) {
    TlsClient client(port_, Trusting());
    ASSERT_TRUE(client.connected());
    std::string body(bytes, '\0');
    for (size_t i = 0; i < bytes; ++i) body[i] = static_cast<char>(i * 31 + i / 251);
    const TlsClient::Answer answer = client.Ask(Request(body));
    EXPECT_THAT(answer.text.substr(0, 15), StartsWith("HTTP/1.1 200 OK"));
    EXPECT_TRUE(answer.text.size() >= bytes &&
                answer.text.compare(answer.text.size() - bytes, bytes, body) == 0)
        << bytes;
    EXPECT_TRUE(answer.ended_well) << bytes;
  }
}

TEST_F(HttpsTest, AgreesOnVersionsAndProtocols) {
  Start();
  const struct {
    int version_max;
    const char* protocols;
    const char* version;  // null: refused
    const char* protocol;
  } cases[] = {
      {TLS1_3_VERSION, "", "TLSv1.3", ""},
      {TLS1_2_VERSION, "", "TLSv1.2", ""},
      {TLS1_1_VERSION, "", nullptr, ""},
      {TLS1_3_VERSION, "\x02h2\x08http/1.1", "TLSv1.3", "http/1.1"},
      {TLS1_3_VERSION, "\x02h2", nullptr, ""},
  };
  for (const auto& c : cases) {
    ClientOptions options = Trusting();
    options.version_max = c.version_max;
    options.protocols = c.protocols;
    const TlsClient client(port_, options);
    ASSERT_EQ(client.connected(), c.version != nullptr) << c.version_max << c.protocols;
    if (c.version == nullptr) continue;
    EXPECT_EQ(client.version(), c.version);
    EXPECT_EQ(client.protocol(), c.protocol);
  }
}

TEST_F(HttpsTest, IsNotTakenForAnother) {
  Start();
  const TlsTestFiles other(2);
  EXPECT_FALSE(TlsClient(port_, {.ca = other.section().certificate}).connected());
}

TEST_F(HttpsTest, WantsACertificateOfTheClientWhenThereIsAClientCa) {
  const TlsTestFiles friendly(7), stranger(8);
  Start({}, friendly.section().certificate);
  ClientOptions options = Trusting();
  // In TLS 1.3 the client is done before the server has looked: the answer tells.
  EXPECT_EQ(TlsClient(port_, options).Ask(Request("x")).text, "");
  options.shows = stranger.section();
  EXPECT_EQ(TlsClient(port_, options).Ask(Request("x")).text, "");
  options.shows = friendly.section();
  EXPECT_THAT(TlsClient(port_, options).Ask(Request("x")).text, HasSubstr("200 OK"));
}

TEST_F(HttpsTest, TellsPlainClientsAndSurvivesGarbage) {
  Start();
  HttpTestClient plain(port_);
  plain.Get("/health");
  const auto response = plain.Read();
  EXPECT_EQ(response.status, 400);
  EXPECT_THAT(response.body, HasSubstr("HTTPS"));
  EXPECT_EQ(plain.ReadAll(), "");  // and it is over
  for (const std::string& garbage :
       {std::string("\0\0\0\0\0\0", 6),
        std::string("\x16\x03\x01\xff\xff", 5) + std::string(70000, 'x'),
        std::string("SSH-2.0-x\r\n")}) {
    HttpTestClient client(port_);
    client.Send(garbage);
    client.ReadAll();  // an alert, or nothing
  }
  TlsClient client(port_, Trusting());
  EXPECT_THAT(client.Ask(Request("x")).text, HasSubstr("200 OK"));
}

TEST_F(HttpsTest, NewConnectionsGetTheNewCertificate) {
  Start();
  TlsClient before(port_, Trusting());
  ASSERT_TRUE(before.connected());
  const TlsTestFiles next(2);
  ReplaceFile(next.section().certificate, files_.section().certificate);
  ReplaceFile(next.section().key, files_.section().key);
  OnLoop([&] { certificate_->Refresh(); });
  TlsClient after(port_, {.ca = next.section().certificate});
  ASSERT_TRUE(after.connected());
  EXPECT_EQ(after.serial(), 2);
  EXPECT_EQ(before.serial(), 1);
  EXPECT_THAT(before.Ask(Request("x")).text, HasSubstr("200 OK"));
}

TEST_F(HttpsTest, CutsOffHandshakesThatDoNotEnd) {
  Start({.handshake_timeout = absl::Milliseconds(50)});
  HttpTestClient silent(port_);
  HttpTestClient begun(port_);
  begun.Send("\x16\x03\x01");
  EXPECT_EQ(silent.ReadAll(), "");
  EXPECT_EQ(begun.ReadAll(), "");
  WaitForConnections(0);
}

TEST_F(HttpsTest, SilentConnectionsDoNotKeepOthersOut) {
  Start({.handshakes_max = 2});
  HttpTestClient first(port_), second(port_), third(port_);
  EXPECT_EQ(first.ReadAll(), "");
  TlsClient client(port_, Trusting());  // takes the place of the second
  EXPECT_EQ(second.ReadAll(), "");
  EXPECT_THAT(client.Ask(Request("x")).text, HasSubstr("200 OK"));
}

}  // namespace
}  // namespace sluice::router
