#include "kernels/cpu/sample_row.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/base/portable_math.h"

namespace sluice {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kAnyId = std::numeric_limits<int32_t>::max();

bool MoreProbable(const SampleCandidate& a, const SampleCandidate& b) {
  return a.y > b.y || (a.y == b.y && a.id < b.id);
}

uint64_t MassOf(const SampleCandidate& candidate) {
  return static_cast<uint64_t>(portable::Exp(candidate.y) * kSampleMassUnit);
}

uint64_t MassOf(const SampleCandidate* begin, const SampleCandidate* end) {
  uint64_t sum = 0;
  for (; begin != end; ++begin) sum += MassOf(*begin);
  return sum;
}

// The candidate with which the mass, counted from the most probable one down, reaches `mass`.
SampleCandidate SelectByMass(SampleCandidate* begin, SampleCandidate* end, uint64_t mass) {
  while (end - begin > 1) {
    SampleCandidate* middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, MoreProbable);
    const uint64_t upper = MassOf(begin, middle);
    if (upper >= mass) {
      end = middle;
    } else {
      mass -= upper;
      begin = middle;
    }
  }
  return *begin;
}

// The mass that makes up `top_p` of the total, rounded up; at least one unit, so one token.
uint64_t MassToReach(float top_p, uint64_t total) {
  const double wanted = std::ceil(static_cast<double>(top_p) * static_cast<double>(total));
  return std::clamp<uint64_t>(wanted > 1 ? static_cast<uint64_t>(wanted) : 1, 1, total);
}

bool HasPenalties(const SamplingRow& row) {
  return row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
         row.frequency_penalty != 0.0f;
}

}  // namespace

void RowSampler::Reserve(int64_t vocab) {
  const size_t bytes = static_cast<size_t>(vocab) * sizeof(float);
  if (values_.size() >= bytes) return;
  values_ = AlignedBuffer(bytes);
  candidates_ = AlignedBuffer(static_cast<size_t>(vocab) * sizeof(SampleCandidate));
}

SampleCandidate RowSampler::FindCut(const SamplingRow& row, int64_t vocab) {
  const float* y = values_.As<float>();
  SampleCandidate* candidates = candidates_.As<SampleCandidate>();
  SampleCandidate cut = {-std::numeric_limits<float>::max(), kAnyId};
  if (row.min_p > 0.0f) cut.y = std::min(portable::Log(std::max(row.min_p, 1e-37f)), 0.0f);
  const bool use_top_k = row.top_k > 0 && row.top_k < vocab;
  const bool use_top_p = row.top_p < 1.0f;
  if (!use_top_k && !use_top_p) return cut;

  const float y_min = cut.y;
  if (use_top_k) {
    int64_t counts[kSampleBuckets] = {};
    kernels_->count_buckets(y, vocab, y_min, counts);
    int64_t left = row.top_k;
    int bucket = 0;
    while (bucket < kSampleBuckets && counts[bucket] < left) left -= counts[bucket++];
    if (bucket < kSampleBuckets) {
      const int64_t size = GatherBucket(vocab, y_min, bucket);
      std::nth_element(candidates, candidates + left - 1, candidates + size, MoreProbable);
      cut = candidates[left - 1];
    }
    if (!use_top_p) return cut;
    SampleCandidate* end = candidates + kernels_->gather(y, vocab, cut.y, 0.0f, candidates);
    end = std::remove_if(candidates, end,
                         [&](const SampleCandidate& c) { return MoreProbable(cut, c); });
    return SelectByMass(candidates, end, MassToReach(row.top_p, MassOf(candidates, end)));
  }
  uint64_t masses[kSampleBuckets] = {};
  kernels_->weigh_buckets(y, vocab, y_min, masses);
  uint64_t left =
      MassToReach(row.top_p, std::accumulate(masses, masses + kSampleBuckets, uint64_t{0}));
  int bucket = 0;
  while (masses[bucket] < left) left -= masses[bucket++];
  return SelectByMass(candidates, candidates + GatherBucket(vocab, y_min, bucket), left);
}

