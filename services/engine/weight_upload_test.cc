#include "services/engine/weight_upload.h"

#include <unistd.h>

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/engine/fake_backend.h"

namespace sluice::engine {
namespace {

constexpr size_t kMiB = 1 << 20;

std::string Numbers(size_t bytes, uint32_t seed) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>((i + seed) * 2654435761u >> 15);
  return text;
}

std::shared_ptr<const MappedFile> MakeFile(const std::string& name, size_t bytes) {
  const std::string path = testing::TempDir() + "/upload_" + name;
  EXPECT_TRUE(WriteFile(path, Numbers(bytes, static_cast<uint32_t>(bytes))).ok());
  auto file = MappedFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  return *file;
}

// Parts of files and of memory, with and without gaps, short and longer than a buffer; each lands
// where it should, and nothing else is written.
TEST(WeightUploadTest, EveryPartLandsInItsPlace) {
  const auto a = MakeFile("a", 11 * kMiB + 17), b = MakeFile("b", 300000);
  const std::string memory = Numbers(5 * kMiB, 3);
  struct Part {
    const char* from;
    int64_t rows;
    size_t row_bytes, stride_bytes;
  };
  const char* const in_a = a->bytes().data();
  const char* const in_b = b->bytes().data();
  const Part parts[] = {
      {in_a + 1, 1, 1, 1},                         // a single byte
      {in_a + 5000, 10, 100, 100},                 // close by: one read
      {in_a + 200000, 1, 9 * kMiB, 9 * kMiB},      // longer than a buffer, begins anywhere
      {in_a + 11 * kMiB, 1, 17, 17},               // to the end of the file
      {in_b, 1, 300000, 300000},                   // all of a file
      {in_b + 7, 100, 33, 2000},                   // columns of a wider matrix
      {in_a + 3, 2, 5 * kMiB, 6 * kMiB},           // each longer than a buffer
      {memory.data() + 3, 1, 4 * kMiB, 4 * kMiB},  // plain memory
      {memory.data() + 9, 1000, 5000, 5001},
      {memory.data(), 0, 5, 5},
  };
  for (const int threads : {1, 3, 40}) {
    FakeBackend backend;
    WeightUpload upload(&backend, {b, a});
    constexpr size_t kGuard = 64;
    std::vector<std::string> out;
    for (const Part& part : parts) {
      out.emplace_back(static_cast<size_t>(part.rows) * part.row_bytes + 2 * kGuard, '\xa5');
    }
    for (size_t i = 0; i < out.size(); ++i) {
      upload.Add(parts[i].from, parts[i].rows, parts[i].row_bytes, parts[i].stride_bytes,
                 out[i].data() + kGuard);
    }
    int64_t told = -1;
    ASSERT_TRUE(upload
                    .Run(threads, {.tell = [&](const std::string&, int64_t percent,
                                               int64_t) { told = percent; }})
                    .ok());
    EXPECT_EQ(told, 100);
    for (size_t i = 0; i < out.size(); ++i) {
      std::string want(kGuard, '\xa5');
      for (int64_t row = 0; row < parts[i].rows; ++row) {
        want.append(parts[i].from + static_cast<size_t>(row) * parts[i].stride_bytes,
                    parts[i].row_bytes);
      }
      want.append(kGuard, '\xa5');
      EXPECT_TRUE(out[i] == want) << "part " << i << ", " << threads << " threads";
    }
  }
}

TEST(WeightUploadTest, NothingToDoIsWellDone) {
  FakeBackend backend;
  EXPECT_TRUE(WeightUpload(&backend, {}).Run(0, {}).ok());
}

TEST(WeightUploadTest, SaysWhatTheDiskCannotDeliver) {
  for (const size_t stride : {size_t{1000}, size_t{3000}}) {
    SCOPED_TRACE(stride);
    const auto file = MakeFile("cut", 9 * kMiB);
    FakeBackend backend;
    WeightUpload upload(&backend, {file});
    const auto rows = static_cast<int64_t>(9 * kMiB / stride);
    std::string out(static_cast<size_t>(rows) * 1000, '\0');
    upload.Add(file->bytes().data(), rows, 1000, stride, out.data());
    ASSERT_EQ(truncate(file->path().c_str(), 5 * kMiB), 0);
    const absl::Status status = upload.Run(2, {});
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(file->path()));
  }
}

TEST(WeightUploadTest, SaysWhenThereIsNoPinnedMemory) {
  FakeBackend backend;
  backend.FailAllocation("buffers to load weights");
  EXPECT_EQ(WeightUpload(&backend, {}).Run(2, {}).code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace sluice::engine
