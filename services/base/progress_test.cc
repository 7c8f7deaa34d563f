#include "services/base/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "services/base/parallel.h"

namespace sluice {
namespace {

std::string Contents(std::FILE* file) {
  std::string text(static_cast<size_t>(std::ftell(file)), '\0');
  std::rewind(file);
  text.resize(std::fread(text.data(), 1, text.size(), file));
  return text;
}

TEST(ProgressTest, AFastRunIsOneLine) {
  std::FILE* out = std::tmpfile();
  {
    Progress progress("loading", 1000 << 10, {.file = out});
    ASSERT_TRUE(ParallelFor(1000, 4, [&](int64_t) {
                  progress.Add(1 << 10);
                  return absl::OkStatus();
                }).ok());
  }
  EXPECT_EQ(Contents(out), "loading: 100 % of 1000.0 KiB\n");
  std::fclose(out);
}

TEST(ProgressTest, EveryTotalEndsAtAHundredPercent) {
  for (int64_t total = 1; total < 16 << 20; total = total * 5 / 4 + 1) {
    std::FILE* out = std::tmpfile();
    { Progress("loading", total, {.file = out}).Add(total); }
    EXPECT_EQ(Contents(out), "loading: 100 % of " + HumanBytes(total) + "\n");
    std::fclose(out);
  }
}

TEST(ProgressTest, AFunctionIsToldOfTheEndOnce) {
  int calls = 0;
  {
    Progress progress("loading", 100,
                      {.tell = [&](const std::string& label, int64_t percent, int64_t total) {
                        ++calls;
                        EXPECT_EQ(label, "loading");
                        EXPECT_EQ(percent, 100);
                        EXPECT_EQ(total, 100);
                      }});
    for (int i = 0; i < 100; ++i) progress.Add(1);
  }
  EXPECT_EQ(calls, 1);
}

TEST(ProgressTest, NothingToDoAndNowhereToShowIt) {
  Progress progress("loading", 0, {});
  progress.Add(0);
  progress.Add(10);
}

TEST(HumanBytesTest, PicksTheUnit) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1024), "1.0 KiB");
  EXPECT_EQ(HumanBytes(688574839360), "641.3 GiB");
}

}  // namespace
}  // namespace sluice
