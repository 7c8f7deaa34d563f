// Compiled with AMX-BF16 and AVX512-BF16; the rules of kernels/cpu/simd/f32x16.h apply.
#include "kernels/cpu/amx_attention.h"
#include "kernels/cpu/simd/amx.h"
#include "kernels/cpu/simd/bf16_avx512.h"
#include "kernels/cpu/simd/transpose_avx512.h"

namespace sluice {
namespace {

using namespace simd_avx512;

inline int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline void StorePacked(__m512i (&pairs)[16], char* packed) {
  Transpose16x16(pairs);
  for (int i = 0; i < 16; ++i) _mm512_store_si512(packed + i * 64, pairs[i]);
}

inline void LoadGroup(const uint16_t* x, int64_t stride, int count, __m512i (&rows)[16]) {
  for (int i = 0; i < 16; ++i) {
    rows[i] = i < count ? _mm512_loadu_si512(x + i * stride) : _mm512_setzero_si512();
  }
}

// Even and odd rows' elements of a column side by side: columns 0-15 to `low`, 16-31 to `high`.
struct Interleaved {
  __m512i low, high;
};
inline Interleaved Interleave(__m512i even, __m512i odd) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  return {_mm512_permutex2var_epi16(even, low, odd), _mm512_permutex2var_epi16(even, high, odd)};
}

// 32 columns of 32 rows, as two packed tiles whose rows are the columns. Rows from `rows` on are
// zeros and are not read.
inline void PackColumns(const uint16_t* x, int64_t stride, int64_t rows, char* low, char* high) {
  for (int64_t row = 0; row < kAmxStep; row += 2) {
    const uint16_t* from = x + row * stride;
    const __m512i even = row < rows ? _mm512_loadu_si512(from) : _mm512_setzero_si512();
    const __m512i odd = row + 1 < rows ? _mm512_loadu_si512(from + stride) : _mm512_setzero_si512();
    const Interleaved pairs = Interleave(even, odd);
    _mm512_store_si512(low + row * 32, pairs.low);
    _mm512_store_si512(high + row * 32, pairs.high);
  }
}

void TileRows(const uint16_t* x, int64_t stride, int64_t rows, int64_t n, char* tiles) {
  for (int64_t group = 0; group < rows; group += kAmxEdge) {
    const int count = (int)Smaller(kAmxEdge, rows - group);
    for (int64_t c = 0; c < n; c += kAmxStep, tiles += kAmxTileBytes) {
      __m512i loaded[16];
      LoadGroup(x + group * stride + c, stride, count, loaded);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(tiles + i * 64, loaded[i]);
    }
  }
}

void PackBf16(const uint16_t* x, int64_t stride, int64_t rows, int64_t n, char* packed) {
  for (int64_t group = 0; group < rows; group += kAmxEdge) {
    const int count = (int)Smaller(kAmxEdge, rows - group);
    for (int64_t c = 0; c < n; c += kAmxStep, packed += kAmxTileBytes) {
      __m512i pairs[16];
      LoadGroup(x + group * stride + c, stride, count, pairs);
      StorePacked(pairs, packed);
    }
  }
}

// Along the rows, as they lie in memory.
void PackTranspose(const uint16_t* x, int64_t stride, int64_t rows, int64_t n, char* packed) {
  const int64_t group_bytes = rows / kAmxStep * kAmxTileBytes;
  for (int64_t row = 0; row < rows; row += 2) {
    const uint16_t* from = x + row * stride;
    char* to = packed + row / kAmxStep * kAmxTileBytes + row % kAmxStep * 32;
    for (int64_t c = 0; c < n; c += 32, to += 2 * group_bytes) {
      const Interleaved pairs =
          Interleave(_mm512_loadu_si512(from + c), _mm512_loadu_si512(from + stride + c));
      _mm512_store_si512(to, pairs.low);
      _mm512_store_si512(to + group_bytes, pairs.high);
    }
  }
}

void TransposeTile(const char* from, char* to) {
  __m512i words[16];
  for (int i = 0; i < 16; ++i) words[i] = _mm512_load_si512(from + i * 64);
  StorePacked(words, to);
}

inline void LoadGroup(const float* x, int64_t stride, int count, __m512i (&rows)[16]) {
  for (int i = 0; i < 16; ++i) {
    const float* from = x + i * stride;
    rows[i] = i < count ? RoundPair(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16))
                        : _mm512_setzero_si512();
  }
}

