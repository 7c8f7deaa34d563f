#include "services/transport/page_checksum.h"

#include <immintrin.h>

#include <cstring>

namespace sluice::transport {
namespace {

constexpr size_t kBlockWords = kPageSumShift;  // of a block of the sums
constexpr size_t kBlockBytes = kBlockWords * sizeof(uint32_t);

// splitmix64's finaliser.
uint64_t Mix(uint64_t x) {
  uint64_t z = x + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// The sums are written once, for sums alone and for copies, which use `to`. The empty asm there
// keeps the compiler from reading the source a second time instead of keeping what it read.

// Adds the pairs from byte `begin` (a multiple of 8) on.
template <bool kCopies>
void AddPairs(const PageKey& key, absl::Span<const std::byte> bytes, size_t begin, std::byte* to,
              PageSums* sums) {
  for (size_t at = begin; at < bytes.size(); at += 8) {
    const size_t size = bytes.size() - at < 8 ? bytes.size() - at : 8;
    uint32_t words[2] = {0, 0};
    std::memcpy(words, bytes.data() + at, size);
    if constexpr (kCopies) {
      asm("" : "+m"(words));
      std::memcpy(to + at, words, size);
    }
    const uint32_t index = static_cast<uint32_t>(at / 4);
    const auto product = [&](uint32_t i) {
      return uint64_t{words[0] + PageKeyWord(key, i)} *
             uint64_t{words[1] + PageKeyWord(key, i + 1)};
    };
    sums->first += product(index);
    sums->second += product(index + kBlockWords);
  }
}

template <bool kCopies>
PageSums SumGeneric(const PageKey& key, absl::Span<const std::byte> bytes, std::byte* to) {
  PageSums sums;
  AddPairs<kCopies>(key, bytes, 0, to, &sums);
  return sums;
}

// --- AVX2: 8 words a vector ---

#define SLUICE_AVX2 __attribute__((target("avx2")))

// x: index * kPageKeyStep + offset for eight indices.
SLUICE_AVX2 inline __m256i KeyWords8(__m256i x, __m256i twist) {
  x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 16));
  x = _mm256_xor_si256(
      _mm256_mullo_epi32(x, _mm256_set1_epi32(static_cast<int>(kPageKeyMultiplier1))), twist);
  x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 15));
  x = _mm256_mullo_epi32(x, _mm256_set1_epi32(static_cast<int>(kPageKeyMultiplier2)));
  return _mm256_xor_si256(x, _mm256_srli_epi32(x, 16));
}

SLUICE_AVX2 inline __m256i Products4(__m256i words, __m256i keys) {
  const __m256i sum = _mm256_add_epi32(words, keys);
  return _mm256_mul_epu32(sum, _mm256_srli_epi64(sum, 32));
}

SLUICE_AVX2 inline uint64_t AddLanes4(__m256i lanes) {
  alignas(32) uint64_t out[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(out), lanes);
  return out[0] + out[1] + out[2] + out[3];
}

template <bool kCopies>
SLUICE_AVX2 PageSums SumAvx2(const PageKey& key, absl::Span<const std::byte> bytes, std::byte* to) {
  const __m256i twist = _mm256_set1_epi32(static_cast<int>(key.twist));
  const __m256i step8 = _mm256_set1_epi32(static_cast<int>(8 * kPageKeyStep));
  __m256i counter =
      _mm256_add_epi32(_mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                          _mm256_set1_epi32(static_cast<int>(kPageKeyStep))),
                       _mm256_set1_epi32(static_cast<int>(key.offset)));
  const auto* data = reinterpret_cast<const __m256i*>(bytes.data());
  const size_t blocks = bytes.size() / kBlockBytes;
  __m256i first = _mm256_setzero_si256(), second = first;
  __m256i low = KeyWords8(counter, twist);
  counter = _mm256_add_epi32(counter, step8);
  __m256i high = KeyWords8(counter, twist);
  for (size_t block = 0; block < blocks; ++block) {
    counter = _mm256_add_epi32(counter, step8);
    const __m256i next_low = KeyWords8(counter, twist);
    counter = _mm256_add_epi32(counter, step8);
    const __m256i next_high = KeyWords8(counter, twist);
    __m256i words_low = _mm256_loadu_si256(data + 2 * block);
    __m256i words_high = _mm256_loadu_si256(data + 2 * block + 1);
    if constexpr (kCopies) {
      asm("" : "+x"(words_low), "+x"(words_high));
      auto* const copy = reinterpret_cast<__m256i*>(to + block * kBlockBytes);
      _mm256_storeu_si256(copy, words_low);
      _mm256_storeu_si256(copy + 1, words_high);
    }
    first = _mm256_add_epi64(first, Products4(words_low, low));
    first = _mm256_add_epi64(first, Products4(words_high, high));
    second = _mm256_add_epi64(second, Products4(words_low, next_low));
    second = _mm256_add_epi64(second, Products4(words_high, next_high));
    low = next_low;
    high = next_high;
  }
  PageSums sums{AddLanes4(first), AddLanes4(second)};
  AddPairs<kCopies>(key, bytes, blocks * kBlockBytes, to, &sums);
  return sums;
}

