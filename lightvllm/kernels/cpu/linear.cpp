// Matrix products with weights that were packed once: y = x W^T + b, for any number of rows, float32 and bfloat16.
// Reference twin: lightvllm/kernels/reference.py:packed_linear; test: tests/kernels/test_linear.py.
//
// The weight lies in panels of 64 outputs; inside a panel, a group of inputs (1 of float32, 2 of bfloat16) of all its
// outputs are neighbours, as the processor's dot products read them. A micro-kernel keeps the sums of up to MAX_ROWS rows
// by one panel in registers and goes once through the inputs, in order. Each sum is a chain of its own, the same whatever
// rows stand beside it: a result depends on no batch.
//
// With few rows the time is that of reading the weight: one pass, prefetching ahead of itself. With more, a panel is in
// the second-level cache after the first rows, and the passes of the others fetch the next one in arithmetic's shadow.
#include <vector>

#include "panels.h"

namespace lightvllm {

template <class T>
constexpr int64_t GROUP = sizeof(float) / sizeof(T);

// The weight [outputs, inputs] in panels: [panels, groups, PANEL, GROUP]; what is beyond either end is zero.
template <class T>
void pack(const T* weight, int64_t outputs, int64_t inputs, T* packed) {
  const int64_t groups = (inputs + GROUP<T> - 1) / GROUP<T>, panels = (outputs + PANEL - 1) / PANEL;
  parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      T* to = packed + p * groups * PANEL * GROUP<T>;
      const int64_t count = std::min(PANEL, outputs - p * PANEL);
      if (count < PANEL || inputs % GROUP<T>) std::memset(to, 0, groups * PANEL * GROUP<T> * sizeof(T));
      for (int64_t g0 = 0; g0 < groups; g0 += 16) {  // a few cache lines of each row at a time
        for (int64_t n = 0; n < count; n++) {
          const T* from = weight + (p * PANEL + n) * inputs;
          const int64_t last = std::min(g0 + 16, groups);
          for (int64_t g = g0; g < last; g++) {
            const int64_t present = std::min(GROUP<T>, inputs - g * GROUP<T>);
            std::memcpy(to + (g * PANEL + n) * GROUP<T>, from + g * GROUP<T>, present * sizeof(T));
          }
        }
      }
    }
  });
}

// ---- one pass over a panel: sums[row, PANEL] for ROWS rows, each of `groups` groups

struct PlainFloat32 {
  static LIGHTVLLM_INLINE f32x16 add(f32x16 sum, Groups weight, uint32_t x) {
    return sum + load(reinterpret_cast<const float*>(weight)) * __builtin_bit_cast(float, x);
  }
};

struct PlainBfloat16 {
  static LIGHTVLLM_INLINE f32x16 add(f32x16 sum, Groups weight, uint32_t x) {
    u32x16 pairs;
    std::memcpy(&pairs, weight, sizeof(pairs));
    sum += (f32x16)(pairs << 16) * __builtin_bit_cast(float, x << 16);
    return sum + (f32x16)(pairs & 0xffff0000u) * __builtin_bit_cast(float, x & 0xffff0000u);
  }
};

// A row at a time, over vectors that the compiler lowers to what there is.
template <class Type>
LIGHTVLLM_INLINE void plain_pass(int64_t rows, Groups x, int64_t x_stride, Groups panel, int64_t groups, float* sums) {
  for (int64_t r = 0; r < rows; r++) {
    f32x16 total[VECTORS] = {};
    for (int64_t g = 0; g < groups; g++)
      for (int64_t v = 0; v < VECTORS; v++)
        total[v] = Type::add(total[v], panel + g * PANEL + v * LANES, x[r * x_stride + g]);
    for (int64_t v = 0; v < VECTORS; v++) store(sums + r * PANEL + v * LANES, total[v]);
  }
}

LIGHTVLLM_KERNEL void plain_float32(int64_t rows, Groups x, int64_t x_stride, Groups panel, int64_t groups, Prefetch,
                                    float* sums) {
  plain_pass<PlainFloat32>(rows, x, x_stride, panel, groups, sums);
}

LIGHTVLLM_KERNEL void plain_bfloat16(int64_t rows, Groups x, int64_t x_stride, Groups panel, int64_t groups, Prefetch,
                                     float* sums) {
  plain_pass<PlainBfloat16>(rows, x, x_stride, panel, groups, sums);
}

#if defined(__x86_64__)
struct Avx512Float32 {
  LIGHTVLLM_AVX512 static LIGHTVLLM_INLINE __m512 add(__m512 sum, __m512i weight, __m512i x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(weight), _mm512_castsi512_ps(x), sum);
  }
};

struct Avx512Bfloat16 {
  LIGHTVLLM_AVX512 static LIGHTVLLM_INLINE __m512 add(__m512 sum, __m512i weight, __m512i x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)weight);
  }
};