void TileRowsF32(const float* x, int64_t stride, int64_t rows, int64_t n, char* tiles) {
  for (int64_t group = 0; group < rows; group += kAmxEdge) {
    const int count = (int)Smaller(kAmxEdge, rows - group);
    for (int64_t c = 0; c < n; c += kAmxStep, tiles += kAmxTileBytes) {
      __m512i loaded[16];
      LoadGroup(x + group * stride + c, stride, count, loaded);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(tiles + i * 64, loaded[i]);
    }
  }
}

void PackF32(const float* x, int64_t stride, int64_t rows, int64_t n, char* packed) {
  for (int64_t group = 0; group < rows; group += kAmxEdge) {
    const int count = (int)Smaller(kAmxEdge, rows - group);
    for (int64_t c = 0; c < n; c += kAmxStep, packed += kAmxTileBytes) {
      __m512i pairs[16];
      LoadGroup(x + group * stride + c, stride, count, pairs);
      StorePacked(pairs, packed);
    }
  }
}

// Nothing to fetch.
struct NoPrefetch {
  void operator()(int64_t) const {}
};

// Fetches the groups of plain rows that come next while the present ones are multiplied: the
// hardware does not follow so many rows at once.
struct PrefetchRows {
  AmxRows rows;
  int64_t groups;
  void operator()(int64_t step) const {
    const char* at = rows.data + step * rows.step_bytes;
    for (int64_t row = 0; row < groups * kAmxEdge; ++row, at += rows.row_bytes) {
      _mm_prefetch(at, _MM_HINT_T0);
    }
  }
};

// Tiles 4, 5 hold a, 6, 7 b.
// Tiles 0-3 gain kA groups of a (0, 1 with the first, 2, 3 with the second) times kB groups of b,
// which lie b_group_bytes apart.
template <int kA, int kB, typename Prefetch = NoPrefetch>
inline void MultiplyTiles(const AmxRows& a, const char* b, int64_t b_group_bytes, int64_t steps,
                          Prefetch prefetch = {}) {
  FinishStores();
  const char* first = a.data;
  const char* second = a.data + a.group_bytes;
  for (int64_t step = 0; step < steps; ++step) {
    prefetch(step);
    _tile_loadd(4, first, a.row_bytes);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kB == 2) {
      _tile_loadd(7, b + b_group_bytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kA == 2) {
      _tile_loadd(5, second, a.row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kB == 2) _tile_dpbf16ps(3, 5, 7);
    }
    first += a.step_bytes;
    second += a.step_bytes;
    b += kAmxTileBytes;
  }
}

inline void ZeroSums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Sums of 32 rows by 32 columns, as floats.
inline void StoreSums(float* sums) {
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  _tile_stored(2, sums + 16 * 32, 128);
  _tile_stored(3, sums + 16 * 32 + 16, 128);
}

inline AmxRows FromGroup(const AmxRows& a, int64_t group) {
  return {a.data + group * a.group_bytes, a.row_bytes, a.step_bytes, a.group_bytes};
}

