#include "services/model/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"

namespace sluice::model {
namespace {

absl::Status WriteError(const std::string& path, absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(path, ": cannot ", what, ": ", strerror(errno)));
}

absl::Status WriteAt(int fd, const std::string& path, const void* data, size_t size,
                     size_t offset) {
  const char* from = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = pwrite(fd, from, size, static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return WriteError(path, "write");
    from += written;
    offset += static_cast<size_t>(written);
    size -= static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

}  // namespace

size_t SafetensorsWriter::Tensor::bytes() const {
  size_t bytes = DTypeBytes(dtype);
  for (const int64_t dim : shape) bytes *= static_cast<size_t>(dim);
  return bytes;
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, const std::vector<Tensor>& tensors) {
  nlohmann::ordered_json json;
  json["__metadata__"]["format"] = "pt";
  std::vector<size_t> begins;
  size_t end = 0;
  for (const Tensor& tensor : tensors) {
    begins.push_back(end);
    const size_t begin = end;
    end += tensor.bytes();
    json[tensor.name] = {{"dtype", std::string(DTypeName(tensor.dtype))},
                         {"shape", tensor.shape},
                         {"data_offsets", {begin, end}}};
  }
  std::string header = json.dump();
  header.append((8 - header.size() % 8) % 8, ' ');
  const uint64_t length = header.size();
  for (size_t& begin : begins) begin += sizeof(length) + length;
  const std::string partial = path + ".partial";
  const int fd = open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return WriteError(partial, "create");
  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter(path, fd, std::move(begins)));
  if (ftruncate(fd, static_cast<off_t>(sizeof(length) + length + end)) != 0) {
    return WriteError(partial, "make room");
  }
  SLUICE_RETURN_IF_ERROR(WriteAt(fd, partial, &length, sizeof(length), 0));
  SLUICE_RETURN_IF_ERROR(WriteAt(fd, partial, header.data(), length, sizeof(length)));
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  close(fd_);
  unlink((path_ + ".partial").c_str());
}

absl::Status SafetensorsWriter::Write(size_t index, size_t offset, const void* data, size_t size) {
  return WriteAt(fd_, path_, data, size, begins_[index] + offset);
}

absl::Status SafetensorsWriter::Finish() {
  const std::string partial = path_ + ".partial";
  if (close(std::exchange(fd_, -1)) != 0) return WriteError(partial, "close");
  if (std::rename(partial.c_str(), path_.c_str()) != 0) {
    return WriteError(path_, "rename into place");
  }
  return absl::OkStatus();
}

}  // namespace sluice::model
