// What HTTPS serves with, from PEM files that may be replaced while it runs.
//
// TLS 1.2 and 1.3; of the protocols that clients offer (ALPN) http/1.1.
// Threads: one at a time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "services/base/cluster_config.h"

struct ssl_st;      // OpenSSL's SSL
struct ssl_ctx_st;  // and SSL_CTX

namespace sluice::router {

class TlsCertificate {
 public:
  // Errors name the key of the cluster file, the file, and what is wrong with it. A certificate
  // that is not valid yet or any more is served with and warned about. REQUIRES: files.enabled().
  static absl::StatusOr<std::unique_ptr<TlsCertificate>> Load(const TlsSection& files);

  // Reads the files again if they have changed. What is wrong with them is logged, and those
  // before stay in use.
  void Refresh();

  // For one connection of a client. The caller takes it over; it outlives this.
  ssl_st* NewSession() const;

 private:
  // Changes when a file is written or another put in its place.
  struct Version {
    uint64_t inode = 0;
    int64_t bytes = -1;
    int64_t seconds = 0, nanoseconds = 0;
    bool operator==(const Version&) const = default;
  };
  using Versions = std::array<Version, 3>;

  explicit TlsCertificate(const TlsSection& files) : files_(files) {}
  Versions CurrentVersions() const;
  absl::Status Read();

  const TlsSection files_;
  Versions versions_;  // of what was read last, well or not
  std::shared_ptr<ssl_ctx_st> context_;
};

}  // namespace sluice::router
