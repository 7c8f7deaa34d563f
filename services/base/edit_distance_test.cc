#include "services/base/edit_distance.h"

#include <gtest/gtest.h>

namespace sluice {
namespace {

TEST(EditDistanceTest, Counts) {
  const struct {
    const char *a, *b;
    size_t wanted;
  } cases[] = {
      {"", "", 0},
      {"", "abc", 3},
      {"abc", "abc", 0},
      {"abc", "abd", 1},
      {"abc", "ab", 1},
      {"abc", "xabc", 1},
      {"ab", "ba", 1},
      {"threads", "htreads", 1},
      {"kitten", "sitting", 3},
      {"slots", "port", 4},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(EditDistance(c.a, c.b), c.wanted) << c.a << " " << c.b;
    EXPECT_EQ(EditDistance(c.b, c.a), c.wanted) << c.b << " " << c.a;
  }
}

TEST(NearestWordTest, OnlyWhatIsNear) {
  const std::vector<std::string> known = {"count", "threads", "slots", "kv_memory", "kv_pages"};
  EXPECT_EQ(NearestWord("thread", known), "threads");
  EXPECT_EQ(NearestWord("kv_page", known), "kv_pages");
  EXPECT_EQ(NearestWord("kv_mem", known), "kv_memory");
  EXPECT_EQ(NearestWord("gpu_layers", known), "");
  EXPECT_EQ(NearestWord("", known), "");
  EXPECT_EQ(NearestWord(std::string(100000, 'x'), known), "");
}

}  // namespace
}  // namespace sluice
