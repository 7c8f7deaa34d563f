// A whole file mapped read-only into memory.
//
// Threads: immutable; share freely. The mapping lives as long as the object. A file that is
// truncated while mapped makes reads beyond its new end fault, as mmap does.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sluice {

class MappedFile {
 public:
  // NotFound or Unavailable, naming the path and the reason. An empty file maps to no bytes.
  static absl::StatusOr<std::shared_ptr<const MappedFile>> Open(const std::string& path);

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::string& path() const { return path_; }
  int fd() const { return fd_; }  // open for reading while the object lives

  // Bytes [begin, begin + size) to `to`, by way of the page cache and not of the mapping: many
  // times faster than to touch a cold mapping, or one that is touched for the first time.
  // Unavailable, naming path and offset, when the disk cannot deliver them or the file has become
  // shorter.
  absl::Status Read(size_t begin, size_t size, char* to) const;
  absl::string_view bytes() const { return {data_, size_}; }

  // Reads the pages of [offset, offset + size) into memory now, so that later accesses do not wait
  // for the disk. Unavailable, naming the path, when the disk cannot deliver them.
  absl::Status PageIn(size_t offset, size_t size) const;

 private:
  MappedFile(std::string path, int fd, const char* data, size_t size)
      : path_(std::move(path)), fd_(fd), data_(data), size_(size) {}

  std::string path_;
  int fd_;
  const char* data_;
  size_t size_;
};

// The whole of a small file. NotFound or Unavailable as above; InvalidArgument when it is longer
// than max_bytes.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes);

// Replaces the file's contents through a temporary file beside it, so that a reader sees either the
// old or the new text.
absl::Status WriteFile(const std::string& path, absl::string_view text);

}  // namespace sluice
