#include "services/router/api_keys.h"

#include <gtest/gtest.h>

namespace sluice::router {
namespace {

constexpr char kSecret[] = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
constexpr char kEmpty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

TEST(ApiKeys, KnowsTheKeyByItsHash) {
  const auto keys = ApiKeys::Create(
      {{.name = "other", .sha256 = std::string(64, '0')}, {.name = "team", .sha256 = kSecret}});
  ASSERT_TRUE(keys.ok()) << keys.status();
  for (const char* header : {"Bearer secret", "bearer secret", "Bearer   secret "}) {
    const auto name = keys->Authenticate(header);
    ASSERT_TRUE(name.ok()) << header;
    EXPECT_EQ(*name, "team");
  }
  for (const char* header :
       {"", "secret", "Bearer", "Bearer ", "Bearer Secret", "Basic secret", "Bearer secrets"}) {
    EXPECT_EQ(keys->Authenticate(header).status().code(), absl::StatusCode::kUnauthenticated)
        << header;
  }
}

TEST(ApiKeys, WithoutKeysEverybodyMayAsk) {
  const auto keys = ApiKeys::Create({});
  ASSERT_TRUE(keys.ok());
  EXPECT_FALSE(keys->required());
  EXPECT_EQ(*keys->Authenticate(""), "");
}

TEST(ApiKeys, RefusesWhatIsNoHash) {
  for (const std::string& sha256 :
       {std::string(), std::string("secret"), std::string(63, 'a'), std::string(64, 'g')}) {
    EXPECT_EQ(ApiKeys::Create({{.name = "team", .sha256 = sha256}}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << sha256;
  }
}

TEST(ApiKeys, TheEmptyKeyIsNoKey) {
  EXPECT_FALSE(ApiKeys::Create({{.name = "team", .sha256 = kEmpty}}).ok());
}

}  // namespace
}  // namespace sluice::router
