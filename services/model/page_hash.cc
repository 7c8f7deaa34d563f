#include "services/model/page_hash.h"

#include <openssl/evp.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "services/base/mapped_file.h"
#include "services/model/checkpoint.h"

namespace sluice::model {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tokens are hashed as they lie in memory, which must be little endian");

absl::string_view BytesOf(const PageHash& hash) {
  return {reinterpret_cast<const char*>(hash.data()), hash.size()};
}

void Check(int ok, const char* call) {
  if (ok != 1) ABSL_RAW_LOG(FATAL, "%s failed: libcrypto has no memory or no SHA-256", call);
}

}  // namespace

// One context of libcrypto, used again and again.
class PageHasher::Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new()) {
    Check(context_ != nullptr, "EVP_MD_CTX_new");
    Check(EVP_DigestInit_ex(context_, EVP_sha256(), nullptr), "EVP_DigestInit_ex");
  }
  ~Sha256() { EVP_MD_CTX_free(context_); }
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  Sha256& Add(absl::string_view bytes) {
    Check(EVP_DigestUpdate(context_, bytes.data(), bytes.size()), "EVP_DigestUpdate");
    return *this;
  }

  // The first 16 bytes of the digest; starts the next one.
  PageHash Finish() {
    std::array<uint8_t, EVP_MAX_MD_SIZE> digest;
    Check(EVP_DigestFinal_ex(context_, digest.data(), nullptr), "EVP_DigestFinal_ex");
    Check(EVP_DigestInit_ex(context_, nullptr, nullptr), "EVP_DigestInit_ex");
    PageHash hash;
    std::copy_n(digest.begin(), hash.size(), hash.begin());
    return hash;
  }

 private:
  EVP_MD_CTX* const context_;
};

PageHasher::PageHasher() : sha256_(std::make_unique<Sha256>()) {}
PageHasher::~PageHasher() = default;
PageHasher::PageHasher(PageHasher&&) noexcept = default;
PageHasher& PageHasher::operator=(PageHasher&&) noexcept = default;

PageHash PageHasher::Root(const PageHash& model_hash, const PageHash& kv_layout_hash,
                          absl::string_view salt) {
  return sha256_->Add(BytesOf(model_hash)).Add(BytesOf(kv_layout_hash)).Add(salt).Finish();
}

PageHash PageHasher::Next(const PageHash& previous, absl::Span<const int32_t> page) {
  if (page.size() != kHashPageTokens) {
    ABSL_RAW_LOG(FATAL, "a page of %zu tokens has no hash", page.size());
  }
  const absl::string_view tokens(reinterpret_cast<const char*>(page.data()),
                                 page.size() * sizeof(int32_t));
  return sha256_->Add(BytesOf(previous)).Add(tokens).Finish();
}

void PageHasher::Extend(const PageHash& root, absl::Span<const int32_t> tokens,
                        std::vector<PageHash>* hashes) {
  const size_t pages = tokens.size() / kHashPageTokens;
  for (size_t i = hashes->size(); i < pages; ++i) {
    const PageHash& previous = i == 0 ? root : hashes->back();
    hashes->push_back(Next(previous, tokens.subspan(i * kHashPageTokens, kHashPageTokens)));
  }
}

absl::StatusOr<PageHash> ModelHash(const std::string& dir) {
  PageHasher::Sha256 sha256;
  for (const char* name : {"config.json", "tokenizer.json", "tokenizer_config.json"}) {
    const auto file = MappedFile::Open(absl::StrCat(dir, "/", name));
    if (!file.ok()) {
      if (!absl::IsNotFound(file.status()) || absl::string_view(name) == "config.json") {
        return file.status();
      }
      sha256.Add(absl::StrCat("no ", name, "\n"));
      continue;
    }
    sha256.Add(absl::StrCat(name, " ", (*file)->bytes().size(), "\n")).Add((*file)->bytes());
  }
  const absl::StatusOr<Checkpoint> checkpoint = Checkpoint::Open(dir);
  if (absl::IsNotFound(checkpoint.status()) &&
      !std::filesystem::exists(dir + "/model.safetensors.index.json")) {
    return sha256.Add("no safetensors\n").Finish();
  }
  SLUICE_RETURN_IF_ERROR(checkpoint.status());
  for (const std::shared_ptr<const MappedFile>& file : checkpoint->files()) {
    const std::string name = std::filesystem::path(file->path()).filename();
    // Checkpoint::Open found the header whole: 8 bytes of length, then so many of JSON.
    uint64_t header = 0;
    std::copy_n(file->bytes().data(), sizeof(header), reinterpret_cast<char*>(&header));
    sha256.Add(absl::StrCat(name, " ", file->bytes().size(), " ", header, "\n"))
        .Add(file->bytes().substr(sizeof(header), header));
  }
  return sha256.Finish();
}

PageHash KvLayoutHash(const ModelConfig& config, DType kv_dtype) {
  PageHasher::Sha256 sha256;
  return sha256
      .Add(absl::StrCat("MLA latent KV, ", DTypeName(kv_dtype), ", latent ", config.kv_lora_rank,
                        ", rope ", config.qk_rope_head_dim, ", page tokens ", kHashPageTokens,
                        ", layers ", config.num_hidden_layers))
      .Finish();
}

}  // namespace sluice::model
