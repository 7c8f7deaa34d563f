#include "services/base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice {
namespace {

absl::Status FileError(const std::string& path, absl::string_view what, int error) {
  const std::string message = absl::StrCat(path, ": ", what, ": ", strerror(error));
  return error == ENOENT || error == ENOTDIR ? absl::NotFoundError(message)
                                             : absl::UnavailableError(message);
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MappedFile>> MappedFile::Open(const std::string& path) {
  // Non-blocking, or a pipe in place of the file would be waited for.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return FileError(path, "cannot open", errno);
  absl::Cleanup close_fd = [fd] { close(fd); };
  struct stat info;
  if (fstat(fd, &info) != 0) return FileError(path, "cannot stat", errno);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file"));
  }
  const size_t size = static_cast<size_t>(info.st_size);
  void* data = nullptr;
  if (size > 0) {
    data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) return FileError(path, "cannot map", errno);
  }
  std::move(close_fd).Cancel();
  return std::shared_ptr<const MappedFile>(
      new MappedFile(path, fd, static_cast<const char*>(data), size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<char*>(data_), size_);
  close(fd_);
}

absl::Status MappedFile::PageIn(size_t offset, size_t size) const {
  static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  if (offset >= size_ || size == 0) return absl::OkStatus();
  const size_t begin = offset / page * page;
  const size_t end = std::min(offset + size, size_);
  char* start = const_cast<char*>(data_) + begin;
  if (madvise(start, end - begin, MADV_POPULATE_READ) == 0) return absl::OkStatus();
  if (errno != EINVAL && errno != ENOSYS) {
    return FileError(path_, absl::StrCat("cannot read ", end - begin, " bytes at ", begin), errno);
  }
  // A kernel before 5.14: fault the pages in one by one.
  madvise(start, end - begin, MADV_WILLNEED);
  for (size_t at = begin; at < end; at += page) {
    static_cast<void>(*static_cast<const volatile char*>(data_ + at));
  }
  return absl::OkStatus();
}

absl::Status MappedFile::Read(size_t begin, size_t size, char* to) const {
  for (size_t done = 0; done < size;) {
    const ssize_t got = pread(fd_, to + done, size - done, static_cast<off_t>(begin + done));
    if (got > 0) {
      done += static_cast<size_t>(got);
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    const std::string what = absl::StrCat("cannot read ", size - done, " bytes at ", begin + done);
    if (got < 0) return FileError(path_, what, errno);
    return absl::UnavailableError(absl::StrCat(path_, ": ", what, ": the file has become shorter"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes) {
  SLUICE_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> file, MappedFile::Open(path));
  if (file->bytes().size() > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": is ", file->bytes().size(), " bytes long, at most ", max_bytes, " are allowed"));
  }
  return std::string(file->bytes());
}

absl::Status WriteFile(const std::string& path, absl::string_view text) {
  const std::string partial = path + ".partial";
  std::FILE* file = std::fopen(partial.c_str(), "wb");
  if (file == nullptr) return FileError(partial, "cannot create", errno);
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (std::fclose(file) != 0 || !written) return FileError(partial, "cannot write", errno);
  if (std::rename(partial.c_str(), path.c_str()) != 0) {
    return FileError(path, "cannot rename into place", errno);
  }
  return absl::OkStatus();
}

}  // namespace sluice
