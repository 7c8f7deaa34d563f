#include "services/transport/page_checksum.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace sluice::transport {
namespace {

using Bytes = std::vector<std::byte>;

Bytes RandomBytes(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// The definition, word by word, with nothing shared but the key words.
PageSums SumsByDefinition(const PageKey& key, const Bytes& bytes) {
  std::vector<uint32_t> words((bytes.size() + 7) / 8 * 2);
  if (!bytes.empty()) std::memcpy(words.data(), bytes.data(), bytes.size());
  PageSums sums;
  for (uint32_t i = 0; i < words.size(); i += 2) {
    sums.first +=
        uint64_t{words[i] + PageKeyWord(key, i)} * (words[i + 1] + PageKeyWord(key, i + 1));
    sums.second +=
        uint64_t{words[i] + PageKeyWord(key, i + 16)} * (words[i + 1] + PageKeyWord(key, i + 17));
  }
  return sums;
}

constexpr size_t kRow = 640;
constexpr size_t kPage = 64 * kRow;

TEST(PageChecksum, EveryInstructionSetFollowsTheDefinition) {
  for (const PageSumKernel& kernel : PageSumKernels()) {
    for (size_t size : {0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 136, 640, 40960, 73728}) {
      const uint64_t seed = 17 + size;
      SCOPED_TRACE(testing::Message() << kernel.name << ", " << size << " bytes, seed " << seed);
      const PageKey key = ExpandKey(seed * 0x1234567);
      const Bytes bytes = RandomBytes(size + 1, seed);
      // From an odd address too.
      for (size_t begin : {0, 1}) {
        const Bytes part(bytes.begin() + begin, bytes.begin() + begin + size);
        const PageSums want = SumsByDefinition(key, part);
        const PageSums got = kernel.sum(key, absl::MakeConstSpan(bytes).subspan(begin, size));
        EXPECT_EQ(got.first, want.first);
        EXPECT_EQ(got.second, want.second);
        // Copied to an odd address too, with nothing written before or behind.
        Bytes copy(size + 3, std::byte{0xA5});
        const PageSums copied =
            kernel.copy(key, absl::MakeConstSpan(bytes).subspan(begin, size), copy.data() + 1);
        EXPECT_EQ(copied.first, want.first);
        EXPECT_EQ(copied.second, want.second);
        Bytes framed(size + 3, std::byte{0xA5});
        std::copy(part.begin(), part.end(), framed.begin() + 1);
        EXPECT_TRUE(copy == framed);
      }
    }
  }
}

// The value itself, computed apart from this code: what another version or a GPU must give.
TEST(PageChecksum, StaysWhatItIs) {
  Bytes bytes(100);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  const uint64_t key = 0x0123456789abcdef;
  EXPECT_EQ(PageKeyWord(ExpandKey(key), 0), 0xde872976u);
  const PageTag tag{.lease = 5, .layer = 3, .page = 9};
  EXPECT_EQ(PageChecksum(key, tag, bytes), 0xb3c443a91d5de1d0ull);
  Bytes copy(100);
  EXPECT_EQ(CopyWithChecksum(key, tag, bytes, copy.data()), 0xb3c443a91d5de1d0ull);
  EXPECT_EQ(copy, bytes);
}

TEST(PageChecksum, NoticesEveryChangedBit) {
  Bytes bytes = RandomBytes(3 * kRow, 1);
  const PageTag tag{.lease = 1, .layer = 2, .page = 3};
  const uint64_t want = PageChecksum(9, tag, bytes);
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_NE(PageChecksum(9, tag, bytes), want) << "bit " << bit;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

void Swap(Bytes* bytes, size_t a, size_t b, size_t count) {
  std::swap_ranges(bytes->begin() + a, bytes->begin() + a + count, bytes->begin() + b);
}

TEST(PageChecksum, NoticesDamage) {
  const struct {
    std::string name;
    std::function<void(Bytes*)> damage;
  } cases[] = {
      {"words of a pair swapped", [](Bytes* b) { Swap(b, 0, 4, 4); }},
      {"words of two pairs swapped", [](Bytes* b) { Swap(b, 4, 12, 4); }},
      {"pairs swapped", [](Bytes* b) { Swap(b, 8, 16, 8); }},
      {"pairs swapped across blocks", [](Bytes* b) { Swap(b, 8, 72, 8); }},
      {"blocks swapped", [](Bytes* b) { Swap(b, 64, 128, 64); }},
      {"rows swapped", [](Bytes* b) { Swap(b, 0, kRow, kRow); }},
      {"distant rows swapped", [](Bytes* b) { Swap(b, kRow, 63 * kRow, kRow); }},
      {"a row doubled", [](Bytes* b) { std::copy_n(b->begin(), kRow, b->begin() + kRow); }},
      {"shifted by a row", [](Bytes* b) { std::rotate(b->begin(), b->begin() + kRow, b->end()); }},
      {"a row cleared", [](Bytes* b) { std::fill_n(b->begin() + kRow, kRow, std::byte{0}); }},
      {"last half never written",
       [](Bytes* b) { std::fill(b->begin() + kPage / 2, b->end(), std::byte{0}); }},
      {"cut by a byte", [](Bytes* b) { b->pop_back(); }},
      {"cut by a row", [](Bytes* b) { b->resize(kPage - kRow); }},
      {"a zero byte added", [](Bytes* b) { b->push_back(std::byte{0}); }},
  };
  const PageTag tag{.lease = 1, .layer = 2, .page = 3};
  for (const auto& c : cases) {
    for (uint64_t seed : {1, 2, 3}) {
      const Bytes bytes = RandomBytes(kPage, seed);
      Bytes damaged = bytes;
      c.damage(&damaged);
      EXPECT_NE(PageChecksum(seed, tag, damaged), PageChecksum(seed, tag, bytes))
          << c.name << ", seed " << seed;
    }
  }
}

// Data like real KV of an untouched pool: all zero. What differs is then the length alone.
TEST(PageChecksum, NoticesTheLengthOfZeros) {
  std::set<uint64_t> seen;
  for (size_t size = 0; size <= 1024; ++size) {
    seen.insert(PageChecksum(4, {.lease = 1}, Bytes(size)));
  }
  EXPECT_EQ(seen.size(), 1025u);
}

TEST(PageChecksum, BelongsToOneKeyLeaseLayerAndPage) {
  const Bytes bytes = RandomBytes(kRow, 1);
  std::set<uint64_t> seen;
  size_t count = 0;
  for (uint64_t key : {0, 1, 2}) {
    for (uint64_t lease : {uint64_t{0}, uint64_t{1}, uint64_t{2}, uint64_t{1} << 32}) {
      for (uint32_t layer : {0, 1, 2}) {
        for (uint32_t page : {0, 1, 2}) {
          seen.insert(PageChecksum(key, {.lease = lease, .layer = layer, .page = page}, bytes));
          ++count;
        }
      }
    }
  }
  EXPECT_EQ(seen.size(), count);
}

// The bound of the header is for random key words; this looks at whether ours behave so: with
// 16-bit pieces of the sums, differing pages must collide once in 2^16, give or take chance.
TEST(PageChecksum, KeyWordsBehaveAsRandom) {
  Bytes bytes(64), other(64);  // zeros, and one bit: as close as two pages can be
  other[0] = std::byte{1};
  int collisions_first = 0, collisions_second = 0;
  constexpr int kTrials = 1 << 20;
  for (int key = 0; key < kTrials; ++key) {
    const PageKey word_key = ExpandKey(static_cast<uint64_t>(key));
    const PageSums a = PageSumKernels().back().sum(word_key, bytes);
    const PageSums b = PageSumKernels().back().sum(word_key, other);
    collisions_first += static_cast<uint16_t>(a.first - b.first) == 0;
    collisions_second += static_cast<uint16_t>(a.second - b.second) == 0;
  }
  // 16 wanted; outside this range about once in 10^5 for each.
  for (int collisions : {collisions_first, collisions_second}) {
    EXPECT_GE(collisions, 3);
    EXPECT_LE(collisions, 36);
  }
}

}  // namespace
}  // namespace sluice::transport
