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

#include "amx.h"

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

// ---- one pass over a panel: sums[row, PANEL] for 1 to MAX_ROWS rows, each of `groups` groups

// A register of SIZE floats.
template <int64_t SIZE>
struct Register {
  typedef float floats __attribute__((vector_size(4 * SIZE)));
  typedef uint32_t words __attribute__((vector_size(4 * SIZE)));

  // One word in all lanes. GCC 12 makes this a broadcast; of words{} + word, in a template, an insertion for each lane.
  static LIGHTVLLM_INLINE words fill(uint32_t word) { return (words)((floats{} + 1.0f) * __builtin_bit_cast(float, word)); }
};

// sum + the products of one group: of each lane's weight by the row's inputs, which lie in all lanes. PARTS: floats in a
// word, which take a register each.
struct Float32 {
  static constexpr int PARTS = 1;

  template <class V, class W>
  static LIGHTVLLM_INLINE V add(V sum, W weight, W x) {
    return sum + (V)weight * (V)x;
  }
};

struct Bfloat16 {
  static constexpr int PARTS = 2;

  template <class V, class W>
  static LIGHTVLLM_INLINE V add(V sum, W weight, W x) {
    sum += (V)(weight << 16) * (V)(x << 16);
    return sum + (V)(weight & 0xffff0000u) * (V)(x & 0xffff0000u);
  }
};

// How many registers of a row's sums fit beside those of the others, of 16 (AVX-512: 32), with the weights or inputs that
// stay and those of a product.
constexpr int width_of(int64_t size, int rows, int parts) {
  if (size == 16) return VECTORS;
  int width = 8;
  while (width > 1 && rows * width + std::min(rows, width) * parts + 2 * parts - 1 > 16) width /= 2;
  return width;
}

// Of ROWS rows by a part of the panel at a time, as many outputs as there are registers; GCC keeps the sums there when it
// sees each of them. What the first part reads of CHUNK groups is in the first-level cache for the others, and each fetches
// its share of the next CHUNK.
template <class Type, int64_t SIZE, int ROWS>
LIGHTVLLM_INLINE void register_rows(Groups x, int64_t x_stride, Groups panel, int64_t groups, const Prefetch& ahead, float* sums) {
  constexpr int WIDTH = width_of(SIZE, ROWS, Type::PARTS);
  constexpr int64_t PART = WIDTH * SIZE, CHUNK = 64;
  typedef typename Register<SIZE>::floats floats;
  typedef typename Register<SIZE>::words words;
  for (int64_t first = 0; first == 0 || first < groups; first += CHUNK) {
    for (int64_t start = 0; start < PANEL; start += PART) {
      const int64_t first_line = ahead.lines * start / PANEL, last_line = ahead.lines * (start + PART) / PANEL;
      floats total[ROWS][WIDTH] = {};
      LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
        LIGHTVLLM_UNROLL for (int v = 0; v < WIDTH; v++)
          if (first) std::memcpy(&total[r][v], sums + r * PANEL + start + v * SIZE, sizeof(total[r][v]));
      for (int64_t g = first; g < std::min(first + CHUNK, groups); g++) {
        for (int64_t line = first_line; line < last_line; line++)
          __builtin_prefetch(ahead.from + (g + CHUNK) * ahead.step + line * 64, 0, 2);
        auto weight = [&](int v) LIGHTVLLM_BODY {
          words result;
          std::memcpy(&result, panel + g * PANEL + start + v * SIZE, sizeof(result));
          return result;
        };
        auto input = [&](int r) LIGHTVLLM_BODY { return Register<SIZE>::fill(x[r * x_stride + g]); };
        words few[std::min(ROWS, WIDTH)];  // stay, while one of the others comes after the other
        if constexpr (WIDTH < ROWS) {
          LIGHTVLLM_UNROLL for (int v = 0; v < WIDTH; v++) few[v] = weight(v);
          LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
            const words one = input(r);
            LIGHTVLLM_UNROLL for (int v = 0; v < WIDTH; v++) total[r][v] = Type::add(total[r][v], few[v], one);
          }
        } else {
          LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) few[r] = input(r);
          LIGHTVLLM_UNROLL for (int v = 0; v < WIDTH; v++) {
            const words one = weight(v);
            LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) total[r][v] = Type::add(total[r][v], one, few[r]);
          }
        }
      }
      LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
        LIGHTVLLM_UNROLL for (int v = 0; v < WIDTH; v++)
          std::memcpy(sums + r * PANEL + start + v * SIZE, &total[r][v], sizeof(total[r][v]));
    }
  }
}