int64_t RowSampler::GatherBucket(int64_t vocab, float y_min, int bucket) {
  const float above = static_cast<float>(bucket + 1) * (-1.0f / 16);
  const float low = bucket == kSampleBuckets - 1 ? y_min : std::nextafter(above, 0.0f);
  return kernels_->gather(values_.As<float>(), vocab, std::max(low, y_min),
                          static_cast<float>(bucket) * (-1.0f / 16),
                          candidates_.As<SampleCandidate>());
}

int32_t RowSampler::Sample(const SamplingRow& row, const SampleRowTables& tables) {
  const int64_t vocab = tables.vocab;
  float* values = values_.As<float>();
  float max = kernels_->sanitize(tables.logits, vocab, values);
  const bool biased = row.bias_begin < row.bias_end;
  const bool banned = row.banned_begin < row.banned_end;
  for (int32_t i = row.bias_begin; i < row.bias_end; ++i) {
    values[tables.bias_ids[i]] += tables.bias_values[i];
  }
  for (int32_t i = row.banned_begin; i < row.banned_end; ++i) {
    values[tables.banned_ids[i]] = -kInfinity;
  }
  const bool penalized = HasPenalties(row);
  if (penalized) {
    kernels_->penalize(values, vocab, tables.prompt_mask, tables.output_counts,
                       row.repetition_penalty, row.presence_penalty, row.frequency_penalty);
  }
  if (biased || banned || penalized) max = kernels_->sanitize(values, vocab, values);

  int64_t token = 0;
  if (max == -kInfinity) {
    const int32_t* begin = tables.banned_ids + row.banned_begin;
    const int32_t* end = tables.banned_ids + row.banned_end;
    while (token < vocab && std::find(begin, end, static_cast<int32_t>(token)) != end) ++token;
    if (token == vocab) token = 0;
  } else if (!(row.temperature > 0.0f)) {
    token = kernels_->argmax(values, vocab);
  } else {
    kernels_->scale(values, vocab, max, row.temperature);
    const SampleCandidate cut = FindCut(row, vocab);
    token =
        kernels_->gumbel_argmax(values, vocab, cut, row.seed, static_cast<uint32_t>(row.position));
  }
  if (row.counts_tokens) ++tables.output_counts[token];
  return static_cast<int32_t>(token);
}

float RowSampler::Logprobs(const SamplingRow& row, const SampleRowTables& tables, int32_t token,
                           int32_t* top_ids, float* top_logprobs) {
  float* values = values_.As<float>();
  const float max = kernels_->sanitize(tables.logits, tables.vocab, values);
  if (max == -kInfinity) {  // no distribution: the lowest ids at minus infinity
    for (int32_t i = 0; i < row.num_logprobs; ++i) {
      top_ids[i] = i;
      top_logprobs[i] = -kInfinity;
    }
    return -kInfinity;
  }
  const uint64_t mass = kernels_->mass(values, tables.vocab, max);
  const float log_sum = portable::Log(static_cast<float>(mass) * (1.0f / kSampleMassUnit));
  const auto logprob = [&](float logit) { return (logit - max) - log_sum; };

  // Insertion into the n best; a token that comes later needs a strictly larger logit.
  const int32_t wanted = static_cast<int32_t>(std::min<int64_t>(row.num_logprobs, tables.vocab));
  int32_t size = 0;
  for (int64_t id = 0; wanted > 0 && id < tables.vocab; ++id) {
    if (size == wanted && !(values[id] > top_logprobs[size - 1])) continue;
    int32_t place = size < wanted ? size++ : size - 1;
    for (; place > 0 && values[id] > top_logprobs[place - 1]; --place) {
      top_logprobs[place] = top_logprobs[place - 1];
      top_ids[place] = top_ids[place - 1];
    }
    top_logprobs[place] = values[id];
    top_ids[place] = static_cast<int32_t>(id);
  }
  for (int32_t i = 0; i < size; ++i) top_logprobs[i] = logprob(top_logprobs[i]);
  return logprob(values[token]);
}

}  // namespace sluice
