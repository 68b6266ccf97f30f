// Matrix products with 8- and 4-bit weights: inputs are rounded to 8 bits, a scale for each row, products and sums are
// of integers, and each group of inputs is scaled back on its own.
// Reference twin: lightvllm/kernels/reference.py:quantized_linear; test: tests/kernels/test_quantized_linear.py.
//
// Weights are unsigned integers q with a zero point z and a scale s for each output and group of inputs: w = s (q - z).
// So sum(w x) = s t (sum(q p) - z sum(p)) with the inputs x = t p: the zero point costs one product a group, and the dot
// products of unsigned by signed bytes that processors have are exact. As in linear.cpp nothing depends on the batch.
//
// Layout: panels of 64 outputs; four neighbouring inputs (a quad) of all its outputs lie together, as one byte each, or
// as two quads in the low and high half of the bytes.
#include <cmath>
#include <vector>

#include "panels.h"

namespace lightvllm {

constexpr int64_t QUAD = 4;

// The inputs of a product, rounded: x[row, i] = scales[row] * values[row, i].
struct RoundedRows {
  std::vector<int8_t> values;  // [rows, quads * QUAD]
  std::vector<float> scales;   // [rows]
  std::vector<int32_t> sums;   // [rows, groups]
};

template <class T>
LIGHTVLLM_INLINE void round_row(const T* x, int64_t inputs, int64_t quads, int64_t quads_per_group, int8_t* values,
                                float* scale, int32_t* sums) {
  f32x16 largest = {};
  int64_t i = 0;
  for (; i + LANES <= inputs; i += LANES) {
    f32x16 v = load(x + i);
    largest = maximum(largest, maximum(v, -v));
  }
  float peak = 0;
  for (int64_t lane = 0; lane < LANES; lane++) peak = std::max(peak, largest[lane]);
  for (; i < inputs; i++) peak = std::max(peak, std::abs(to_float(x[i])));
  *scale = peak / 127;
  const float inverse = peak > 0 ? 127 / peak : 0;
  const f32x16 shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  for (i = 0; i + LANES <= inputs; i += LANES) {
    f32x16 rounded = (load(x + i) * inverse + shift) - shift;
    typedef int8_t i8x16 __attribute__((vector_size(16)));
    i8x16 bytes = __builtin_convertvector(__builtin_convertvector(rounded, i32x16), i8x16);
    std::memcpy(values + i, &bytes, sizeof(bytes));
  }
  for (; i < inputs; i++) values[i] = int8_t(std::nearbyint(to_float(x[i]) * inverse));
  for (; i < quads * QUAD; i++) values[i] = 0;
  for (int64_t start = 0, g = 0; start < quads * QUAD; start += quads_per_group * QUAD, g++) {
    int32_t sum = 0;
    const int64_t end = std::min(start + quads_per_group * QUAD, quads * QUAD);
    for (int64_t j = start; j < end; j++) sum += values[j];
    sums[g] = sum;
  }
}

// A weight's panel and what its integers mean.
struct Panel {
  const uint8_t* values;  // [quads, PANEL, QUAD], or half of it
  const float* scales;    // [groups, PANEL]
  const int32_t* zeros;   // [groups, PANEL], or none: `zero` for all
  int32_t zero;
  int64_t quads, quads_per_group;
};

// sums[row, PANEL] = the rows by the panel, but for the rows' own scales.
typedef void (*QuantizedPass)(int64_t rows, const int8_t* x, int64_t x_stride, const int32_t* x_sums, int64_t groups,
                              const Panel& panel, Prefetch ahead, float* sums);

// Widens two quads of a panel's 16 outputs from one vector of halves.
template <int BITS>
LIGHTVLLM_INLINE uint8_t plain_value(const uint8_t* values, int64_t quad, int64_t output, int64_t i) {
  if (BITS == 8) return values[(quad * PANEL + output) * QUAD + i];
  const uint8_t byte = values[(quad / 2 * PANEL + output) * QUAD + i];
  return quad % 2 ? byte >> 4 : byte & 15;
}

template <int BITS>
LIGHTVLLM_INLINE void plain_quantized(int64_t rows, const int8_t* x, int64_t x_stride, const int32_t* x_sums,
                                      int64_t groups, const Panel& panel, float* sums) {
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t n = 0; n < PANEL; n++) {
      float total = 0;
      for (int64_t g = 0; g < groups; g++) {
        const int32_t zero = panel.zeros ? panel.zeros[g * PANEL + n] : panel.zero;
        int32_t sum = -zero * x_sums[r * groups + g];
        const int64_t end = std::min((g + 1) * panel.quads_per_group, panel.quads);
        for (int64_t quad = g * panel.quads_per_group; quad < end; quad++)
          for (int64_t i = 0; i < QUAD; i++)
            sum += plain_value<BITS>(panel.values, quad, n, i) * x[r * x_stride + quad * QUAD + i];
        total = std::fma(float(sum), panel.scales[g * PANEL + n], total);
      }
      sums[r * PANEL + n] = total;
    }
  }
}

