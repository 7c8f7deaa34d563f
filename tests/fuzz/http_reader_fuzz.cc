// Any bytes from a client, in one piece and byte by byte: the same requests, within the limits.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "services/router/http_reader.h"

namespace sluice::router {
namespace {

constexpr HttpLimits kLimits{.header_bytes_max = 512, .body_bytes_max = 256};

void Check(bool holds) {
  if (!holds) std::abort();
}

std::vector<HttpRequest> Read(absl::string_view bytes, size_t piece) {
  HttpReader reader(kLimits);
  std::vector<HttpRequest> requests;
  while (!bytes.empty() && reader.state() != HttpReader::State::kError) {
    reader.Feed(bytes.substr(0, piece));
    bytes.remove_prefix(std::min(piece, bytes.size()));
    while (reader.state() == HttpReader::State::kReady) {
      requests.push_back(reader.Take());
      Check(requests.back().body.size() <= kLimits.body_bytes_max);
    }
    reader.TakeExpectsContinue();
    Check(reader.state() == HttpReader::State::kError ||
          reader.num_kept_bytes() <= kLimits.header_bytes_max);
  }
  if (reader.state() == HttpReader::State::kError) {
    Check(reader.http_status() >= 400 && reader.http_status() < 500 && !reader.error().empty());
  }
  return requests;
}

}  // namespace
}  // namespace sluice::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sluice::router;
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::vector<HttpRequest> whole = Read(bytes, std::max<size_t>(size, 1));
  const std::vector<HttpRequest> pieces = Read(bytes, 1);
  // In a header that is not complete, what is wrong may be seen sooner or later: no request comes
  // of it either way.
  Check(whole.size() == pieces.size());
  for (size_t i = 0; i < whole.size(); ++i) {
    Check(whole[i].method == pieces[i].method);
    Check(whole[i].path == pieces[i].path);
    Check(whole[i].headers == pieces[i].headers);
    Check(whole[i].body == pieces[i].body);
  }
  return 0;
}
