// See quantized_linear.cpp. For each group of inputs a pass sums products of integers, which is exact in any order, and
// scales the sums into floats, group after group: a row's result is the same whatever rows stand beside it.
#include "amx.h"

namespace lightvllm {
namespace {

// How a panel holds its values: as bytes, or as halves of bytes, which may be indices into a codebook.
enum Kind { BYTES, HALVES, CODES };

// From more rows on it pays to make bytes of a panel's halves once for all passes.
constexpr int64_t WIDENED_ROWS = 128;

// ---- any processor

void plain_widen(const Panel& halves, uint8_t* bytes) {
  constexpr int64_t SIZE = PANEL * QUAD;
  uint8_t table[16];
  for (int i = 0; i < 16; i++) table[i] = halves.codebook ? halves.codebook[i] : i;
  for (int64_t pair = 0; pair < halves.quads / 2; pair++) {
    const uint8_t* both = halves.values + pair * SIZE;
    for (int64_t i = 0; i < SIZE; i++) bytes[2 * pair * SIZE + i] = table[both[i] & 15];
    for (int64_t i = 0; i < SIZE; i++) bytes[(2 * pair + 1) * SIZE + i] = table[both[i] >> 4];
  }
}

void plain_pass(int64_t rows, const RoundedRows& x, const Panel& panel, const Prefetch&, float* sums) {
  for (int64_t r = 0; r < rows; r++, sums += PANEL) {
    std::memset(sums, 0, PANEL * sizeof(float));
    for (int64_t g = 0; g < panel.groups; g++) {
      const int32_t* zeros = panel.zeros ? panel.zeros + g * PANEL : nullptr;
      const int32_t x_sum = x.sums[r * panel.groups + g];
      int32_t total[PANEL];
      for (int64_t n = 0; n < PANEL; n++) total[n] = -x_sum * (zeros ? zeros[n] : panel.zero);
      for (int64_t quad = panel.first_quad(g); quad < panel.last_quad(g); quad++) {
        const uint8_t* weight = panel.values + quad * PANEL * QUAD;
        const int8_t* input = x.values + r * x.stride + quad * QUAD;
        for (int64_t n = 0; n < PANEL; n++)
          for (int64_t i = 0; i < QUAD; i++) total[n] += weight[n * QUAD + i] * input[i];
      }
      const float scale = x.scales[r * panel.groups + g];
      for (int64_t n = 0; n < PANEL; n++) sums[n] += float(total[n]) * (panel.scales[g * PANEL + n] * scale);
    }
  }
}

#if defined(__x86_64__)

LIGHTVLLM_INLINE int32_t quad_of(const RoundedRows& x, int64_t row, int64_t quad) {
  int32_t bytes;
  std::memcpy(&bytes, x.values + row * x.stride + quad * QUAD, sizeof(bytes));
  return bytes;
}

// ---- AVX2 -----------------------------------------------------------------------------------------------------------
// vpmaddubsw multiplies unsigned by signed bytes and adds two products in 16 bits. Those hold products of bytes once a
// weight, less MIDDLE, has given its sign to the input (2 * 128 * 127), and of halves from HALF_QUADS quads (2 * 15 * 127
// from each).

constexpr int32_t MIDDLE = 128;
constexpr int64_t HALF_QUADS = 8;

// Adds the products of eight outputs' bytes with a quad of each row.
template <int ROWS, int WIDTH>
LIGHTVLLM_AVX2 LIGHTVLLM_INLINE void add_bytes(__m256i weight, const RoundedRows& x, int64_t quad, int v,
                                               __m256i (&total)[ROWS][WIDTH]) {
  weight = _mm256_xor_si256(weight, _mm256_set1_epi8(-128));  // less MIDDLE
  const __m256i size = _mm256_abs_epi8(weight);
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
    const __m256i input = _mm256_sign_epi8(_mm256_set1_epi32(quad_of(x, r, quad)), weight);
    const __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(size, input), _mm256_set1_epi16(1));
    total[r][v] = _mm256_add_epi32(total[r][v], sums);
  }
}

// Adds the products of at most HALF_QUADS quads of halves.
template <int ROWS, int WIDTH>
LIGHTVLLM_AVX2 LIGHTVLLM_INLINE void add_halves(const uint8_t* values, const RoundedRows& x, int64_t quad, int64_t end,
                                                __m256i (&total)[ROWS][WIDTH]) {
  const __m256i low = _mm256_set1_epi8(15);
  __m256i part[ROWS][WIDTH] = {};
  for (; quad < end; quad += 2) {
    LIGHTVLLM_UNROLL for (int v = 0; v < WIDTH; v++) {
      const __m256i both = _mm256_loadu_si256((const __m256i*)(values + quad / 2 * PANEL * QUAD + v * 32));
      const __m256i first = _mm256_and_si256(both, low), second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
      LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
        const __m256i one = _mm256_maddubs_epi16(first, _mm256_set1_epi32(quad_of(x, r, quad)));
        const __m256i two = _mm256_maddubs_epi16(second, _mm256_set1_epi32(quad_of(x, r, quad + 1)));
        part[r][v] = _mm256_add_epi16(part[r][v], _mm256_add_epi16(one, two));
      }
    }
  }
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
    LIGHTVLLM_UNROLL for (int v = 0; v < WIDTH; v++)
      total[r][v] = _mm256_add_epi32(total[r][v], _mm256_madd_epi16(part[r][v], _mm256_set1_epi16(1)));
}

