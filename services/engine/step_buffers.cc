#include "services/engine/step_buffers.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/ops/sampling.h"

namespace sluice::engine {
namespace {

absl::StatusOr<MirroredArray> MakeArray(Workspace* workspace, const char* name, DType dtype,
                                        std::initializer_list<int64_t> shape) {
  MirroredArray array;
  SLUICE_ASSIGN_OR_RETURN(array.device, workspace->Tensor(name, dtype, shape));
  array.host = array.device;
  array.host_memory.resize(array.device.dims[0] * array.device.row_elements() * DTypeBytes(dtype));
  array.host.data = array.host_memory.data();
  return array;
}

size_t BytesOfRows(const TensorView& view, int64_t rows) {
  return rows * view.row_elements() * DTypeBytes(view.dtype);
}

absl::Status CopyIn(Backend* backend, const MirroredArray& array, int64_t rows, StreamId stream) {
  if (rows == 0) return absl::OkStatus();
  return backend->CopyToDevice(array.device.data, array.host.data, BytesOfRows(array.host, rows),
                               stream);
}

absl::Status CopyOut(Backend* backend, const MirroredArray& array, int64_t rows, StreamId stream) {
  if (rows == 0) return absl::OkStatus();
  return backend->CopyToHost(array.host.data, array.device.data, BytesOfRows(array.host, rows),
                             stream);
}

int32_t* Ints(const MirroredArray& array) { return array.host.As<int32_t>(); }

absl::Status CheckReset(const SlotReset& reset, const model::ModelConfig& config,
                        const EngineOptions& options) {
  if (reset.slot < 0 || reset.slot >= options.slots_max) {
    return absl::InvalidArgumentError(absl::StrCat("step plan: reset of slot ", reset.slot,
                                                   ", slots are 0 to ", options.slots_max - 1));
  }
  for (const absl::Span<const int32_t> ids : {reset.prompt, reset.output}) {
    for (const int32_t id : ids) {
      if (id < 0 || id >= config.vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat("step plan: reset of slot ", reset.slot, " has token id ", id,
                         ", the vocabulary has ids 0 to ", config.vocab_size - 1));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<StepBuffers>> StepBuffers::Create(Backend* backend,
                                                                 const model::ModelConfig& config,
                                                                 const EngineOptions& options) {
  auto step = std::make_unique<StepBuffers>();
  step->workspace = std::make_unique<Workspace>(backend);
  Workspace* workspace = step->workspace.get();
  const int64_t tokens = options.step_tokens_max;
  const int64_t slots = options.slots_max;
  const auto make = [workspace](const char* name, DType dtype, std::initializer_list<int64_t> shape,
                                MirroredArray* array) {
    absl::StatusOr<MirroredArray> made = MakeArray(workspace, name, dtype, shape);
    if (made.ok()) *array = *std::move(made);
    return made.status();
  };
  const DType i32 = DType::kI32;
  SLUICE_RETURN_IF_ERROR(make("token ids", i32, {tokens}, &step->ids));
  SLUICE_RETURN_IF_ERROR(make("positions", i32, {tokens}, &step->positions));
  SLUICE_RETURN_IF_ERROR(make("KV rows", i32, {tokens}, &step->kv_rows));
  SLUICE_RETURN_IF_ERROR(make("sequence of token", i32, {tokens}, &step->seq_of_token));
  SLUICE_RETURN_IF_ERROR(
      make("page table", i32, {slots, PagesFor(options.positions_max)}, &step->page_table));
  SLUICE_RETURN_IF_ERROR(make("sampled rows", i32, {slots}, &step->sample_rows));
  SLUICE_RETURN_IF_ERROR(make("sampled positions", i32, {slots}, &step->sample_positions));
  SLUICE_RETURN_IF_ERROR(make("sampled sequences", i32, {slots}, &step->sample_seqs));
  SLUICE_RETURN_IF_ERROR(make("sampling rows", DType::kU8,
                              {slots, static_cast<int64_t>(sizeof(SamplingRow))}, &step->sampling));
  const int64_t bias_max = slots * static_cast<int64_t>(kLogitBiasMax);
  const int64_t banned_max = slots * static_cast<int64_t>(kStopTokensMax);
  SLUICE_RETURN_IF_ERROR(make("logit bias ids", i32, {bias_max}, &step->bias_ids));
  SLUICE_RETURN_IF_ERROR(make("logit biases", DType::kF32, {bias_max}, &step->bias_values));
  SLUICE_RETURN_IF_ERROR(make("banned tokens", i32, {banned_max}, &step->banned_ids));
  SLUICE_RETURN_IF_ERROR(make("sampled tokens", i32, {slots}, &step->tokens));
  SLUICE_RETURN_IF_ERROR(make("logprobs", DType::kF32, {slots}, &step->logprobs));
  const int64_t top = std::min<int64_t>(kLogprobsMax, config.vocab_size);
  SLUICE_RETURN_IF_ERROR(make("top tokens", i32, {slots, top}, &step->top_ids));
  SLUICE_RETURN_IF_ERROR(make("top logprobs", DType::kF32, {slots, top}, &step->top_logprobs));
  SLUICE_RETURN_IF_ERROR(make("finite logits", DType::kU8, {slots}, &step->not_finite));
  SLUICE_ASSIGN_OR_RETURN(step->resolved_ids, workspace->Tensor("resolved ids", i32, {tokens}));
  step->slot_used_.resize(slots);
  step->last_row_of_chunk_.resize(slots);
  step->prompts.reserve(slots);
  return step;
}

absl::Status StepBuffers::CheckChunk(size_t index, const StepChunk& chunk,
                                     const model::ModelConfig& config,
                                     const EngineOptions& options) {
  const auto error = [index](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat("step plan, chunk ", index, ": ", parts...));
  };
  if (chunk.slot < 0 || chunk.slot >= options.slots_max) {
    return error("slot is ", chunk.slot, ", slots are 0 to ", options.slots_max - 1);
  }
  if (slot_used_[chunk.slot]) return error("slot ", chunk.slot, " has a chunk already");
  slot_used_[chunk.slot] = true;
  if (chunk.tokens.empty()) return error("no tokens");
  const int64_t end = chunk.first_position + static_cast<int64_t>(chunk.tokens.size());
  if (chunk.first_position < 0 || end > options.positions_max) {
    return error("positions ", chunk.first_position, " to ", end - 1, ", a sequence has 0 to ",
                 options.positions_max - 1);
  }
  if (static_cast<int64_t>(chunk.pages.size()) < PagesFor(end)) {
    return error(chunk.pages.size(), " pages for ", end, " positions, ", PagesFor(end), " needed");
  }
  for (int64_t i = 0; i < PagesFor(end); ++i) {
    if (chunk.pages[i] < 0 || chunk.pages[i] >= options.kv_pages) {
      return error("page ", chunk.pages[i], ", pages are 0 to ", options.kv_pages - 1);
    }
  }
  for (const int32_t token : chunk.tokens) {
    if (token != kSampledToken && (token < 0 || token >= config.vocab_size)) {
      return error("token id ", token, ", the vocabulary has ids 0 to ", config.vocab_size - 1);
    }
  }
  if (chunk.sampling != nullptr) {
    if (absl::Status status = ValidateSamplingParams(*chunk.sampling, config.vocab_size);
        !status.ok()) {
      return error(status.message());
    }
  }
  if (num_tokens + static_cast<int64_t>(chunk.tokens.size()) > options.step_tokens_max) {
    return error("the step has more than ", options.step_tokens_max, " tokens");
  }
  num_tokens += chunk.tokens.size();
  return absl::OkStatus();
}

absl::Status StepBuffers::Fill(const StepPlan& plan, const model::ModelConfig& config,
                               const EngineOptions& options) {
  number = plan.number;
  num_tokens = num_absorbed = num_seqs = num_samples = num_bias = num_banned = 0;
  any_penalties = false;
  prompts.clear();
  resets.clear();
  std::fill(slot_used_.begin(), slot_used_.end(), false);
  if (plan.chunks.empty()) return absl::InvalidArgumentError("step plan: no chunks");
  for (size_t i = 0; i < plan.chunks.size(); ++i) {
    SLUICE_RETURN_IF_ERROR(CheckChunk(i, plan.chunks[i], config, options));
  }
  for (const SlotReset& reset : plan.resets) {
    SLUICE_RETURN_IF_ERROR(CheckReset(reset, config, options));
    resets.push_back({reset.slot,
                      {reset.prompt.begin(), reset.prompt.end()},
                      {reset.output.begin(), reset.output.end()}});
  }

  // Absorbed chunks first, then prompts, each group in the plan's order.
  const auto is_prompt = [&](const StepChunk& chunk) {
    return !options.absorb_prompts && static_cast<int64_t>(chunk.tokens.size()) >= kPromptChunkMin;
  };
  num_tokens = 0;
  for (const bool prompt_pass : {false, true}) {
    for (size_t i = 0; i < plan.chunks.size(); ++i) {
      const StepChunk& chunk = plan.chunks[i];
      if (is_prompt(chunk) != prompt_pass) continue;
      if (prompt_pass) {
        prompts.push_back({.token_begin = num_tokens,
                           .num_tokens = static_cast<int64_t>(chunk.tokens.size()),
                           .seq = static_cast<int64_t>(i),
                           .first_position = chunk.first_position});
      }
      AddTokens(chunk, static_cast<int64_t>(i));
      last_row_of_chunk_[i] = num_tokens - 1;
    }
    if (!prompt_pass) num_absorbed = num_tokens;
  }
  num_seqs = static_cast<int64_t>(plan.chunks.size());
  for (size_t i = 0; i < plan.chunks.size(); ++i) {
    if (plan.chunks[i].sampling == nullptr) continue;
    AddSample(plan.chunks[i], static_cast<int64_t>(i), last_row_of_chunk_[i]);
  }
  return absl::OkStatus();
}

void StepBuffers::AddTokens(const StepChunk& chunk, int64_t seq) {
  const int64_t end = chunk.first_position + static_cast<int64_t>(chunk.tokens.size());
  std::copy_n(chunk.pages.begin(), PagesFor(end), page_table.host.Row<int32_t>(seq));
  for (size_t i = 0; i < chunk.tokens.size(); ++i, ++num_tokens) {
    const int64_t position = chunk.first_position + static_cast<int64_t>(i);
    const int32_t token = chunk.tokens[i];
    Ints(ids)[num_tokens] = token == kSampledToken ? -(chunk.slot + 1) : token;
    Ints(positions)[num_tokens] = static_cast<int32_t>(position);
    Ints(kv_rows)[num_tokens] = static_cast<int32_t>(
        chunk.pages[position / kPageTokens] * kPageTokens + position % kPageTokens);
    Ints(seq_of_token)[num_tokens] = static_cast<int32_t>(seq);
  }
}

void StepBuffers::AddSample(const StepChunk& chunk, int64_t seq, int64_t row) {
  const SamplingParams& params = *chunk.sampling;
  SamplingRow sample{
      .temperature = params.temperature,
      .top_p = params.top_p,
      .min_p = params.min_p,
      .top_k = params.top_k,
      .repetition_penalty = params.repetition_penalty,
      .presence_penalty = params.presence_penalty,
      .frequency_penalty = params.frequency_penalty,
      .seed = params.seed,
      .position = static_cast<int32_t>(chunk.output_position),
      .slot = chunk.slot,
      .num_logprobs = params.num_logprobs,
      .counts_tokens = params.has_penalties(),
  };
  any_penalties |= params.has_penalties();
  sample.bias_begin = static_cast<int32_t>(num_bias);
  for (const auto& [id, bias] : params.logit_bias) {
    Ints(bias_ids)[num_bias] = id;
    bias_values.host.As<float>()[num_bias++] = bias;
  }
  sample.bias_end = static_cast<int32_t>(num_bias);
  sample.banned_begin = static_cast<int32_t>(num_banned);
  if (chunk.output_position < params.min_tokens) {
    for (const int32_t id : params.stop_token_ids) Ints(banned_ids)[num_banned++] = id;
  }
  sample.banned_end = static_cast<int32_t>(num_banned);

  std::memcpy(sampling.host.Row<uint8_t>(num_samples), &sample, sizeof(sample));
  Ints(sample_rows)[num_samples] = static_cast<int32_t>(row);
  Ints(sample_positions)[num_samples] = Ints(positions)[row];
  Ints(sample_seqs)[num_samples] = static_cast<int32_t>(seq);
  ++num_samples;
}

absl::Status StepBuffers::CopyInputs(Backend* backend, StreamId stream) {
  for (const MirroredArray* array : {&ids, &positions, &kv_rows, &seq_of_token}) {
    SLUICE_RETURN_IF_ERROR(CopyIn(backend, *array, num_tokens, stream));
  }
  SLUICE_RETURN_IF_ERROR(CopyIn(backend, page_table, num_seqs, stream));
  for (const MirroredArray* array : {&sample_rows, &sample_positions, &sample_seqs, &sampling}) {
    SLUICE_RETURN_IF_ERROR(CopyIn(backend, *array, num_samples, stream));
  }
  SLUICE_RETURN_IF_ERROR(CopyIn(backend, bias_ids, num_bias, stream));
  SLUICE_RETURN_IF_ERROR(CopyIn(backend, bias_values, num_bias, stream));
  return CopyIn(backend, banned_ids, num_banned, stream);
}

absl::Status StepBuffers::CopyOutputs(Backend* backend, StreamId stream) {
  for (const MirroredArray* array : {&tokens, &logprobs, &top_ids, &top_logprobs, &not_finite}) {
    SLUICE_RETURN_IF_ERROR(CopyOut(backend, *array, num_samples, stream));
  }
  return absl::OkStatus();
}

void StepBuffers::ReadResult(StepResult* result) const {
  result->number = number;
  result->slots.resize(num_samples);
  for (int64_t i = 0; i < num_samples; ++i) {
    SamplingRow row;
    std::memcpy(&row, sampling.host.Row<uint8_t>(i), sizeof(row));
    SlotResult& slot = result->slots[i];
    slot.slot = row.slot;
    slot.tokens.resize(1);
    SampledToken& token = slot.tokens[0];
    token.token_id = Ints(tokens)[i];
    token.logprob = row.num_logprobs >= 0 ? logprobs.host.As<float>()[i] : 0.0f;
    token.not_finite = not_finite.host.As<uint8_t>()[i] != 0;
    token.top_logprobs.clear();
    const int64_t top = std::min<int64_t>(row.num_logprobs, top_ids.host.dims[1]);
    for (int64_t j = 0; j < top; ++j) {
      token.top_logprobs.push_back(
          {top_ids.host.Row<int32_t>(i)[j], top_logprobs.host.Row<float>(i)[j]});
    }
  }
}

}  // namespace sluice::engine
