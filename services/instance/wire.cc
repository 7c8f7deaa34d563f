#include "services/instance/wire.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "services/model/page_hash.h"

namespace sluice::instance {
namespace {

// Ids beyond 31 bits become negative, which the engine refuses by name.
std::vector<int32_t> ToTokens(const google::protobuf::RepeatedField<uint32_t>& ids) {
  return std::vector<int32_t>(ids.begin(), ids.end());
}

engine::SamplingParams ToSampling(const v1::Sampling& in) {
  engine::SamplingParams out{
      .temperature = in.temperature(),
      .top_p = in.top_p(),
      .top_k = in.top_k(),
      .min_p = in.min_p(),
      .repetition_penalty = in.repetition_penalty(),
      .presence_penalty = in.presence_penalty(),
      .frequency_penalty = in.frequency_penalty(),
      .seed = in.seed(),
      .max_tokens = in.max_tokens(),
      .min_tokens = in.min_tokens(),
      .stop_token_ids = ToTokens(in.stop_token_ids()),
      .num_logprobs = in.num_logprobs(),
  };
  for (const auto& [id, bias] : in.logit_bias()) {
    out.logit_bias.emplace_back(static_cast<int32_t>(id), bias);
  }
  std::sort(out.logit_bias.begin(), out.logit_bias.end());  // maps have no order of their own
  return out;
}

}  // namespace

absl::StatusOr<engine::Request> MakeRequest(const v1::Admit& admit) {
  constexpr size_t kHashBytes = sizeof(model::PageHash);
  const size_t tokens = admit.prompt_ids_size() + admit.output_ids_size();
  const size_t hashes = admit.page_hashes().size() / kHashBytes;
  if (admit.page_hashes().size() % kHashBytes != 0 || hashes > tokens / model::kHashPageTokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "page_hashes has ", admit.page_hashes().size(), " bytes; wanted are ", kHashBytes,
        " for each of at most ", tokens / model::kHashPageTokens, " full pages"));
  }
  if (const size_t size = admit.page_hash_seed().size(); size != 0 && size != kHashBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_hash_seed has ", size, " bytes; wanted are ", kHashBytes, " or none"));
  }
  engine::Request request{
      .prompt = ToTokens(admit.prompt_ids()),
      .output = ToTokens(admit.output_ids()),
      .sampling = ToSampling(admit.sampling()),
      .priority = admit.priority(),
  };
  request.page_hashes.resize(hashes);
  for (size_t i = 0; i < hashes; ++i) {
    std::memcpy(request.page_hashes[i].data(), admit.page_hashes().data() + i * kHashBytes,
                kHashBytes);
  }
  if (!admit.page_hash_seed().empty()) {
    std::memcpy(request.page_hash_seed.emplace().data(), admit.page_hash_seed().data(), kHashBytes);
  }
  return request;
}

v1::Finish ToFinish(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      return v1::FINISH_STOP;
    case engine::FinishReason::kLength:
      return v1::FINISH_LENGTH;
    case engine::FinishReason::kDamaged:
      return v1::FINISH_DAMAGED;
  }
  return v1::FINISH_UNSPECIFIED;
}

void AppendToken(const engine::SampledToken& token, int32_t num_logprobs, v1::RequestTokens* out) {
  out->add_token_ids(static_cast<uint32_t>(token.token_id));
  if (num_logprobs < 0) return;
  v1::TokenLogprobs* logprobs = out->add_logprobs();
  logprobs->set_logprob(token.logprob);
  for (const engine::TokenLogprob& top : token.top_logprobs) {
    logprobs->add_top_ids(static_cast<uint32_t>(top.token_id));
    logprobs->add_top_logprobs(top.logprob);
  }
}

}  // namespace sluice::instance