// As many sums at a time as sixteen registers hold.
template <Kind KIND, int ROWS>
LIGHTVLLM_AVX2 void avx2_rows(const RoundedRows& x, const Panel& panel, const Prefetch& ahead, float* sums) {
  const char* from = ahead.from;
  constexpr int SIZE = 8, WIDTH = ROWS == 1 ? 8 : ROWS == 2 ? 4 : ROWS <= 4 ? 2 : 1;
  constexpr int64_t STEP = KIND == BYTES ? 1 : KIND == CODES ? 2 : HALF_QUADS;
  const __m256i low = _mm256_set1_epi8(15);
  __m256i table = {};
  if (KIND == CODES) table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)panel.codebook));
  for (int64_t start = 0; start < PANEL; start += WIDTH * SIZE) {
    for (int64_t g = 0; g < panel.groups; g++) {
      __m256i total[ROWS][WIDTH];
      LIGHTVLLM_UNROLL for (int v = 0; v < WIDTH; v++) {
        __m256i zero = _mm256_set1_epi32(panel.zero);
        if (panel.zeros) zero = _mm256_loadu_si256((const __m256i*)(panel.zeros + g * PANEL + start + v * SIZE));
        if (KIND != HALVES) zero = _mm256_sub_epi32(zero, _mm256_set1_epi32(MIDDLE));
        LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
          total[r][v] = _mm256_mullo_epi32(zero, _mm256_set1_epi32(-x.sums[r * panel.groups + g]));
      }
      const int64_t end = panel.last_quad(g);
      for (int64_t quad = panel.first_quad(g); quad < end; quad += STEP) {
        const int64_t steps = KIND == HALVES ? (std::min(STEP, end - quad) + 1) / 2 : 1;
        for (int64_t line = 0; start == 0 && line < ahead.lines * steps; line++)
          _mm_prefetch(from + line * 64, _MM_HINT_T1);
        from += ahead.step * steps;
        const uint8_t* values = panel.values + start * QUAD;
        if constexpr (KIND == HALVES) {
          add_halves(values, x, quad, std::min(quad + STEP, end), total);
        } else {
          LIGHTVLLM_UNROLL for (int v = 0; v < WIDTH; v++) {
            const __m256i both = _mm256_loadu_si256((const __m256i*)(values + quad / STEP * PANEL * QUAD + v * 32));
            if constexpr (KIND == CODES) {
              const __m256i first = _mm256_and_si256(both, low), second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
              add_bytes(_mm256_shuffle_epi8(table, first), x, quad, v, total);
              add_bytes(_mm256_shuffle_epi8(table, second), x, quad + 1, v, total);
            } else {
              add_bytes(both, x, quad, v, total);
            }
          }
        }
      }
      LIGHTVLLM_UNROLL for (int v = 0; v < WIDTH; v++) {
        const __m256 scale = _mm256_loadu_ps(panel.scales + g * PANEL + start + v * SIZE);
        LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
          float* sum = sums + r * PANEL + start + v * SIZE;
          const __m256 by = _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[r * panel.groups + g]));
          const __m256 before = g ? _mm256_loadu_ps(sum) : _mm256_setzero_ps();
          _mm256_storeu_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[r][v]), by, before));
        }
      }
    }
  }
}

template <Kind KIND>
void avx2_pass(int64_t rows, const RoundedRows& x, const Panel& panel, const Prefetch& ahead, float* sums) {
  with_rows(rows, [&]<int ROWS>() { avx2_rows<KIND, ROWS>(x, panel, ahead, sums); });
}

// ---- AVX-512 with VNNI ----------------------------------------------------------------------------------------------

// sum + the dot products of four unsigned by four signed bytes. GCC 12 copies the sums around its own intrinsic.
LIGHTVLLM_AVX512 LIGHTVLLM_INLINE void add_dot(__m512i& sum, __m512i weight, __m512i input) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(input));
}

// The bytes that 64 bytes hold, or one of the two quads that 64 bytes of halves stand for, the FIRST or the second.
template <Kind KIND, bool FIRST>
LIGHTVLLM_AVX512 LIGHTVLLM_INLINE __m512i bytes_of(const uint8_t* values, __m512i table) {
  __m512i bytes = _mm512_loadu_si512(values);
  if (KIND == BYTES) return bytes;
  if (!FIRST) bytes = _mm512_srli_epi16(bytes, 4);
  bytes = _mm512_and_si512(bytes, _mm512_set1_epi8(15));
  return KIND == CODES ? _mm512_shuffle_epi8(table, bytes) : bytes;
}

LIGHTVLLM_AVX512 LIGHTVLLM_INLINE __m512i table_of(const Panel& panel) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)panel.codebook));
}

