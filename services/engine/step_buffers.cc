#include "services/engine/step_buffers.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status.h"
#include "kernels/ops/sampling.h"
#include "services/engine/decode_bucket.h"

namespace sluice::engine {
namespace {

int32_t* Ints(const TensorView& view) { return view.As<int32_t>(); }

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

StepBuffers::StepBuffers(const StepLayout& layout, int64_t slots_max, bool pads_decode)
    : layout_(layout), slots_max_(slots_max), pads_decode_(pads_decode) {
  slot_used_.resize(slots_max);
  last_row_of_chunk_.resize(slots_max);
  prompts.reserve(slots_max);
}

absl::StatusOr<std::unique_ptr<StepBuffers>> StepBuffers::Create(Backend* backend,
                                                                 const model::ModelConfig& config,
                                                                 const EngineOptions& options,
                                                                 const StepLayout& layout,
                                                                 bool pads_decode) {
  std::unique_ptr<StepBuffers> step(new StepBuffers(layout, options.slots_max, pads_decode));
  SLUICE_ASSIGN_OR_RETURN(step->input_block,
                          backend->AllocateHost(layout.input_bytes_max(), "step inputs"));
  SLUICE_ASSIGN_OR_RETURN(step->output_block,
                          backend->AllocateHost(layout.output_bytes_max(), "step outputs"));
  const size_t load_bytes = config.num_hidden_layers * config.n_routed_experts * sizeof(int64_t);
  SLUICE_ASSIGN_OR_RETURN(step->expert_load, backend->AllocateHost(load_bytes, "expert load"));
  SLUICE_ASSIGN_OR_RETURN(step->done, backend->MakeEvent());
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
  if (num_tokens_ + static_cast<int64_t>(chunk.tokens.size()) > options.step_tokens_max) {
    return error("the step has more than ", options.step_tokens_max, " tokens");
  }
  num_tokens_ += chunk.tokens.size();
  return absl::OkStatus();
}

absl::Status StepBuffers::Fill(const StepPlan& plan, const model::ModelConfig& config,
                               const EngineOptions& options) {
  number = plan.number;
  num_tokens_ = 0;
  resets.clear();
  std::fill(slot_used_.begin(), slot_used_.end(), false);
  if (plan.chunks.empty()) return absl::InvalidArgumentError("step plan: no chunks");
  StepShape rows{.seqs = static_cast<int64_t>(plan.chunks.size())};
  for (size_t i = 0; i < plan.chunks.size(); ++i) {
    SLUICE_RETURN_IF_ERROR(CheckChunk(i, plan.chunks[i], config, options));
    rows.samples += plan.chunks[i].sampling != nullptr ? 1 : 0;
  }
  rows.tokens = num_tokens_;
  for (const SlotReset& reset : plan.resets) {
    SLUICE_RETURN_IF_ERROR(CheckReset(reset, config, options));
    resets.push_back({reset.slot,
                      {reset.prompt.begin(), reset.prompt.end()},
                      {reset.output.begin(), reset.output.end()}});
  }
  is_decode = pads_decode_ && rows.tokens == rows.seqs && rows.samples == rows.seqs;
  if (is_decode) {
    const int64_t bucket = DecodeBucket(rows.seqs, slots_max_);
    rows = {bucket, bucket, bucket};
  }
  LayOut(rows);

  // Absorbed chunks first, then prompts, each group in the plan's order.
  const auto is_prompt = [&](const StepChunk& chunk) {
    return !options.absorb_prompts && static_cast<int64_t>(chunk.tokens.size()) >= kPromptChunkMin;
  };
  for (const bool prompt_pass : {false, true}) {
    for (size_t i = 0; i < plan.chunks.size(); ++i) {
      const StepChunk& chunk = plan.chunks[i];
      if (is_prompt(chunk) != prompt_pass) continue;
      if (prompt_pass) {
        prompts.push_back({.token_begin = num_tokens_,
                           .num_tokens = static_cast<int64_t>(chunk.tokens.size()),
                           .seq = static_cast<int64_t>(i),
                           .first_position = chunk.first_position});
      }
      AddTokens(chunk, static_cast<int64_t>(i));
      last_row_of_chunk_[i] = num_tokens_ - 1;
    }
    if (!prompt_pass) num_absorbed = num_tokens_;
  }
  num_seqs_ = static_cast<int64_t>(plan.chunks.size());
  for (size_t i = 0; i < plan.chunks.size(); ++i) {
    if (plan.chunks[i].sampling == nullptr) continue;
    AddSample(plan.chunks[i], static_cast<int64_t>(i), last_row_of_chunk_[i]);
  }
  if (is_decode) AddPadding();
  return absl::OkStatus();
}

void StepBuffers::FillWithPadding(const StepShape& rows) {
  resets.clear();
  is_decode = false;
  LayOut(rows);
  AddPadding();
}

void StepBuffers::LayOut(const StepShape& rows) {
  shape = rows;
  inputs = layout_.Inputs(input_block.memory.get(), rows);
  outputs = layout_.Outputs(output_block.memory.get(), rows.samples);
  num_tokens_ = num_seqs_ = num_samples = num_absorbed = num_bias = num_banned = 0;
  prompts.clear();
  is_padded = false;
}

void StepBuffers::AddPadding() {
  is_padded = true;
  for (; num_tokens_ < shape.tokens; ++num_tokens_) {
    Ints(inputs.ids)[num_tokens_] = 0;
    Ints(inputs.positions)[num_tokens_] = 0;
    Ints(inputs.kv_rows)[num_tokens_] = -1;
    Ints(inputs.seq_of_token)[num_tokens_] =
        static_cast<int32_t>(std::min(num_tokens_, shape.seqs - 1));
  }
  for (; num_seqs_ < shape.seqs; ++num_seqs_) {
    std::fill_n(inputs.page_table.Row<int32_t>(num_seqs_), inputs.page_table.dims[1], 0);
  }
  const SamplingRow sample{.temperature = 0, .slot = static_cast<int32_t>(slots_max_)};
  for (int64_t row = num_samples; row < shape.samples; ++row) {
    std::memcpy(inputs.sampling.Row<uint8_t>(row), &sample, sizeof(sample));
    Ints(inputs.sample_rows)[row] = static_cast<int32_t>(row);
    Ints(inputs.sample_positions)[row] = 0;
    Ints(inputs.sample_seqs)[row] = static_cast<int32_t>(row);
  }
  num_absorbed = shape.tokens;
}

void StepBuffers::AddTokens(const StepChunk& chunk, int64_t seq) {
  const int64_t end = chunk.first_position + static_cast<int64_t>(chunk.tokens.size());
  std::copy_n(chunk.pages.begin(), PagesFor(end), inputs.page_table.Row<int32_t>(seq));
  for (size_t i = 0; i < chunk.tokens.size(); ++i, ++num_tokens_) {
    const int64_t position = chunk.first_position + static_cast<int64_t>(i);
    const int32_t token = chunk.tokens[i];
    Ints(inputs.ids)[num_tokens_] = token == kSampledToken ? -(chunk.slot + 1) : token;
    Ints(inputs.positions)[num_tokens_] = static_cast<int32_t>(position);
    Ints(inputs.kv_rows)[num_tokens_] = static_cast<int32_t>(
        chunk.pages[position / kPageTokens] * kPageTokens + position % kPageTokens);
    Ints(inputs.seq_of_token)[num_tokens_] = static_cast<int32_t>(seq);
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
  sample.bias_begin = static_cast<int32_t>(num_bias);
  for (const auto& [id, bias] : params.logit_bias) {
    Ints(inputs.bias_ids)[num_bias] = id;
    inputs.bias_values.As<float>()[num_bias++] = bias;
  }
  sample.bias_end = static_cast<int32_t>(num_bias);
  sample.banned_begin = static_cast<int32_t>(num_banned);
  if (chunk.output_position < params.min_tokens) {
    for (const int32_t id : params.stop_token_ids) Ints(inputs.banned_ids)[num_banned++] = id;
  }
  sample.banned_end = static_cast<int32_t>(num_banned);

  std::memcpy(inputs.sampling.Row<uint8_t>(num_samples), &sample, sizeof(sample));
  Ints(inputs.sample_rows)[num_samples] = static_cast<int32_t>(row);
  Ints(inputs.sample_positions)[num_samples] = Ints(inputs.positions)[row];
  Ints(inputs.sample_seqs)[num_samples] = static_cast<int32_t>(seq);
  ++num_samples;
}

absl::Status StepBuffers::CopyInputs(Backend* backend, void* block, StreamId stream) {
  const auto copy = [&](const TensorView& view, size_t bytes) {
    const size_t offset = view.As<std::byte>() - input_block.As<std::byte>();
    return bytes == 0 ? absl::OkStatus()
                      : backend->CopyToDevice(static_cast<std::byte*>(block) + offset, view.data,
                                              bytes, stream);
  };
  SLUICE_RETURN_IF_ERROR(
      backend->CopyToDevice(block, input_block.memory.get(), inputs.bytes, stream));
  SLUICE_RETURN_IF_ERROR(copy(inputs.bias_ids, num_bias * sizeof(int32_t)));
  SLUICE_RETURN_IF_ERROR(copy(inputs.bias_values, num_bias * sizeof(float)));
  return copy(inputs.banned_ids, num_banned * sizeof(int32_t));
}

absl::Status StepBuffers::CopyOutputs(Backend* backend, const void* block, StreamId stream) {
  if (shape.samples == 0) return absl::OkStatus();
  return backend->CopyToHost(output_block.memory.get(), block, outputs.bytes, stream);
}

void StepBuffers::ReadResult(StepResult* result) const {
  result->number = number;
  result->slots.resize(num_samples);
  for (int64_t i = 0; i < num_samples; ++i) {
    SamplingRow row;
    std::memcpy(&row, inputs.sampling.Row<uint8_t>(i), sizeof(row));
    SlotResult& slot = result->slots[i];
    slot.slot = row.slot;
    slot.tokens.resize(1);
    SampledToken& token = slot.tokens[0];
    token.token_id = Ints(outputs.tokens)[i];
    token.logprob = row.num_logprobs >= 0 ? outputs.logprobs.As<float>()[i] : 0.0f;
    token.not_finite = outputs.not_finite.As<uint8_t>()[i] != 0;
    token.top_logprobs.clear();
    const int64_t top = std::min<int64_t>(row.num_logprobs, outputs.top_ids.dims[1]);
    for (int64_t j = 0; j < top; ++j) {
      token.top_logprobs.push_back(
          {outputs.top_ids.Row<int32_t>(i)[j], outputs.top_logprobs.Row<float>(i)[j]});
    }
  }
}

}  // namespace sluice::engine
