// Keys and values of the cache as panels for matrix products, and products of a few rows without a panel in memory. See
// paged_attention.cpp. `ahead`, everywhere: rows to fetch meanwhile, one for each that is read.
#pragma once

#include "panels.h"

namespace lightvllm {
namespace {

typedef uint16_t u16x32 __attribute__((vector_size(64)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef int16_t i16x16 __attribute__((vector_size(32)));

// ---- numbers of the cache, as those of the queries: an int8 is exact in either type ---------------------------------

LIGHTVLLM_INLINE uint32_t bfloat16_bits(bf16 x) { return x.bits; }
LIGHTVLLM_INLINE uint32_t bfloat16_bits(int8_t x) { return __builtin_bit_cast(uint32_t, float(x)) >> 16; }

// WORDS four-byte words of numbers of type T. The cache's own type C is T, or int8.
template <class T, int WORDS, class C>
LIGHTVLLM_INLINE u32x16 load_words(const C* from) {
  if constexpr (std::is_same_v<T, C>) {
    u32x16 words = {};
    std::memcpy(&words, from, 4 * WORDS);
    return words;
  } else if constexpr (std::is_same_v<T, float>) {
    i8x16 values = {};
    std::memcpy(&values, from, WORDS);
    const i16x16 halfway = __builtin_convertvector(values, i16x16);  // GCC converts at once to four times the size one by one
    return (u32x16)__builtin_convertvector(__builtin_convertvector(halfway, i32x16), f32x16);
  } else {
    u16x16 pairs = {};
    std::memcpy(&pairs, from, 2 * WORDS);
    const u32x16 both = __builtin_convertvector(pairs, u32x16);
    const i32x16 first = (i32x16)(both << 24) >> 24, second = (i32x16)(both << 16) >> 24;
    return (u32x16)__builtin_convertvector(first, f32x16) >> 16 |
           ((u32x16)__builtin_convertvector(second, f32x16) & 0xffff0000u);
  }
}

// Fetches COUNT numbers of a row; in int8, what is behind them, too: at last the scale.
template <int COUNT, class C>
LIGHTVLLM_INLINE void fetch(const C* numbers) {
  __builtin_prefetch(numbers, 0, 2);
  if constexpr (std::is_same_v<C, int8_t>) __builtin_prefetch(numbers + COUNT, 0, 2);
}

// Sixteen rows of sixteen words -> sixteen columns. Each step exchanges the halves of pairs of rows.
LIGHTVLLM_INLINE void transpose(u32x16* x) {
  u32x16 y[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      const u32x16 a = y[i + j], b = y[i + j + 2];
      x[i + 2 * j] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      x[i + 2 * j + 1] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
  }  // x[4 * i + c], quarter q: word 4 * q + c of rows 4 * i to 4 * i + 3
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    const u32x16 a = __builtin_shufflevector(x[c], x[4 + c], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    const u32x16 b = __builtin_shufflevector(x[c], x[4 + c], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    const u32x16 d = __builtin_shufflevector(x[8 + c], x[12 + c], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    const u32x16 e = __builtin_shufflevector(x[8 + c], x[12 + c], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    y[c] = __builtin_shufflevector(a, d, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    y[8 + c] = __builtin_shufflevector(a, d, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    y[4 + c] = __builtin_shufflevector(b, e, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    y[12 + c] = __builtin_shufflevector(b, e, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) x[i] = y[i];
}

LIGHTVLLM_INLINE u16x32 interleave_low(u16x32 a, u16x32 b) {
  return __builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43,
                                 12, 44, 13, 45, 14, 46, 15, 47);
}

LIGHTVLLM_INLINE u16x32 interleave_high(u16x32 a, u16x32 b) {
  return __builtin_shufflevector(a, b, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58,
                                 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
}

// WORDS four-byte words of sixteen keys, from word `at` on, into their columns of a panel.
template <class T, int WORDS, class C>
LIGHTVLLM_INLINE void pack_key_words(const C* const* keys, const C* const* ahead, int64_t at, uint32_t* panel) {
  const int64_t offset = at * (4 / sizeof(T));
  u32x16 rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {
    rows[i] = load_words<T, WORDS>(keys[i] + offset);
    fetch<WORDS * 4 / sizeof(T)>(ahead[i] + offset);
  }
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < WORDS; i++) std::memcpy(panel + (at + i) * PANEL, &rows[i], sizeof(rows[i]));
}

// PANEL keys of one head -> [groups of dimensions, PANEL]. `ahead`: the rows to fetch meanwhile.
template <class T, class C>
LIGHTVLLM_INLINE void pack_keys(const C* const* keys, const C* const* ahead, int64_t head_dim, uint32_t* panel) {
  const int64_t words = head_dim * sizeof(T) / 4;
  for (int64_t key = 0; key < PANEL; key += 16) {
    int64_t at = 0;
    for (; at + 16 <= words; at += 16) pack_key_words<T, 16>(keys + key, ahead + key, at, panel + key);
    if (at < words) pack_key_words<T, 8>(keys + key, ahead + key, at, panel + key);
  }
}

// `count` dimensions of the values of some keys -> [groups of keys, PANEL].
template <class T, class C>
LIGHTVLLM_INLINE void pack_values(const C* const* values, const C* const* ahead, int64_t keys, int64_t count,
                                  uint32_t* panel) {
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t key = 0; key < keys; key++)
      for (int64_t d = 0; d < count; d += LANES) {
        const u32x16 words = load_words<T, 16>(values[key] + d);
        std::memcpy(panel + key * PANEL + d, &words, sizeof(words));
        fetch<LANES>(ahead[key] + d);
      }
  } else {
    for (int64_t key = 0; key < keys; key += 2) {
      uint32_t* to = panel + key / 2 * PANEL;
      int64_t d = 0;
      for (; d + 32 <= count; d += 32) {
        const u16x32 a = (u16x32)load_words<T, 16>(values[key] + d), b = (u16x32)load_words<T, 16>(values[key + 1] + d);
        fetch<32>(ahead[key] + d);
        fetch<32>(ahead[key + 1] + d);
        const u16x32 low = interleave_low(a, b), high = interleave_high(a, b);
        std::memcpy(to + d, &low, sizeof(low));
        std::memcpy(to + d + 16, &high, sizeof(high));
      }
      for (; d < count; d++) to[d] = bfloat16_bits(values[key][d]) | bfloat16_bits(values[key + 1][d]) << 16;
    }
  }
}

// ---- a few rows -----------------------------------------------------------------------------------------------------
// A decode has so few rows that laying a panel out in memory costs more than the products with it. Here it stays in
// registers. Sum for sum the same as a Pass over the panel, so bitwise the same, too. For bfloat16, where the processor
// multiplies it.

// The products for one number of rows, or none. Each writes sums[row, PANEL]. C: of the cache.
template <class C>
struct FewRows {
  // PANEL keys by queries [rows, head_dim].
  void (*scores)(const C* const* keys, const C* const* ahead, int64_t head_dim, const bf16* query, float* sums) = nullptr;
  // PANEL dimensions of `count` values by weights [rows, stride]. An odd count reads one more value, by a weight of zero.
  void (*values)(const C* const* values, const C* const* ahead, int64_t count, const bf16* weights, int64_t stride,
                 float* sums) = nullptr;
};

#if defined(__x86_64__)
// Adds what WORDS pairs of dimensions, from pair `at` on, give to the scores of sixteen keys.
template <int ROWS, int WORDS>
LIGHTVLLM_AVX512 LIGHTVLLM_INLINE void add_scores(const bf16* const* keys, const bf16* const* ahead, int64_t at,
                                                  Groups query, int64_t words, float* sums) {
  u32x16 pairs[16] = {};
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {
    std::memcpy(&pairs[i], keys[i] + 2 * at, 4 * WORDS);
    __builtin_prefetch(ahead[i] + 2 * at, 0, 2);
  }
  transpose(pairs);
  __m512 total[ROWS];
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) total[r] = at ? _mm512_loadu_ps(sums + r * PANEL) : _mm512_setzero_ps();
#pragma GCC unroll 16
  for (int i = 0; i < WORDS; i++)
    LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
      total[r] = _mm512_dpbf16_ps(total[r], (__m512bh)_mm512_set1_epi32(int32_t(query[r * words + at + i])), (__m512bh)pairs[i]);
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) _mm512_storeu_ps(sums + r * PANEL, total[r]);
}

template <int ROWS>
LIGHTVLLM_AVX512 void scores_of(const bf16* const* keys, const bf16* const* ahead, int64_t head_dim, const bf16* query,
                                float* sums) {
  const Groups pairs = reinterpret_cast<Groups>(query);
  const int64_t words = head_dim / 2;
  int64_t at = 0;
  for (; at + 16 <= words; at += 16)  // keys inside: their sums are chains side by side
    for (int64_t key = 0; key < PANEL; key += LANES)
      add_scores<ROWS, 16>(keys + key, ahead + key, at, pairs, words, sums + key);
  for (int64_t key = 0; key < PANEL && at < words; key += LANES)
    add_scores<ROWS, 8>(keys + key, ahead + key, at, pairs, words, sums + key);
}

template <int ROWS>
LIGHTVLLM_AVX512 void values_of(const bf16* const* values, const bf16* const* ahead, int64_t count, const bf16* weights,
                                int64_t stride, float* sums) {
  __m512 total[ROWS][VECTORS];
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) total[r][v] = _mm512_setzero_ps();
  for (int64_t key = 0; key < count; key += 2) {
    u16x32 a[2], b[2];
    std::memcpy(a, values[key], sizeof(a));
    std::memcpy(b, values[key + 1], sizeof(b));
    LIGHTVLLM_UNROLL for (int64_t line = 0; line < 2; line++) {
      __builtin_prefetch(ahead[key] + 32 * line, 0, 2);
      __builtin_prefetch(ahead[key + 1] + 32 * line, 0, 2);
    }
    const u16x32 pairs[VECTORS] = {interleave_low(a[0], b[0]), interleave_high(a[0], b[0]), interleave_low(a[1], b[1]),
                                   interleave_high(a[1], b[1])};
    LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
      uint32_t both;
      std::memcpy(&both, weights + r * stride + key, sizeof(both));
      const __m512bh weight = (__m512bh)_mm512_set1_epi32(int32_t(both));
      LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++)
        total[r][v] = _mm512_dpbf16_ps(total[r][v], weight, (__m512bh)pairs[v]);
    }
  }
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(sums + r * PANEL + v * LANES, total[r][v]);
}

// ---- of int8

#define LIGHTVLLM_VBMI __attribute__((target("arch=x86-64-v4,avx512bf16,avx512vnni,avx512vbmi")))

inline bool has_vbmi() {
  static const bool is_there = __builtin_cpu_supports("avx512vbmi");
  return is_there && has_avx512();
}

// Constants of the shuffles that widen int8. Two vectors of bytes are tables of 128.
struct Widening {
  alignas(64) uint8_t low[128], high[128];  // the two bytes of the bfloat16 numbers 0 to 127
  alignas(64) uint8_t keys[64];             // of four words of four bytes: the first pair of each, then the second
  alignas(64) uint8_t values[2][64];        // of 32 bytes of two rows: pairs of one each, such that `widen` sorts them

  constexpr Widening() : low(), high(), keys(), values() {
    for (int i = 0; i < 128; i++) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, float(i));
      low[i] = uint8_t(bits >> 16), high[i] = uint8_t(bits >> 24);
    }
    for (int i = 0; i < 64; i++) {
      const int lane = i / 16, pair = i % 8 / 2, is_second = i / 8 % 2, of_pair = i % 2;
      keys[i] = uint8_t(4 * pair + 2 * is_second + of_pair);
      for (int half = 0; half < 2; half++) values[half][i] = uint8_t(64 * of_pair + 32 * half + 16 * is_second + 4 * lane + pair);
    }
  }
};
inline constexpr Widening WIDENING;

// 64 integers as bfloat16: of each sixteen the first eight, and the other eight.
struct Widened {
  __m512i first, second;
};

LIGHTVLLM_VBMI LIGHTVLLM_INLINE Widened widen(__m512i x) {
  const __m512i size = _mm512_abs_epi8(x);
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(WIDENING.low), size, _mm512_load_si512(WIDENING.low + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(WIDENING.high), size, _mm512_load_si512(WIDENING.high + 64));
  const __m512i is_negative = _mm512_and_si512(x, _mm512_set1_epi8(-128));
  const __m512i top = _mm512_or_si512(high, is_negative);
  return {_mm512_unpacklo_epi8(low, top), _mm512_unpackhi_epi8(low, top)};
}

// Adds what WORDS times four dimensions, from word `at` on, give to the scores of PANEL keys. They are transposed as bytes,
// which is half the work, and widened as they are used.
template <int ROWS, int WORDS>
LIGHTVLLM_VBMI LIGHTVLLM_INLINE void add_scores(const int8_t* const* keys, const int8_t* const* ahead, int64_t at,
                                                Groups query, int64_t words, float* sums) {
  alignas(64) uint32_t bytes[WORDS * PANEL];
  for (int64_t key = 0; key < PANEL; key += LANES) {
    u32x16 rows[16] = {};
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      std::memcpy(&rows[i], keys[key + i] + 4 * at, 4 * WORDS);
      fetch<4 * WORDS>(ahead[key + i] + 4 * at);
    }
    transpose(rows);
#pragma GCC unroll 16
    for (int i = 0; i < WORDS; i++) std::memcpy(bytes + i * PANEL + key, &rows[i], sizeof(rows[i]));
  }
  const __m512i order = _mm512_load_si512(WIDENING.keys);
  __m512 total[ROWS][VECTORS];
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++)
      total[r][v] = at ? _mm512_loadu_ps(sums + r * PANEL + v * LANES) : _mm512_setzero_ps();
  for (int i = 0; i < WORDS; i++) {
    const Groups group = query + 2 * (at + i);
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) {
      const Widened pairs = widen(_mm512_shuffle_epi8(_mm512_load_si512(bytes + i * PANEL + v * LANES), order));
      LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
        const __m512i first = _mm512_set1_epi32(int32_t(group[r * words])), second = _mm512_set1_epi32(int32_t(group[r * words + 1]));
        total[r][v] = _mm512_dpbf16_ps(total[r][v], (__m512bh)pairs.first, (__m512bh)first);
        total[r][v] = _mm512_dpbf16_ps(total[r][v], (__m512bh)pairs.second, (__m512bh)second);
      }
    }
  }
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(sums + r * PANEL + v * LANES, total[r][v]);
}

