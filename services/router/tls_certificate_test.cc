#include "services/router/tls_certificate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "services/base/tls_test_files.h"

namespace sluice::router {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// The serial number of the certificate that a client would be shown.
int64_t SerialOf(const TlsCertificate& certificate) {
  const std::unique_ptr<SSL, decltype(&SSL_free)> session(certificate.NewSession(), SSL_free);
  return ASN1_INTEGER_get(X509_get0_serialNumber(SSL_get_certificate(session.get())));
}

TEST(TlsCertificate, NamesTheKeyTheFileAndWhatIsWrong) {
  const TlsTestFiles good(1), other(2);
  const std::string folder = good.folder();
  WriteText(folder + "/text.pem", "no certificate\n");
  WriteText(folder + "/cut.pem", ReadText(good.section().certificate).substr(0, 300));
  WriteText(folder + "/chain.pem", absl::StrCat(ReadText(good.section().certificate),
                                                "-----BEGIN CERTIFICATE-----\nAAAA\n"));
  WriteText(folder + "/locked.pem", EncryptedKey());
  WriteText(folder + "/long.pem", std::string((1 << 20) + 1, '#'));
  ASSERT_EQ(mkfifo((folder + "/pipe").c_str(), 0600), 0);
  const std::string certificate = good.section().certificate, key = good.section().key;
  const struct {
    TlsSection files;
    const char* name;
    std::string path;
    const char* what;
  } cases[] = {
      {{folder + "/none", key}, "certificate", folder + "/none", "No such file"},
      {{folder + "/text.pem", key}, "certificate", folder + "/text.pem", "no certificate in PEM"},
      {{folder + "/cut.pem", key}, "certificate", folder + "/cut.pem", "no certificate in PEM"},
      {{folder + "/chain.pem", key}, "certificate", folder + "/chain.pem", "certificate 2"},
      {{folder + "/long.pem", key}, "certificate", folder + "/long.pem", "more than 1048576 bytes"},
      {{folder, key}, "certificate", folder, "is not a file"},
      {{folder + "/pipe", key}, "certificate", folder + "/pipe", "is not a file"},
      {{certificate, folder + "/none"}, "key", folder + "/none", "No such file"},
      {{certificate, certificate}, "key", certificate, "no private key in PEM"},
      {{certificate, folder + "/locked.pem"}, "key", folder + "/locked.pem", "is encrypted"},
      {{certificate, other.section().key}, "key", other.section().key, "is not the key of"},
      {{certificate, key, folder + "/none"}, "client_ca", folder + "/none", "No such file"},
      {{certificate, key, key}, "client_ca", key, "no certificate in PEM"},
  };
  for (const auto& c : cases) {
    const auto loaded = TlsCertificate::Load(c.files);
    ASSERT_FALSE(loaded.ok()) << c.path;
    EXPECT_THAT(std::string(loaded.status().message()),
                AllOf(HasSubstr(absl::StrCat("router.tls.", c.name, ": ", c.path, ": ")),
                      HasSubstr(c.what)));
  }
}

TEST(TlsCertificate, ServesWithAnExpiredOne) {
  const TlsTestFiles expired(1, /*days=*/-1);
  EXPECT_TRUE(TlsCertificate::Load(expired.section()).ok());
}

TEST(TlsCertificate, TakesNewFilesAndKeepsOldOnesWhenTheNewAreWrong) {
  TlsTestFiles files(1);
  const auto certificate = TlsCertificate::Load(files.section());
  ASSERT_TRUE(certificate.ok()) << certificate.status();
  EXPECT_EQ(SerialOf(**certificate), 1);
  const TlsTestFiles next(2);
  // One after the other, as they are replaced: in between they do not match.
  ReplaceFile(next.section().certificate, files.section().certificate);
  (*certificate)->Refresh();
  EXPECT_EQ(SerialOf(**certificate), 1);
  ReplaceFile(next.section().key, files.section().key);
  (*certificate)->Refresh();
  EXPECT_EQ(SerialOf(**certificate), 2);
  std::filesystem::remove(files.section().key);
  (*certificate)->Refresh();
  EXPECT_EQ(SerialOf(**certificate), 2);
}

}  // namespace
}  // namespace sluice::router
