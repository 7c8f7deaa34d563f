// For tests: a client that blocks, on a plain socket.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace sluice::router {

class HttpTestClient {
 public:
  explicit HttpTestClient(int port, int receive_buffer = 0) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval timeout{.tv_sec = 20, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
    if (receive_buffer > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~HttpTestClient() { Close(); }
  HttpTestClient(const HttpTestClient&) = delete;
  HttpTestClient& operator=(const HttpTestClient&) = delete;

  int fd() const { return fd_; }
  // Something has come that was not read.
  bool HasInput() const {
    char byte = 0;
    return recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
  }
  void EndSending() { shutdown(fd_, SHUT_WR); }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

  void Send(absl::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }
  void Get(absl::string_view path, absl::string_view headers = "") {
    Send(absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: x\r\n", headers, "\r\n"));
  }
  void Post(absl::string_view path, absl::string_view body, absl::string_view headers = "") {
    Send(absl::StrCat("POST ", path, " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n",
                      headers, "Content-Length: ", body.size(), "\r\n\r\n", body));
  }

  // What came up to and with `end`; less when the connection ended before.
  std::string ReadUntil(absl::string_view end) {
    while (true) {
      if (const size_t at = input_.find(end.data(), 0, end.size()); at != std::string::npos) {
        return Take(at + end.size());
      }
      if (!Receive()) return Take(input_.size());
    }
  }
  std::string ReadAll() {
    while (Receive()) {
    }
    return Take(input_.size());
  }

  struct Response {
    int status = 0;
    std::string head;
    std::string body;
  };
  // One with a Content-Length, or to a HEAD request.
  Response Read(bool is_head = false) {
    Response response;
    response.head = ReadUntil("\r\n\r\n");
    if (response.head.size() > 12) response.status = std::atoi(response.head.c_str() + 9);
    const size_t at = response.head.find("Content-Length: ");
    if (is_head || at == std::string::npos) return response;
    const size_t length = static_cast<size_t>(std::atol(response.head.c_str() + at + 16));
    while (input_.size() < length && Receive()) {
    }
    response.body = Take(std::min(length, input_.size()));
    return response;
  }

 private:
  bool Receive() {
    char buffer[4096];
    const ssize_t count = recv(fd_, buffer, sizeof(buffer), 0);
    if (count > 0) input_.append(buffer, static_cast<size_t>(count));
    return count > 0;
  }
  std::string Take(size_t count) {
    std::string taken = input_.substr(0, count);
    input_.erase(0, count);
    return taken;
  }

  int fd_;
  std::string input_;
};

}  // namespace sluice::router