// LINES: cache lines to prefetch for each group. GCC keeps the sums in registers when it sees each of them.
template <class Type, int ROWS, int LINES>
LIGHTVLLM_AVX512 void avx512_rows(Groups x, int64_t x_stride, Groups panel, int64_t groups, Prefetch ahead, float* sums) {
  __m512 total[ROWS][VECTORS];
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) total[r][v] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; g++) {
    LIGHTVLLM_UNROLL for (int line = 0; line < LINES; line++) _mm_prefetch(ahead.from + line * 64, _MM_HINT_T1);
    ahead.from += ahead.step;
    __m512i weight[VECTORS];
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) weight[v] = _mm512_loadu_si512(panel + g * PANEL + v * LANES);
    LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
      const __m512i input = _mm512_set1_epi32(int32_t(x[r * x_stride + g]));
      LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) total[r][v] = Type::add(total[r][v], weight[v], input);
    }
  }
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(sums + r * PANEL + v * LANES, total[r][v]);
}

template <class Type>
void avx512_pass(int64_t rows, Groups x, int64_t x_stride, Groups panel, int64_t groups, Prefetch ahead, float* sums) {
  with_rows(rows, [&]<int ROWS>() {
    if (ahead.lines >= 4) return avx512_rows<Type, ROWS, 4>(x, x_stride, panel, groups, ahead, sums);
    if (ahead.lines >= 2) return avx512_rows<Type, ROWS, 2>(x, x_stride, panel, groups, ahead, sums);
    avx512_rows<Type, ROWS, 1>(x, x_stride, panel, groups, ahead, sums);
  });
}

Pass pass_for(const float*) { return has_avx512() ? avx512_pass<Avx512Float32> : plain_float32; }
Pass pass_for(const bf16*) { return has_avx512() ? avx512_pass<Avx512Bfloat16> : plain_bfloat16; }
#else
Pass pass_for(const float*) { return plain_float32; }
Pass pass_for(const bf16*) { return plain_bfloat16; }
#endif

// The sums of some rows, of which `count` are outputs, and their bias -> rows of the result.
template <class T>
LIGHTVLLM_INLINE void keep(float* sums, int64_t rows, int64_t count, const T* bias, T* to, int64_t stride) {
  for (int64_t r = 0; r < rows; r++, sums += PANEL, to += stride) {
    if (bias)
      for (int64_t n = 0; n < count; n++) sums[n] += to_float(bias[n]);
    if (count == PANEL) {
      for (int64_t v = 0; v < VECTORS; v++) store(to + v * LANES, load(sums + v * LANES));
    } else {
      for (int64_t n = 0; n < count; n++) store_one(to + n, sums[n]);
    }
  }
}

// ---- the ops

// weight: [outputs, inputs] -> [panels, groups, PANEL, GROUP]
Tensor pack_linear(Tensor weight) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous(), "pack_linear: weight must be a contiguous matrix");
  const int64_t outputs = weight.size(0), inputs = weight.size(1), panels = (outputs + PANEL - 1) / PANEL;
  Tensor packed;
  for_type(weight, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    packed = empty_weight(weight, {panels, (inputs + GROUP<T> - 1) / GROUP<T>, PANEL, GROUP<T>});
    pack(data<T>(weight), outputs, inputs, data<T>(packed));
  });
  return packed;
}

// x: [rows, inputs]; packed: see pack_linear; bias: [outputs] -> [rows, outputs]
Tensor packed_linear(Tensor x, Tensor packed, std::optional<Tensor> bias, int64_t outputs) {
  const int64_t rows = x.size(0), inputs = x.size(1), panels = packed.size(0), groups = packed.size(1);
  STD_TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "packed_linear: the inputs of a row must be neighbours");
  STD_TORCH_CHECK(x.scalar_type() == packed.scalar_type(), "packed_linear: input and weight must have one type");
  Tensor y = torch::stable::new_empty(x, {rows, outputs});
  for_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    STD_TORCH_CHECK((inputs + GROUP<T> - 1) / GROUP<T> == groups, "packed_linear: input and weight do not fit");
    const T* from = data<T>(x);
    int64_t stride = x.stride(0);
    std::vector<T> padded;
    if (inputs % GROUP<T> || stride % GROUP<T>) {  // rows of whole groups
      stride = groups * GROUP<T>;
      padded.resize(rows * stride);
      for (int64_t r = 0; r < rows; r++)
        std::memcpy(padded.data() + r * stride, from + r * x.stride(0), inputs * sizeof(T));
      from = padded.data();
    }
    const Pass pass = pass_for(from);
    const T* offsets = bias ? data<T>(*bias) : nullptr;
    const int64_t panel_size = groups * PANEL * GROUP<T>;
    parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      alignas(64) float sums[MAX_ROWS * PANEL];
      for (int64_t p = begin; p < end; p++) {
        const T* panel = data<T>(packed) + p * panel_size;
        const int64_t count = std::min(PANEL, outputs - p * PANEL);
        for_row_blocks(rows, panel, panel_size * sizeof(T), groups, [&](int64_t row, int64_t number, Prefetch ahead) {
          pass(number, reinterpret_cast<Groups>(from + row * stride), stride / GROUP<T>, reinterpret_cast<Groups>(panel),
               groups, ahead, sums);
          T* to = data<T>(y) + row * outputs + p * PANEL;
          vectorized([&]() LIGHTVLLM_BODY { keep(sums, number, count, offsets ? offsets + p * PANEL : nullptr, to, outputs); });
        });
      }
    });
  });
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(lightvllm, CPU, m) {
  m.impl("pack_linear", TORCH_BOX(&pack_linear));
  m.impl("packed_linear", TORCH_BOX(&packed_linear));
}

}  // namespace lightvllm
