// Products by AMX: eight tiles of 16 rows of 64 bytes, and an instruction that adds the product of two to a third.
// (Intel, Architecture Instruction Set Extensions Programming Reference, chapter 3.) Of a panel a tile takes up to 16 groups
// of inputs of 16 outputs as they lie; four tiles hold sums, of 32 rows by 32 outputs, or of 16 rows by all 64.
// Tests: tests/kernels/test_linear.py, test_quantized_linear.py.
//
// Every sum takes the same tiles of inputs in the same order: nothing depends on the batch. Bfloat16's sums are not those of
// AVX-512, so these passes serve any number of rows; integers' are, and few rows of those are left to AVX-512.
#include "amx.h"

#if defined(__x86_64__)
#include <utility>

namespace lightvllm {
namespace {

constexpr int64_t TILE = 16, STEP_BYTES = PANEL * 4;  // of a panel's groups
constexpr int SUMS = 0, ROWS_OF_X = 4, WEIGHTS = 6;   // the first tile of each kind

struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

template <int TO>
LIGHTVLLM_INLINE void zero() { asm volatile("tilezero %%tmm%c0" ::"i"(TO)); }

template <int TO>
LIGHTVLLM_INLINE void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TO) : "memory");
}

template <int FROM>
LIGHTVLLM_INLINE void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(FROM) : "memory");
}

struct Bfloat16Dot {
  template <int TO, int X, int WEIGHT>
  static LIGHTVLLM_INLINE void add() { asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(TO), "i"(X), "i"(WEIGHT)); }
};

struct ByteDot {  // signed inputs by unsigned weights
  template <int TO, int X, int WEIGHT>
  static LIGHTVLLM_INLINE void add() { asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(TO), "i"(X), "i"(WEIGHT)); }
};

// Calls f.template operator()<I>() for I from 0 to COUNT - 1.
template <int COUNT, class F>
LIGHTVLLM_INLINE void each(const F& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) LIGHTVLLM_BODY { (f.template operator()<I>(), ...); }
  (std::make_integer_sequence<int, COUNT>());
}

// The tiles of a pass over some rows, while it lasts.
template <class Dot>
class Tiles {
 public:
  Tiles(int64_t rows, const char* x, int64_t x_stride) : rows_(rows), x_(x), x_stride_(x_stride) {}
  ~Tiles() { asm volatile("tilerelease"); }

  // sums [rows, PANEL] (+)= products of the groups from `begin` to `end`. is_first: the sums begin at zero.
  void add(const char* panel, int64_t begin, int64_t end, const Prefetch& ahead, bool is_first, void* sums) {
    const int64_t whole = begin + (end - begin) / TILE * TILE;
    if (begin < whole) add_of_depth(TILE, panel, begin, whole, ahead, is_first, sums);
    if (whole < end) add_of_depth(end - whole, panel, whole, end, ahead, is_first && begin == whole, sums);
  }

 private:
  void add_of_depth(int64_t depth, const char* panel, int64_t begin, int64_t end, const Prefetch& ahead, bool is_first, void* sums) {
    if (depth != depth_) shape(depth);
    if (rows_ <= TILE) {
      multiply<1>(panel, begin, end, ahead, is_first, static_cast<char*>(sums));
    } else {
      multiply<2>(panel, begin, end, ahead, is_first, static_cast<char*>(sums));
    }
  }