// --- AVX-512: 16 words a vector ---

#define SLUICE_AVX512 __attribute__((target("avx512f")))

SLUICE_AVX512 inline __m512i KeyWords16(__m512i x, __m512i twist) {
  x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
  x = _mm512_xor_si512(
      _mm512_mullo_epi32(x, _mm512_set1_epi32(static_cast<int>(kPageKeyMultiplier1))), twist);
  x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
  x = _mm512_mullo_epi32(x, _mm512_set1_epi32(static_cast<int>(kPageKeyMultiplier2)));
  return _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
}

SLUICE_AVX512 inline __m512i Products8(__m512i words, __m512i keys) {
  const __m512i sum = _mm512_add_epi32(words, keys);
  return _mm512_mul_epu32(sum, _mm512_srli_epi64(sum, 32));
}

template <bool kCopies>
SLUICE_AVX512 PageSums SumAvx512(const PageKey& key, absl::Span<const std::byte> bytes,
                                 std::byte* to) {
  const __m512i twist = _mm512_set1_epi32(static_cast<int>(key.twist));
  const __m512i step16 = _mm512_set1_epi32(static_cast<int>(16 * kPageKeyStep));
  __m512i counter = _mm512_add_epi32(
      _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(static_cast<int>(kPageKeyStep))),
      _mm512_set1_epi32(static_cast<int>(key.offset)));
  const std::byte* data = bytes.data();
  const size_t blocks = bytes.size() / kBlockBytes;
  __m512i first = _mm512_setzero_si512(), second = first;
  __m512i keys = KeyWords16(counter, twist);
  for (size_t block = 0; block < blocks; ++block) {
    counter = _mm512_add_epi32(counter, step16);
    const __m512i next_keys = KeyWords16(counter, twist);
    __m512i words = _mm512_loadu_si512(data + block * kBlockBytes);
    if constexpr (kCopies) {
      asm("" : "+v"(words));
      _mm512_storeu_si512(to + block * kBlockBytes, words);
    }
    first = _mm512_add_epi64(first, Products8(words, keys));
    second = _mm512_add_epi64(second, Products8(words, next_keys));
    keys = next_keys;
  }
  alignas(64) uint64_t lanes[2][8];
  _mm512_store_si512(lanes[0], first);
  _mm512_store_si512(lanes[1], second);
  PageSums sums;
  for (int i = 0; i < 8; ++i) {
    sums.first += lanes[0][i];
    sums.second += lanes[1][i];
  }
  AddPairs<kCopies>(key, bytes, blocks * kBlockBytes, to, &sums);
  return sums;
}

using Kernel = PageSums (*)(const PageKey&, absl::Span<const std::byte>, std::byte*);

template <Kernel kSum>
PageSums SumAlone(const PageKey& key, absl::Span<const std::byte> bytes) {
  return kSum(key, bytes, nullptr);
}

constexpr PageSumKernel kKernels[] = {
    {"generic", SumAlone<SumGeneric<false>>, SumGeneric<true>},
    {"avx2", SumAlone<SumAvx2<false>>, SumAvx2<true>},
    {"avx512", SumAlone<SumAvx512<false>>, SumAvx512<true>},
};

size_t CountKernels() {
  if (!__builtin_cpu_supports("avx2")) return 1;
  return __builtin_cpu_supports("avx512f") ? 3 : 2;
}

}  // namespace

PageKey ExpandKey(uint64_t checksum_key) {
  const uint64_t mixed = Mix(checksum_key);
  return {.offset = static_cast<uint32_t>(mixed), .twist = static_cast<uint32_t>(mixed >> 32)};
}

uint64_t FinishChecksum(uint64_t key, const PageTag& tag, uint64_t bytes, const PageSums& sums) {
  uint64_t state = Mix(key ^ 0x5EED0FA9A6E5ull);
  for (uint64_t part :
       {tag.lease, uint64_t{tag.layer} << 32 | tag.page, bytes, sums.first, sums.second}) {
    state = Mix(state ^ part);
  }
  return state;
}

absl::Span<const PageSumKernel> PageSumKernels() {
  static const size_t count = CountKernels();
  return absl::MakeConstSpan(kKernels, count);
}

uint64_t PageChecksum(uint64_t key, const PageTag& tag, absl::Span<const std::byte> bytes) {
  return FinishChecksum(key, tag, bytes.size(), PageSumKernels().back().sum(ExpandKey(key), bytes));
}

uint64_t CopyWithChecksum(uint64_t key, const PageTag& tag, absl::Span<const std::byte> bytes,
                          std::byte* to) {
  return FinishChecksum(key, tag, bytes.size(),
                        PageSumKernels().back().copy(ExpandKey(key), bytes, to));
}

}  // namespace sluice::transport