void Product(const AmxRows& a, int64_t rows_a, const char* b, int64_t rows_b, int64_t n,
             const AmxRows& out, int64_t rows) {
  alignas(64) float sums[32 * 32];
  const int64_t steps = n / kAmxStep;
  const int64_t group_bytes = steps * kAmxTileBytes;
  for (int64_t i = 0; i < rows_a; i += 32) {
    const AmxRows now = FromGroup(a, i / kAmxEdge);
    for (int64_t j = 0; j < rows_b; j += 32) {
      ZeroSums();
      if (rows_a - i == kAmxEdge) {
        MultiplyTiles<1, 2>(now, b + j / kAmxEdge * group_bytes, group_bytes, steps);
      } else {
        MultiplyTiles<2, 2>(now, b + j / kAmxEdge * group_bytes, group_bytes, steps);
      }
      StoreSums(sums);
      char* to = out.data + i / kAmxEdge * out.group_bytes + j / kAmxStep * out.step_bytes;
      for (int64_t row = 0; row < Smaller(32, rows - i); ++row) {
        const __m512i rounded =
            RoundPair(_mm512_load_ps(sums + row * 32), _mm512_load_ps(sums + row * 32 + 16));
        _mm512_store_si512(to + row / 16 * out.group_bytes + row % 16 * out.row_bytes, rounded);
      }
    }
  }
}

void ProductTransposed(const AmxRows& a, int64_t rows_a, const char* b, int64_t n, float* out,
                       int64_t stride_out, int64_t rows) {
  alignas(64) float sums[16 * 16];
  for (int64_t i = 0; i < rows_a; i += kAmxEdge) {
    _tile_zero(0);
    MultiplyTiles<1, 1>(FromGroup(a, i / kAmxEdge), b, 0, n / kAmxStep,
                        PrefetchRows{FromGroup(a, i / kAmxEdge + 1), i + kAmxEdge < rows_a});
    _tile_stored(0, sums, 64);
    __m512i turned[16];
    for (int row = 0; row < 16; ++row) turned[row] = _mm512_load_si512(sums + row * 16);
    Transpose16x16(turned);
    for (int64_t row = 0; row < rows; ++row) {
      _mm512_storeu_si512(out + row * stride_out + i, turned[row]);
    }
  }
}

// Elements of two vectors side by side, rounded to bf16.
inline __m512i PairUp(__m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, RoundPair(even, odd));
}

// Of 32 elements of bf16, those at even and at odd places.
inline __m512 Even(__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
inline __m512 Odd(__m512i x) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000)));
}

// kSteps steps of columns.
template <int kSteps>
void ProjectQuerySteps(const uint16_t* w, int64_t stride, int64_t rows, const float* x, char* out,
                       int64_t step_bytes) {
  __m512 even[kSteps], odd[kSteps];
  for (int s = 0; s < kSteps; ++s) even[s] = odd[s] = _mm512_setzero_ps();
  for (int64_t row = 0; row < rows; ++row, w += stride) {
    const __m512 factor = _mm512_set1_ps(x[row]);
    for (int s = 0; s < kSteps; ++s) {
      const __m512i pairs = _mm512_loadu_si512(w + s * kAmxStep);
      even[s] = _mm512_fmadd_ps(Even(pairs), factor, even[s]);
      odd[s] = _mm512_fmadd_ps(Odd(pairs), factor, odd[s]);
    }
  }
  for (int s = 0; s < kSteps; ++s) {
    _mm512_store_si512(out + s * step_bytes, PairUp(even[s], odd[s]));
  }
}

void ProjectQuery(const uint16_t* w, int64_t stride, int64_t rows, int64_t n, const float* x,
                  char* out, int64_t step_bytes) {
  constexpr int kSteps = 8;
  int64_t c = 0;
  for (; c + kSteps * kAmxStep <= n; c += kSteps * kAmxStep, out += kSteps * step_bytes) {
    ProjectQuerySteps<kSteps>(w + c, stride, rows, x, out, step_bytes);
  }
  for (; c + 4 * kAmxStep <= n; c += 4 * kAmxStep, out += 4 * step_bytes) {
    ProjectQuerySteps<4>(w + c, stride, rows, x, out, step_bytes);
  }
  for (; c < n; c += kAmxStep, out += step_bytes) {
    ProjectQuerySteps<1>(w + c, stride, rows, x, out, step_bytes);
  }
}