  // BLOCKS: of rows.
  template <int BLOCKS>
  void multiply(const char* panel, int64_t begin, int64_t end, const Prefetch& ahead, bool is_first, char* sums) {
    constexpr int WIDTH = VECTORS / BLOCKS, STRIDE = PANEL * 4;
    for (int64_t part = 0; part < VECTORS; part += WIDTH) {
      char* to = sums + part * 64;
      each<BLOCKS>([&]<int I>() LIGHTVLLM_BODY {
        each<WIDTH>([&]<int J>() LIGHTVLLM_BODY {
          is_first ? zero<SUMS + I * WIDTH + J>() : load_tile<SUMS + I * WIDTH + J>(to + I * TILE * STRIDE + J * 64, STRIDE);
        });
      });
      for (int64_t g = begin; g < end; g += depth_) {
        if (part == 0) {
          const char* from = ahead.from + g * ahead.step;
          for (int64_t byte = 0; byte < depth_ * ahead.step; byte += 64) __builtin_prefetch(from + byte, 0, 2);
        }
        each<BLOCKS>([&]<int I>() LIGHTVLLM_BODY { load_tile<ROWS_OF_X + I>(x_ + I * TILE * x_stride_ + g * 4, x_stride_); });
        each<WIDTH>([&]<int J>() LIGHTVLLM_BODY {
          load_tile<WEIGHTS + J % 2>(panel + g * STEP_BYTES + (part + J) * 64, STEP_BYTES);
          each<BLOCKS>([&]<int I>() LIGHTVLLM_BODY {
            Dot::template add<SUMS + I * WIDTH + J, ROWS_OF_X + I, WEIGHTS + J % 2>();
          });
        });
      }
      each<BLOCKS>([&]<int I>() LIGHTVLLM_BODY {
        each<WIDTH>([&]<int J>() LIGHTVLLM_BODY { store_tile<SUMS + I * WIDTH + J>(to + I * TILE * STRIDE + J * 64, STRIDE); });
      });
    }
  }

  void shape(int64_t depth) {
    depth_ = depth;
    Shapes shapes;
    const int64_t blocks = rows_ <= TILE ? 1 : 2, width = VECTORS / blocks;
    for (int64_t i = 0; i < blocks; i++) {
      const int64_t rows = std::min(rows_ - i * TILE, TILE);
      for (int64_t j = 0; j < width; j++) set(shapes, SUMS + i * width + j, rows, 64);
      set(shapes, ROWS_OF_X + i, rows, depth * 4);
      set(shapes, WEIGHTS + i, depth, 64);
    }
    if (blocks == 1) set(shapes, WEIGHTS + 1, depth, 64);
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }

  static void set(Shapes& shapes, int64_t tile, int64_t rows, int64_t bytes) {
    shapes.rows[tile] = rows;
    shapes.row_bytes[tile] = bytes;
  }

  const int64_t rows_;
  const char* const x_;
  const int64_t x_stride_;  // bytes
  int64_t depth_ = 0;       // groups in a tile
};

// sums [rows, PANEL] (+)= the scaled sums of products of the group of inputs number g.
LIGHTVLLM_AVX512 void add_group(int64_t rows, const RoundedRows& x, const Panel& panel, int64_t g, const int32_t* totals, float* sums) {
  for (int64_t r = 0; r < rows; r++) {
    const __m512i x_sum = _mm512_set1_epi32(x.sums[r * panel.groups + g]);
    const __m512 x_scale = _mm512_set1_ps(x.scales[r * panel.groups + g]);
    LIGHTVLLM_UNROLL for (int v = 0; v < VECTORS; v++) {
      __m512i zero = _mm512_set1_epi32(panel.zero);
      if (panel.zeros) zero = _mm512_loadu_si512(panel.zeros + g * PANEL + v * LANES);
      const __m512i total = _mm512_sub_epi32(_mm512_loadu_si512(totals + r * PANEL + v * LANES), _mm512_mullo_epi32(zero, x_sum));
      const __m512 by = _mm512_mul_ps(_mm512_loadu_ps(panel.scales + g * PANEL + v * LANES), x_scale);
      float* sum = sums + r * PANEL + v * LANES;
      const __m512 before = g ? _mm512_loadu_ps(sum) : _mm512_setzero_ps();
      _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), by, before));
    }
  }
}

}  // namespace

void amx_bf16_pass(int64_t rows, Groups x, int64_t x_stride, Groups panel, int64_t groups, const Prefetch& ahead, float* sums) {
  Tiles<Bfloat16Dot> tiles(rows, reinterpret_cast<const char*>(x), x_stride * 4);
  tiles.add(reinterpret_cast<const char*>(panel), 0, groups, ahead, true, sums);
}

void amx_quantized_pass(int64_t rows, const RoundedRows& x, const Panel& panel, const Prefetch& ahead, float* sums) {
  alignas(64) int32_t totals[AMX_ROWS * PANEL];
  Tiles<ByteDot> tiles(rows, reinterpret_cast<const char*>(x.values), x.stride);
  for (int64_t g = 0; g < panel.groups; g++) {
    tiles.add(reinterpret_cast<const char*>(panel.values), panel.first_quad(g), panel.last_quad(g), ahead, true, totals);
    add_group(rows, x, panel, g, totals, sums);
  }
}

}  // namespace lightvllm
#endif
