// Answers in the shapes of OpenAI's API, with the fields that vLLM, SGLang and DeepSeek add.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/model/tokenizer.h"
#include "services/router/reply_stream.h"

namespace sluice::router {

struct ApiUsage {
  uint32_t prompt_tokens = 0;      // of each prompt once, however many answers it gets
  uint32_t completion_tokens = 0;  // of all answers
  uint32_t cached_tokens = 0;
  uint32_t reasoning_tokens = 0;
};

// What all parts of one response say.
struct ResponseHead {
  bool chat = false;
  std::string id;       // "chatcmpl-..." or "cmpl-..."
  int64_t created = 0;  // Unix seconds
  std::string model;    // as the server calls it
  std::string fingerprint;
  bool logprobs = false;
  bool token_ids = false;
  bool tokens_as_ids = false;
  const model::Tokenizer* tokenizer = nullptr;
};

// The beginning of what an answer of a completion with `echo` says, and the ids of its prompt when
// they were asked for. One per prompt.
struct PromptEcho {
  std::string text;
  std::vector<int32_t> token_ids;
};

// Server-sent events, each appended to `out` as "data: {...}\n\n".
// Threads: one at a time.
class ChunkWriter {
 public:
  explicit ChunkWriter(ResponseHead head);

  // Before an answer's first delta. `echo` may be null.
  void Begin(uint32_t index, const PromptEcho* echo, std::string* out);
  // `usage`: so far, with every chunk of those who want it; else null.
  void Delta(const ChoiceDelta& delta, const ApiUsage* usage, std::string* out);
  void Usage(const ApiUsage& usage, std::string* out);
  // An error's JSON (api_error.h), in mid-stream.
  static void Error(absl::string_view error_json, std::string* out);
  static void Done(std::string* out);

 private:
  void Open(uint32_t index, std::string* out) const;
  size_t& TextOffset(uint32_t index);

  ResponseHead head_;
  std::string prefix_;                // up to "choices":[
  std::vector<size_t> text_offsets_;  // characters written of each answer, for its logprobs
};

// The whole response. `choices` by index; `echoes` (by prompt, may be empty) serve n answers each.
std::string ResponseJson(const ResponseHead& head, absl::Span<const ChoiceDelta> choices,
                         absl::Span<const PromptEcho> echoes, uint32_t n, const ApiUsage& usage);

struct ModelCard {
  std::string id;
  std::string root;  // the directory's name
  int64_t created = 0;
  int64_t max_model_len = 0;
};
std::string ModelJson(const ModelCard& card);
std::string ModelListJson(const ModelCard& card);

std::string TokenizeJson(absl::Span<const int32_t> ids, int64_t max_model_len,
                         const model::Tokenizer* token_strs);  // null: without them
std::string DetokenizeJson(absl::string_view text);

}  // namespace sluice::router