LIGHTVLLM_KERNEL void plain_int8(int64_t rows, const int8_t* x, int64_t x_stride, const int32_t* x_sums, int64_t groups,
                                 const Panel& panel, Prefetch, float* sums) {
  plain_quantized<8>(rows, x, x_stride, x_sums, groups, panel, sums);
}

LIGHTVLLM_KERNEL void plain_int4(int64_t rows, const int8_t* x, int64_t x_stride, const int32_t* x_sums, int64_t groups,
                                 const Panel& panel, Prefetch, float* sums) {
  plain_quantized<4>(rows, x, x_stride, x_sums, groups, panel, sums);
}

#if defined(__x86_64__)
// sum + the dot products of four unsigned by four signed bytes. GCC 12 copies the sums around its own intrinsic.
LIGHTVLLM_AVX512 LIGHTVLLM_INLINE void add_dot(__m512i& sum, __m512i weight, __m512i input) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(input));
}

template <int BITS, int ROWS, int LINES>
LIGHTVLLM_AVX512 void avx512_quantized_rows(const int8_t* x, int64_t x_stride, const int32_t* x_sums, int64_t groups,
                                            const Panel& panel, Prefetch ahead, float* sums) {
  const __m512i low = _mm512_set1_epi8(15);
  for (int64_t g = 0; g < groups; g++) {
    __m512i total[ROWS][VECTORS];
    LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
      const __m512i sum = _mm512_set1_epi32(-x_sums[r * groups + g]);
      LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) {
        const __m512i zero = panel.zeros ? _mm512_loadu_si512(panel.zeros + g * PANEL + v * LANES) : _mm512_set1_epi32(panel.zero);
        total[r][v] = _mm512_mullo_epi32(sum, zero);
      }
    }
    const int64_t end = std::min((g + 1) * panel.quads_per_group, panel.quads);
    if (BITS == 8) {
      for (int64_t quad = g * panel.quads_per_group; quad < end; quad++) {
        LIGHTVLLM_UNROLL for (int line = 0; line < LINES; line++) _mm_prefetch(ahead.from + line * 64, _MM_HINT_T1);
        ahead.from += ahead.step;
        __m512i weight[VECTORS];
        LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++)
          weight[v] = _mm512_loadu_si512(panel.values + (quad * PANEL + v * LANES) * QUAD);
        LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
          int32_t bytes;
          std::memcpy(&bytes, x + r * x_stride + quad * QUAD, sizeof(bytes));
          const __m512i input = _mm512_set1_epi32(bytes);
          LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++)
            add_dot(total[r][v], weight[v], input);
        }
      }
    } else {
      for (int64_t quad = g * panel.quads_per_group; quad < end; quad += 2) {
        LIGHTVLLM_UNROLL for (int line = 0; line < LINES; line++) _mm_prefetch(ahead.from + line * 64, _MM_HINT_T1);
        ahead.from += ahead.step;
        LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) {
          const __m512i both = _mm512_loadu_si512(panel.values + (quad / 2 * PANEL + v * LANES) * QUAD);
          const __m512i first = _mm512_and_si512(both, low);
          const __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
          LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
            int32_t bytes[2];
            std::memcpy(bytes, x + r * x_stride + quad * QUAD, sizeof(bytes));
            add_dot(total[r][v], first, _mm512_set1_epi32(bytes[0]));
            add_dot(total[r][v], second, _mm512_set1_epi32(bytes[1]));
          }
        }
      }
    }
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) {
      const __m512 scale = _mm512_loadu_ps(panel.scales + g * PANEL + v * LANES);
      LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
        float* sum = sums + r * PANEL + v * LANES;
        const __m512 before = g ? _mm512_loadu_ps(sum) : _mm512_setzero_ps();
        _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[r][v]), scale, before));
      }
    }
  }
}