template <Kind KIND>
LIGHTVLLM_AVX512 void avx512_widen(const Panel& halves, uint8_t* bytes) {
  constexpr int64_t SIZE = PANEL * QUAD;
  const __m512i table = KIND == CODES ? table_of(halves) : __m512i{};
  for (int64_t pair = 0; pair < halves.quads / 2; pair++) {
    LIGHTVLLM_UNROLL for (int64_t i = 0; i < SIZE; i += 64) {
      _mm512_storeu_si512(bytes + 2 * pair * SIZE + i, bytes_of<KIND, true>(halves.values + pair * SIZE + i, table));
      _mm512_storeu_si512(bytes + (2 * pair + 1) * SIZE + i, bytes_of<KIND, false>(halves.values + pair * SIZE + i, table));
    }
  }
}

// Adds the products of the panel's outputs with one quad of each row.
template <Kind KIND, bool FIRST, int ROWS>
LIGHTVLLM_AVX512 LIGHTVLLM_INLINE void add_quad(const uint8_t* values, __m512i table, const RoundedRows& x, int64_t quad,
                                                __m512i (&total)[ROWS][VECTORS]) {
  __m512i weight[VECTORS];
  LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) weight[v] = bytes_of<KIND, FIRST>(values + v * 64, table);
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
    const __m512i input = _mm512_set1_epi32(quad_of(x, r, quad));
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) add_dot(total[r][v], weight[v], input);
  }
}

template <Kind KIND, int ROWS, int LINES>
LIGHTVLLM_AVX512 void avx512_rows(const RoundedRows& x, const Panel& panel, const Prefetch& ahead, float* sums) {
  const char* from = ahead.from;
  const int64_t step = ahead.step;
  constexpr int64_t STEP = KIND == BYTES ? 1 : 2;
  const __m512i table = KIND == CODES ? table_of(panel) : __m512i{};
  for (int64_t g = 0; g < panel.groups; g++) {
    __m512i total[ROWS][VECTORS];
    LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
      const int32_t x_sum = -x.sums[r * panel.groups + g];
      LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) {
        total[r][v] = _mm512_set1_epi32(x_sum * panel.zero);
        if (panel.zeros)
          total[r][v] = _mm512_mullo_epi32(_mm512_set1_epi32(x_sum), _mm512_loadu_si512(panel.zeros + g * PANEL + v * LANES));
      }
    }
    const int64_t end = panel.last_quad(g);
    for (int64_t quad = panel.first_quad(g); quad < end; quad += STEP) {
      LIGHTVLLM_UNROLL for (int line = 0; line < LINES; line++) _mm_prefetch(from + line * 64, _MM_HINT_T1);
      from += step;
      const uint8_t* values = panel.values + quad / STEP * PANEL * QUAD;
      add_quad<KIND, true>(values, table, x, quad, total);
      if (KIND != BYTES) add_quad<KIND, false>(values, table, x, quad + 1, total);
    }
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) {
      const __m512 scale = _mm512_loadu_ps(panel.scales + g * PANEL + v * LANES);
      LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
        float* sum = sums + r * PANEL + v * LANES;
        const __m512 by = _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[r * panel.groups + g]));
        const __m512 before = g ? _mm512_loadu_ps(sum) : _mm512_setzero_ps();
        _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[r][v]), by, before));
      }
    }
  }
}

template <Kind KIND>
void avx512_pass(int64_t rows, const RoundedRows& x, const Panel& panel, const Prefetch& ahead, float* sums) {
  with_rows(rows, [&]<int ROWS>() {
    if (ahead.lines >= 4) return avx512_rows<KIND, ROWS, 4>(x, panel, ahead, sums);
    if (ahead.lines >= 2) return avx512_rows<KIND, ROWS, 2>(x, panel, ahead, sums);
    avx512_rows<KIND, ROWS, 1>(x, panel, ahead, sums);
  });
}
#endif

}  // namespace

QuantizedKernel quantized_kernel(int64_t rows, int64_t bits, bool has_codebook) {
  const Kind kind = bits == 8 ? BYTES : has_codebook ? CODES : HALVES;
#if defined(__x86_64__)
  if (has_avx512()) {
    const auto widen = kind == BYTES ? nullptr : kind == CODES ? avx512_widen<CODES> : avx512_widen<HALVES>;
    if (isa() >= Isa::AMX && rows > MAX_ROWS) return {amx_quantized_pass, widen, AMX_ROWS};
    if (rows > WIDENED_ROWS) return {avx512_pass<BYTES>, widen};
    return {kind == BYTES ? avx512_pass<BYTES> : kind == CODES ? avx512_pass<CODES> : avx512_pass<HALVES>};
  }
  if (isa() >= Isa::AVX2) return {kind == BYTES ? avx2_pass<BYTES> : kind == CODES ? avx2_pass<CODES> : avx2_pass<HALVES>};
#endif
  return {plain_pass, kind == BYTES ? nullptr : plain_widen};
}

}  // namespace lightvllm