template <class Type>
void vector_pass(int64_t rows, Groups x, int64_t x_stride, Groups panel, int64_t groups, const Prefetch& ahead, float* sums) {
  vectorized_by_size([&]<int64_t SIZE>() LIGHTVLLM_BODY {
    with_rows(rows, [&]<int ROWS>() LIGHTVLLM_BODY {
      register_rows<Type, SIZE, ROWS>(x, x_stride, panel, groups, ahead, sums);
    });
  });
}

#if defined(__x86_64__)
// bfloat16 where the processor multiplies it. LINES: cache lines to prefetch for each group.
template <int ROWS, int LINES>
LIGHTVLLM_AVX512 void bf16_rows(Groups x, int64_t x_stride, Groups panel, int64_t groups, const Prefetch& ahead, float* sums) {
  const char* from = ahead.from;
  const int64_t step = ahead.step;
  __m512 total[ROWS][VECTORS];
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) total[r][v] = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; g++) {
    LIGHTVLLM_UNROLL for (int line = 0; line < LINES; line++) _mm_prefetch(from + line * 64, _MM_HINT_T1);
    from += step;
    __m512i weight[VECTORS];
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) weight[v] = _mm512_loadu_si512(panel + g * PANEL + v * LANES);
    LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++) {
      const __m512bh input = (__m512bh)_mm512_set1_epi32(int32_t(x[r * x_stride + g]));
      LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++)
        total[r][v] = _mm512_dpbf16_ps(total[r][v], input, (__m512bh)weight[v]);
    }
  }
  LIGHTVLLM_UNROLL for (int r = 0; r < ROWS; r++)
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(sums + r * PANEL + v * LANES, total[r][v]);
}

void bf16_pass(int64_t rows, Groups x, int64_t x_stride, Groups panel, int64_t groups, const Prefetch& ahead, float* sums) {
  with_rows(rows, [&]<int ROWS>() {
    if (ahead.lines >= 4) return bf16_rows<ROWS, 4>(x, x_stride, panel, groups, ahead, sums);
    if (ahead.lines >= 2) return bf16_rows<ROWS, 2>(x, x_stride, panel, groups, ahead, sums);
    bf16_rows<ROWS, 1>(x, x_stride, panel, groups, ahead, sums);
  });
}

Pass pass_for(const bf16*) { return has_avx512() ? bf16_pass : vector_pass<Bfloat16>; }
#else
Pass pass_for(const bf16*) { return vector_pass<Bfloat16>; }
#endif
Pass pass_for(const float*) { return vector_pass<Float32>; }

// How many rows a pass of packed_linear takes, and which it is.
struct Kernel {
  Pass pass;
  int64_t max_rows = MAX_ROWS;
};

Kernel kernel_for(const float* type) { return {pass_for(type)}; }

Kernel kernel_for(const bf16* type) {
#if defined(__x86_64__)
  if (isa() >= Isa::AMX) return {amx_bf16_pass, AMX_ROWS};
#endif
  return {pass_for(type)};
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
    const Kernel kernel = kernel_for(from);
    const T* offsets = bias ? data<T>(*bias) : nullptr;
    const int64_t panel_size = groups * PANEL * GROUP<T>;
    expect_next_of(packed.data_ptr(), panels, panel_size * sizeof(T));
    parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      alignas(64) float sums[LONGEST_PASS * PANEL];
      for (int64_t p = begin; p < end; p++) {
        const T* panel = data<T>(packed) + p * panel_size;
        for_row_blocks(rows, kernel.max_rows, panel, panel_size * sizeof(T), groups, [&](int64_t row, int64_t count, const Prefetch& ahead) {
          fetch_outputs(count, p, outputs, data<T>(y) + row * outputs);
          kernel.pass(count, reinterpret_cast<Groups>(from + row * stride), stride / GROUP<T>, reinterpret_cast<Groups>(panel),
               groups, ahead, sums);
          store_sums(sums, count, p, outputs, offsets, data<T>(y) + row * outputs);
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