template <int BITS>
void avx512_quantized(int64_t rows, const int8_t* x, int64_t x_stride, const int32_t* x_sums, int64_t groups,
                      const Panel& panel, Prefetch ahead, float* sums) {
  with_rows(rows, [&]<int ROWS>() {
    if (ahead.lines >= 4) return avx512_quantized_rows<BITS, ROWS, 4>(x, x_stride, x_sums, groups, panel, ahead, sums);
    if (ahead.lines >= 2) return avx512_quantized_rows<BITS, ROWS, 2>(x, x_stride, x_sums, groups, panel, ahead, sums);
    avx512_quantized_rows<BITS, ROWS, 1>(x, x_stride, x_sums, groups, panel, ahead, sums);
  });
}
#endif

QuantizedPass quantized_pass(int64_t bits) {
#if defined(__x86_64__)
  if (has_avx512()) return bits == 8 ? avx512_quantized<8> : avx512_quantized<4>;
#endif
  return bits == 8 ? plain_int8 : plain_int4;
}

// A panel of halves as one of bytes, [quads, PANEL, QUAD].
LIGHTVLLM_KERNEL void widen(const uint8_t* halves, int64_t quads, uint8_t* bytes) {
  constexpr int64_t SIZE = PANEL * QUAD;
  for (int64_t pair = 0; pair < quads / 2; pair++) {
    for (int64_t i = 0; i < SIZE; i++) {
      bytes[2 * pair * SIZE + i] = halves[pair * SIZE + i] & 15;
      bytes[(2 * pair + 1) * SIZE + i] = halves[pair * SIZE + i] >> 4;
    }
  }
}

// ---- the ops

// weight: [outputs, inputs] uint8, of 4 bits below 16 -> [panels, quads or pairs of quads, PANEL, QUAD] uint8.
// Inputs are filled up with zeros to a multiple of QUAD, of 4 bits of two.
Tensor pack_quantized(Tensor weight, int64_t bits) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous(), "pack_quantized: weight must be a contiguous matrix");
  STD_TORCH_CHECK(bits == 8 || bits == 4, "pack_quantized: 4 or 8 bits");
  const int64_t outputs = weight.size(0), inputs = weight.size(1), panels = (outputs + PANEL - 1) / PANEL;
  const int64_t per_row = bits == 8 ? QUAD : 2 * QUAD, steps = (inputs + per_row - 1) / per_row;
  Tensor packed = empty_weight(weight, {panels, steps, PANEL, QUAD});
  const uint8_t* from = data<uint8_t>(weight);
  parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      uint8_t* to = data<uint8_t>(packed) + p * steps * PANEL * QUAD;
      std::memset(to, 0, steps * PANEL * QUAD);
      const int64_t count = std::min(PANEL, outputs - p * PANEL);
      for (int64_t s0 = 0; s0 < steps; s0 += 16) {
        const int64_t s1 = std::min(s0 + 16, steps);
        for (int64_t n = 0; n < count; n++) {
          const uint8_t* row = from + (p * PANEL + n) * inputs;
          for (int64_t s = s0; s < s1; s++) {
            uint8_t* quad = to + (s * PANEL + n) * QUAD;
            const int64_t start = s * per_row, present = std::min(per_row, inputs - start);
            for (int64_t i = 0; i < std::min(present, QUAD); i++) quad[i] = row[start + i];
            for (int64_t i = QUAD; i < present; i++) quad[i - QUAD] |= row[start + i] << 4;
          }
        }
      }
    }
  });
  return packed;
}

// groups: [outputs, groups] of four-byte numbers -> [panels, groups, PANEL], filled up with zeros
Tensor pack_groups(Tensor groups) {
  STD_TORCH_CHECK(groups.dim() == 2 && groups.is_contiguous() && groups.element_size() == 4, "pack_groups: float32 or int32");
  const int64_t outputs = groups.size(0), count = groups.size(1), panels = (outputs + PANEL - 1) / PANEL;
  Tensor packed = empty_weight(groups, {panels, count, PANEL});
  std::memset(packed.data_ptr(), 0, panels * count * PANEL * 4);
  for (int64_t n = 0; n < outputs; n++)
    for (int64_t g = 0; g < count; g++)
      data<uint32_t>(packed)[(n / PANEL * count + g) * PANEL + n % PANEL] = data<uint32_t>(groups)[n * count + g];
  return packed;
}

