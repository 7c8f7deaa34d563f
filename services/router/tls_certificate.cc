#include "services/router/tls_certificate.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/base/status.h"
#include "services/base/log.h"

namespace sluice::router {
namespace {

constexpr size_t kFileBytesMax = size_t{1} << 20;
constexpr absl::string_view kProtocol("\x08http/1.1", 9);
// Sessions that were resumed with another configuration are not taken.
constexpr unsigned char kSessionContext[] = "sluice-router";

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
using Bio = std::unique_ptr<BIO, Free>;
using Certificate = std::unique_ptr<X509, Free>;
using Key = std::unique_ptr<EVP_PKEY, Free>;

// One of the files.
struct Pem {
  const char* name;  // of its key in the cluster file
  const std::string& path;

  absl::Status Wrong(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("router.tls.", name, ": ", path, ": ", what));
  }
  // With the reason that OpenSSL gave last.
  absl::Status WrongBySsl(absl::string_view what) const {
    const char* reason = ERR_reason_error_string(ERR_peek_last_error());
    ERR_clear_error();
    return Wrong(reason == nullptr ? std::string(what) : absl::StrCat(what, " (", reason, ")"));
  }
  absl::StatusOr<std::string> Read() const {
    // To open a pipe would wait for whoever writes into it, and with it all that the router does.
    struct stat status {};
    if (stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) return Wrong("is not a file");
    // Not mapped: whoever writes it anew may shorten it while it is read.
    std::ifstream file(path, std::ios::binary);
    std::string text(kFileBytesMax + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    if (file.bad() || !file.is_open())
      return Wrong(absl::StrCat("cannot be read: ", std::strerror(errno)));
    text.resize(static_cast<size_t>(file.gcount()));
    if (text.size() > kFileBytesMax) {
      return Wrong(absl::StrCat("has more than ", kFileBytesMax, " bytes"));
    }
    return text;
  }
};

Bio BioOf(const std::string& text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

absl::StatusOr<std::vector<Certificate>> ReadCertificates(const Pem& file) {
  SLUICE_ASSIGN_OR_RETURN(const std::string text, file.Read());
  const Bio bio = BioOf(text);
  std::vector<Certificate> all;
  while (X509* next = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    all.emplace_back(next);
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  if (all.empty()) return file.WrongBySsl("holds no certificate in PEM form");
  if (!at_end) {
    return file.WrongBySsl(absl::StrCat("certificate ", all.size() + 1, " cannot be read"));
  }
  ERR_clear_error();
  return all;
}

absl::StatusOr<Key> ReadKey(const Pem& file) {
  SLUICE_ASSIGN_OR_RETURN(const std::string text, file.Read());
  const Bio bio = BioOf(text);
  bool asked = false;
  const auto no_passphrase = [](char*, int, int, void* was_asked) {
    *static_cast<bool*>(was_asked) = true;
    return -1;
  };
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, &asked));
  if (asked) return file.Wrong("is encrypted; wanted a private key without a passphrase");
  if (key == nullptr) return file.WrongBySsl("holds no private key in PEM form");
  return key;
}

absl::Time ToTime(const ASN1_TIME* time) {
  std::tm broken_down{};
  ASN1_TIME_to_tm(time, &broken_down);
  return absl::FromTM(broken_down, absl::UTCTimeZone());
}

void WarnOfDates(const Pem& file, const X509* certificate) {
  const absl::Time from = ToTime(X509_get0_notBefore(certificate));
  const absl::Time until = ToTime(X509_get0_notAfter(certificate));
  const absl::Time now = absl::Now();
  if (now >= from && now <= until) return;
  LogWarn(now < from ? "the certificate is not valid yet" : "the certificate has expired",
          {{"file", file.path},
           {"from", absl::FormatTime(absl::RFC3339_sec, from, absl::UTCTimeZone())},
           {"until", absl::FormatTime(absl::RFC3339_sec, until, absl::UTCTimeZone())}});
}

int ChooseProtocol(SSL*, const unsigned char** out, unsigned char* out_bytes,
                   const unsigned char* offered, unsigned int offered_bytes, void*) {
  unsigned char* chosen = nullptr;
  const int result = SSL_select_next_proto(
      &chosen, out_bytes, reinterpret_cast<const unsigned char*>(&kProtocol[0]),
      static_cast<unsigned int>(kProtocol.size()), offered, offered_bytes);
  *out = chosen;
  return result == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

absl::Status UseClientCa(const Pem& file, SSL_CTX* context) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<Certificate> all, ReadCertificates(file));
  X509_STORE* const store = SSL_CTX_get_cert_store(context);
  for (const Certificate& ca : all) {
    // Of the names that clients are told, so that they know which certificate to show.
    if (X509_STORE_add_cert(store, ca.get()) != 1 ||
        SSL_CTX_add_client_CA(context, ca.get()) != 1) {
      return file.WrongBySsl("cannot be used");
    }
  }
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<SSL_CTX>> MakeContext(const TlsSection& files) {
  const Pem certificate_file{"certificate", files.certificate};
  const Pem key_file{"key", files.key};
  SLUICE_ASSIGN_OR_RETURN(const std::vector<Certificate> chain, ReadCertificates(certificate_file));
  SLUICE_ASSIGN_OR_RETURN(const Key key, ReadKey(key_file));
  if (X509_check_private_key(chain.front().get(), key.get()) != 1) {
    ERR_clear_error();
    return key_file.Wrong(
        absl::StrCat("is not the key of the first certificate in ", files.certificate));
  }
  const std::shared_ptr<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr) return absl::InternalError("OpenSSL has no TLS");
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                         SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_session_id_context(context.get(), kSessionContext, sizeof(kSessionContext) - 1);
  SSL_CTX_set_alpn_select_cb(context.get(), ChooseProtocol, nullptr);
  if (SSL_CTX_use_certificate(context.get(), chain.front().get()) != 1) {
    return certificate_file.WrongBySsl("cannot be used");
  }
  for (size_t i = 1; i < chain.size(); ++i) {
    if (SSL_CTX_add1_chain_cert(context.get(), chain[i].get()) != 1) {
      return certificate_file.WrongBySsl("cannot be used");
    }
  }
  if (SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1) {
    return key_file.WrongBySsl("cannot be used");
  }
  if (!files.client_ca.empty()) {
    SLUICE_RETURN_IF_ERROR(UseClientCa({"client_ca", files.client_ca}, context.get()));
  }
  WarnOfDates(certificate_file, chain.front().get());
  return context;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TlsCertificate>> TlsCertificate::Load(const TlsSection& files) {
  auto certificate = absl::WrapUnique(new TlsCertificate(files));
  SLUICE_RETURN_IF_ERROR(certificate->Read());
  return certificate;
}

TlsCertificate::Versions TlsCertificate::CurrentVersions() const {
  Versions versions;
  const std::string* paths[] = {&files_.certificate, &files_.key, &files_.client_ca};
  for (size_t i = 0; i < versions.size(); ++i) {
    struct stat status {};
    if (paths[i]->empty() || stat(paths[i]->c_str(), &status) != 0) continue;
    versions[i] = {.inode = status.st_ino,
                   .bytes = status.st_size,
                   .seconds = status.st_mtim.tv_sec,
                   .nanoseconds = status.st_mtim.tv_nsec};
  }
  return versions;
}

absl::Status TlsCertificate::Read() {
  versions_ = CurrentVersions();  // before it is read: what is written meanwhile is read again
  SLUICE_ASSIGN_OR_RETURN(context_, MakeContext(files_));
  return absl::OkStatus();
}

void TlsCertificate::Refresh() {
  if (CurrentVersions() == versions_) return;
  const absl::Status status = Read();
  if (status.ok()) {
    LogInfo("TLS files read again", {{"certificate", files_.certificate}});
  } else {
    LogWarn("TLS files changed and cannot be used; those before stay in use",
            {{"error", status.message()}});
  }
}

ssl_st* TlsCertificate::NewSession() const { return SSL_new(context_.get()); }

}  // namespace sluice::router