void ProjectOutput(const uint16_t* w, int64_t stride, int64_t rows, int64_t n, const char* x,
                   int64_t step_bytes, float* out) {
  constexpr int kRows = 4;
  for (int64_t row = 0; row < rows; row += kRows) {  // a multiple of 16
    __m512 even[kRows], odd[kRows];
    for (int r = 0; r < kRows; ++r) even[r] = odd[r] = _mm512_setzero_ps();
    for (int64_t c = 0; c < n; c += kAmxStep) {
      const __m512i factors = _mm512_load_si512(x + c / kAmxStep * step_bytes);
      for (int r = 0; r < kRows; ++r) {
        const __m512i pairs = _mm512_loadu_si512(w + (row + r) * stride + c);
        even[r] = _mm512_fmadd_ps(Even(pairs), Even(factors), even[r]);
        odd[r] = _mm512_fmadd_ps(Odd(pairs), Odd(factors), odd[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) out[row + r] = Sum(F32x16{_mm512_add_ps(even[r], odd[r])});
  }
}

// 2^x for x <= 0, to 1e-4 relative: more than bf16 weights can tell. At least 2^-100, also for
// minus infinity and NaN.
inline __m512 Exp2(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.0550087f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.2422106f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6932829f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// One block of the running softmax of 16 lanes: scores [row][kStride] become weights, packed.
// Returns the factor by which everything summed so far shrinks.
template <int kStride>
__m512 Softmax(const float* scores, int64_t rows, float scale, float* largest, float* sums,
               char* weights) {
  __m512 max[4];
  for (__m512& lanes : max) lanes = _mm512_set1_ps(-__builtin_inff());
  for (int64_t row = 0; row < rows; row += 4) {
    for (int i = 0; i < 4; ++i) {
      max[i] = _mm512_max_ps(max[i], _mm512_load_ps(scores + (row + i) * kStride));
    }
  }
  const __m512 factor = _mm512_set1_ps(scale * 1.44269504f);
  const __m512 block_max =
      _mm512_max_ps(_mm512_max_ps(max[0], max[1]), _mm512_max_ps(max[2], max[3]));
  const __m512 old_largest = _mm512_loadu_ps(largest);
  const __m512 new_largest = _mm512_max_ps(_mm512_mul_ps(block_max, factor), old_largest);
  const __m512 shrink = Exp2(_mm512_sub_ps(old_largest, new_largest));

  __m512 sum_even = _mm512_setzero_ps();
  __m512 sum_odd = _mm512_setzero_ps();
  for (int64_t row = 0; row < rows; row += 2, weights += 64) {
    const float* from = scores + row * kStride;
    const __m512 even = Exp2(_mm512_fmsub_ps(_mm512_load_ps(from), factor, new_largest));
    const __m512 odd = Exp2(_mm512_fmsub_ps(_mm512_load_ps(from + kStride), factor, new_largest));
    sum_even = _mm512_add_ps(sum_even, even);
    sum_odd = _mm512_add_ps(sum_odd, odd);
    _mm512_store_si512(weights, PairUp(even, odd));
  }
  const __m512 block_sum = _mm512_add_ps(sum_even, sum_odd);
  _mm512_storeu_ps(largest, new_largest);
  _mm512_storeu_ps(sums, _mm512_fmadd_ps(_mm512_loadu_ps(sums), shrink, block_sum));
  return shrink;
}

inline bool AllOnes(__m512 x) {
  return _mm512_cmp_ps_mask(x, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ) == 0;
}

// --- Prompts ---

// Scores that a query must not see become minus infinity.
void MaskPrompt(const AmxPromptBlock& block, int64_t rows) {
  const __m512 minus_infinity = _mm512_set1_ps(-__builtin_inff());
  const int64_t first = block.first_query + 1 > 0 ? block.first_query + 1 : 0;
  for (int64_t row = first; row < rows; ++row) {
    const int64_t hidden = Smaller(row - block.first_query, 32);  // so many first queries
    const uint32_t mask = hidden == 32 ? ~0u : (1u << hidden) - 1;
    float* scores = block.scores + row * 32;
    _mm512_mask_store_ps(scores, (__mmask16)mask, minus_infinity);
    _mm512_mask_store_ps(scores + 16, (__mmask16)(mask >> 16), minus_infinity);
  }
}

void AttendPrompt(const AmxPromptBlock& block) {
  constexpr int64_t kGroupBytes = kAmxBlock / kAmxStep * kAmxTileBytes;
  const int64_t key_steps = block.key_dim / kAmxStep;
  // What the last of the queries sees, in whole steps.
  const int64_t seen = Smaller(block.positions, block.first_query + 32);
  const int64_t rows = (seen + kAmxStep - 1) / kAmxStep * kAmxStep;
  const AmxRows keys = TiledRows((char*)block.keys, key_steps);
  for (int64_t row = 0; row < rows; row += 32) {
    ZeroSums();
    MultiplyTiles<2, 2>(FromGroup(keys, row / kAmxEdge), block.queries, key_steps * kAmxTileBytes,
                        key_steps);
    StoreSums(block.scores + row * 32);
  }
  MaskPrompt(block, rows);
  for (int group = 0; group < 2; ++group) {
    const __m512 shrink = Softmax<32>(
        block.scores + group * 16, rows, block.scale, block.softmax.largest + group * 16,
        block.softmax.sums + group * 16, block.weights + group * kGroupBytes);
    if (AllOnes(shrink)) continue;
    float* outputs = block.outputs + group * block.value_dim * 16;
    for (int64_t v = 0; v < block.value_dim; ++v) {
      _mm512_store_ps(outputs + v * 16, _mm512_mul_ps(_mm512_load_ps(outputs + v * 16), shrink));
    }
  }
  const AmxRows values = TiledRows((char*)block.values, kAmxBlock / kAmxStep);
  float* outputs2 = block.outputs + block.value_dim * 16;
  for (int64_t v = 0; v < block.value_dim; v += 32) {
    FinishStores();
    _tile_loadd(0, block.outputs + v * 16, 64);
    _tile_loadd(1, outputs2 + v * 16, 64);
    _tile_loadd(2, block.outputs + (v + 16) * 16, 64);
    _tile_loadd(3, outputs2 + (v + 16) * 16, 64);
    MultiplyTiles<2, 2>(FromGroup(values, v / kAmxEdge), block.weights, kGroupBytes,
                        rows / kAmxStep);
    _tile_stored(0, block.outputs + v * 16, 64);
    _tile_stored(1, outputs2 + v * 16, 64);
    _tile_stored(2, block.outputs + (v + 16) * 16, 64);
    _tile_stored(3, outputs2 + (v + 16) * 16, 64);
  }
}

void FinishPrompt(const float* outputs, const float* sums, int64_t value_dim, int64_t queries,
                  float* out, int64_t stride_out) {
  const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_loadu_ps(sums));
  for (int64_t v = 0; v < value_dim; v += 16) {
    __m512i rows[16];
    for (int i = 0; i < 16; ++i) {
      rows[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(outputs + (v + i) * 16), factor));
    }
    Transpose16x16(rows);
    for (int64_t query = 0; query < queries; ++query) {
      _mm512_storeu_si512(out + query * stride_out + v, rows[query]);
    }
  }
}

// --- Absorbed ---

// Scores of one page's rows, whole groups of 16; fetches the first rows of `next`, if there is one.
void LatentScores(const AmxLatentBlock& block, int64_t page, int64_t groups, const uint16_t* next,
                  float* scores) {
  const int64_t steps = block.kv_dim / kAmxStep;
  const AmxRows rows = PlainRows(block.pages[page], block.kv_dim);
  for (int64_t group = 0; group < groups; group += 2) {
    _tile_zero(0);
    _tile_zero(2);
    PrefetchRows prefetch = {FromGroup(rows, group + 2), groups - group > 2 ? 2 : 0};
    if (groups - group <= 2 && next != nullptr) prefetch = {PlainRows(next, block.kv_dim), 2};
    if (groups - group >= 2) {
      MultiplyTiles<2, 1>(FromGroup(rows, group), block.queries, 0, steps, prefetch);
      _tile_stored(2, scores + (group + 1) * 256, 64);
    } else {
      MultiplyTiles<1, 1>(FromGroup(rows, group), block.queries, 0, steps, prefetch);
    }
    _tile_stored(0, scores + group * 256, 64);
  }
}

void AttendLatents(const AmxLatentBlock& block) {
  const int64_t steps = (block.positions + kAmxStep - 1) / kAmxStep;
  const int64_t rows = steps * kAmxStep;
  for (int64_t begin = 0; begin < block.positions; begin += 64) {
    const int64_t count = Smaller(64, block.positions - begin);
    const uint16_t* next =
        begin + 64 < block.positions ? block.pages[begin / 64 + 1] : block.next_page;
    LatentScores(block, begin / 64, (count + 15) / 16, next, block.scores + begin * 16);
  }
  for (int64_t row = block.positions; row < rows; ++row) {
    _mm512_store_ps(block.scores + row * 16, _mm512_set1_ps(-__builtin_inff()));
  }
  const __m512 shrink = Softmax<16>(block.scores, rows, block.scale, block.softmax.largest,
                                    block.softmax.sums, block.weights);
  for (int64_t step = 0; step < steps; ++step) {
    char* tile = block.weights + step * kAmxTileBytes;
    TransposeTile(tile, tile);
  }
  if (!AllOnes(shrink)) {
    alignas(64) float factors[16];
    _mm512_store_ps(factors, shrink);
    for (int64_t i = 0; i < block.kv_lora_rank; ++i) {  // rows of 16: head i % 16
      float* outputs = block.outputs + i * 16;
      _mm512_store_ps(outputs,
                      _mm512_mul_ps(_mm512_load_ps(outputs), _mm512_set1_ps(factors[i % 16])));
    }
  }
  const AmxRows weights = TiledRows(block.weights, steps);
  const int64_t group_bytes = steps * kAmxTileBytes;
  for (int64_t c = 0; c < block.kv_lora_rank; c += 32) {
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t row = step * kAmxStep;
      char* tile = block.latents + step * kAmxTileBytes;
      PackColumns(block.pages[row / 64] + row % 64 * block.kv_dim + c, block.kv_dim,
                  block.positions - row, tile, tile + group_bytes);
    }
    float* outputs = block.outputs + c * 16;
    FinishStores();
    _tile_loadd(0, outputs, 64);
    _tile_loadd(1, outputs + 256, 64);
    MultiplyTiles<1, 2>(weights, block.latents, group_bytes, steps);
    _tile_stored(0, outputs, 64);
    _tile_stored(1, outputs + 256, 64);
  }
}

void FinishLatents(const float* outputs, const float* sums, int64_t kv_lora_rank, int64_t heads,
                   char* out, int64_t head_bytes, int64_t step_bytes) {
  for (int64_t head = 0; head < heads; ++head) {
    const __m512 factor = _mm512_set1_ps(1.0f / sums[head]);
    for (int64_t step = 0; step < kv_lora_rank / kAmxStep; ++step) {
      const float* from = outputs + step * 512 + head * 16;
      const __m512i rounded = RoundPair(_mm512_mul_ps(_mm512_load_ps(from), factor),
                                        _mm512_mul_ps(_mm512_load_ps(from + 256), factor));
      _mm512_store_si512(out + head * head_bytes + step * step_bytes, rounded);
    }
  }
}

}  // namespace

const AmxAttentionKernels& GetAmxAttentionKernels() {
  static constexpr AmxAttentionKernels kKernels = {
      ConfigureTiles, ReleaseTiles,  TileRows,      TileRowsF32,       PackBf16,     PackF32,
      PackTranspose,  TransposeTile, Product,       ProductTransposed, ProjectQuery, ProjectOutput,
      AttendPrompt,   FinishPrompt,  AttendLatents, FinishLatents};
  return kKernels;
}

}  // namespace sluice