template <int ROWS>
LIGHTVLLM_VBMI void scores_of(const int8_t* const* keys, const int8_t* const* ahead, int64_t head_dim, const bf16* query,
                              float* sums) {
  const Groups pairs = reinterpret_cast<Groups>(query);
  int64_t at = 0;
  for (; at + 16 <= head_dim / 4; at += 16) add_scores<ROWS, 16>(keys, ahead, at, pairs, head_dim / 2, sums);
  for (; at < head_dim / 4; at += 4) add_scores<ROWS, 4>(keys, ahead, at, pairs, head_dim / 2, sums);
}

template <int ROWS>
LIGHTVLLM_VBMI void values_of(const int8_t* const* values, const int8_t* const* ahead, int64_t count, const bf16* weights,
                              int64_t stride, float* sums) {
  const __m512i order[2] = {_mm512_load_si512(WIDENING.values[0]), _mm512_load_si512(WIDENING.values[1])};
  __m512 total[ROWS][VECTORS];
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) total[r][v] = _mm512_setzero_ps();
  for (int64_t key = 0; key < count; key += 2) {
    const __m512i a = _mm512_loadu_si512(values[key]), b = _mm512_loadu_si512(values[key + 1]);
    fetch<PANEL>(ahead[key]);
    fetch<PANEL>(ahead[key + 1]);
    LIGHTVLLM_UNROLL for (int half = 0; half < 2; half++) {
      const Widened pairs = widen(_mm512_permutex2var_epi8(a, order[half], b));
      LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
        uint32_t both;
        std::memcpy(&both, weights + r * stride + key, sizeof(both));
        const __m512bh weight = (__m512bh)_mm512_set1_epi32(int32_t(both));
        total[r][2 * half] = _mm512_dpbf16_ps(total[r][2 * half], weight, (__m512bh)pairs.first);
        total[r][2 * half + 1] = _mm512_dpbf16_ps(total[r][2 * half + 1], weight, (__m512bh)pairs.second);
      }
    }
  }
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(sums + r * PANEL + v * LANES, total[r][v]);
}

template <class C>
FewRows<C> few_rows(int64_t rows) {
  if constexpr (!std::is_same_v<C, float>) {
    if (std::is_same_v<C, int8_t> ? !has_vbmi() : !has_avx512()) return {};
    switch (rows) {
      case 1: return {scores_of<1>, values_of<1>};
      case 2: return {scores_of<2>, values_of<2>};
      case 3: return {scores_of<3>, values_of<3>};
      case 4: return {scores_of<4>, values_of<4>};
    }
  }
  return {};
}
#else
template <class C>
FewRows<C> few_rows(int64_t) { return {}; }
#endif

}  // namespace
}  // namespace lightvllm