// x: [rows, inputs]; packed: see pack_quantized; scales: see pack_groups, float32; zeros: the same, int32, or none for
// 2^(bits - 1); group_size: inputs that share a scale, a multiple of 8; bias: [outputs] -> [rows, outputs]
Tensor quantized_linear(Tensor x, Tensor packed, Tensor scales, std::optional<Tensor> zeros, std::optional<Tensor> bias,
                        int64_t bits, int64_t group_size, int64_t outputs) {
  const int64_t rows = x.size(0), inputs = x.size(1), panels = packed.size(0), steps = packed.size(1);
  const int64_t quads = steps * (bits == 8 ? 1 : 2), groups = scales.size(1);
  const int64_t quads_per_group = groups == 1 ? quads : group_size / QUAD;
  STD_TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "quantized_linear: the inputs of a row must be neighbours");
  STD_TORCH_CHECK(inputs <= quads * QUAD && inputs > (steps - 1) * (quads / steps) * QUAD, "quantized_linear: input and weight do not fit");
  STD_TORCH_CHECK(groups == 1 || (group_size % (2 * QUAD) == 0 && groups == (inputs + group_size - 1) / group_size),
                  "quantized_linear: groups and scales do not fit");
  Tensor y = torch::stable::new_empty(x, {rows, outputs});
  RoundedRows rounded;
  rounded.values.resize(rows * quads * QUAD);
  rounded.scales.resize(rows);
  rounded.sums.resize(rows * groups);
  for_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
      const T* from = data<T>(x);
      const int64_t stride = x.stride(0);
      vectorized([&]() LIGHTVLLM_BODY {
        for (int64_t r = begin; r < end; r++)
          round_row(from + r * stride, inputs, quads, quads_per_group, rounded.values.data() + r * quads * QUAD,
                    rounded.scales.data() + r, rounded.sums.data() + r * groups);
      });
    });
    const T* offsets = bias ? data<T>(*bias) : nullptr;
    const int64_t panel_bytes = steps * PANEL * QUAD;
    const bool widens = bits == 4 && rows > MAX_ROWS;  // more passes than one: the halves are widened once
    const QuantizedPass pass = quantized_pass(widens ? 8 : bits);
    parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      alignas(64) float sums[MAX_ROWS * PANEL];
      std::vector<uint8_t> wide(widens ? quads * PANEL * QUAD : 0);
      for (int64_t p = begin; p < end; p++) {
        const uint8_t* values = data<uint8_t>(packed) + p * panel_bytes;
        Panel panel = {values, data<float>(scales) + p * groups * PANEL,
                       zeros ? data<int32_t>(*zeros) + p * groups * PANEL : nullptr, 1 << (bits - 1), quads, quads_per_group};
        if (widens) {
          widen(values, quads, wide.data());
          panel.values = wide.data();
        }
        const int64_t count = std::min(PANEL, outputs - p * PANEL);
        for_row_blocks(rows, values, panel_bytes, widens ? quads : steps, [&](int64_t row, int64_t number, Prefetch ahead) {
          pass(number, rounded.values.data() + row * quads * QUAD, quads * QUAD, rounded.sums.data() + row * groups, groups,
               panel, ahead, sums);
          for (int64_t r = 0; r < number; r++) {
            T* to = data<T>(y) + (row + r) * outputs + p * PANEL;
            float* sum = sums + r * PANEL;
            const float scale = rounded.scales[row + r];
            for (int64_t v = 0; v < VECTORS; v++) store(sum + v * LANES, load(sum + v * LANES) * scale);
            if (offsets)
              for (int64_t n = 0; n < count; n++) sum[n] += to_float(offsets[p * PANEL + n]);
            if (count == PANEL) {
              for (int64_t v = 0; v < VECTORS; v++) store(to + v * LANES, load(sum + v * LANES));
            } else {
              for (int64_t n = 0; n < count; n++) store_one(to + n, sum[n]);
            }
          }
        });
      }
    });
  });
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(lightvllm, CPU, m) {
  m.impl("pack_quantized", TORCH_BOX(&pack_quantized));
  m.impl("pack_groups", TORCH_BOX(&pack_groups));
  m.impl("quantized_linear", TORCH_BOX(&quantized_linear));
}

}  // namespace lightvllm
