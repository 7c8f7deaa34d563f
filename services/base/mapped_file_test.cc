#include "services/base/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

namespace sluice {
namespace {

using ::testing::HasSubstr;

std::string TempPath(const std::string& name) { return testing::TempDir() + "/mapped_" + name; }

TEST(MappedFileTest, MapsWhatWasWritten) {
  const std::string path = TempPath("three_pages");
  const std::string text(3 * 4096 + 5, 'x');
  ASSERT_TRUE(WriteFile(path, text).ok());
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->bytes(), text);
  EXPECT_EQ((*file)->path(), path);
  EXPECT_TRUE((*file)->PageIn(4097, 2).ok());
  EXPECT_TRUE((*file)->PageIn(0, text.size()).ok());
  EXPECT_TRUE((*file)->PageIn(text.size() + 9000, 1).ok());
}

TEST(MappedFileTest, ReadsPartsPastTheMapping) {
  const std::string path = TempPath("parts");
  std::string text(3 * 4096 + 5, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 2654435761u >> 13);
  ASSERT_TRUE(WriteFile(path, text).ok());
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  struct Case {
    size_t begin, size;
  };
  for (const Case& c : {Case{0, 0}, Case{0, 1}, Case{4095, 2}, Case{1, 3 * 4096 + 4},
                        Case{0, 3 * 4096 + 5}, Case{3 * 4096 + 4, 1}}) {
    std::string to(c.size + 1, 'x');
    ASSERT_TRUE((*file)->Read(c.begin, c.size, to.data()).ok());
    EXPECT_EQ(to, text.substr(c.begin, c.size) + "x");
  }
  std::string to(4096, 'x');
  const absl::Status beyond = (*file)->Read(3 * 4096, 6, to.data());
  EXPECT_EQ(beyond.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(beyond.message(),
              HasSubstr(path + ": cannot read 1 bytes at 12293: the file has become shorter"));
}

TEST(MappedFileTest, AnEmptyFileHasNoBytes) {
  const std::string path = TempPath("empty");
  ASSERT_TRUE(WriteFile(path, "").ok());
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->bytes().empty());
  EXPECT_TRUE((*file)->PageIn(0, 1).ok());
}

TEST(MappedFileTest, ErrorsNameThePath) {
  const auto absent = MappedFile::Open(TempPath("absent"));
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(absent.status().message(), HasSubstr(TempPath("absent")));
  const auto directory = MappedFile::Open(testing::TempDir());
  EXPECT_EQ(directory.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(directory.status().message(), HasSubstr("not a regular file"));
}

TEST(ReadFileTest, RefusesMoreThanItsLimit) {
  const std::string path = TempPath("limit");
  ASSERT_TRUE(WriteFile(path, "12345").ok());
  EXPECT_EQ(*ReadFile(path, 5), "12345");
  EXPECT_THAT(ReadFile(path, 4).status().message(), HasSubstr("5 bytes long, at most 4"));
}

TEST(WriteFileTest, LeavesNoTemporaryFile) {
  const std::string path = TempPath("write");
  ASSERT_TRUE(WriteFile(path, "old").ok());
  ASSERT_TRUE(WriteFile(path, "new").ok());
  EXPECT_EQ(*ReadFile(path, 100), "new");
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
  EXPECT_FALSE(WriteFile(TempPath("no/such/folder"), "x").ok());
}

}  // namespace
}  // namespace sluice
