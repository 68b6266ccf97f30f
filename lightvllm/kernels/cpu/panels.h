// How weights are laid out for matrix products, and how the work of one is cut. See linear.cpp.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "common.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#define LIGHTVLLM_AVX2 __attribute__((target("arch=x86-64-v3")))
#define LIGHTVLLM_AVX512 __attribute__((target("arch=x86-64-v4,avx512bf16,avx512vnni")))
#endif
#define LIGHTVLLM_UNROLL _Pragma("GCC unroll 8")

namespace lightvllm {

// MAX_ROWS: whose sums by a panel a pass keeps in registers. LONGEST_PASS: what any pass takes.
constexpr int64_t PANEL = 64, VECTORS = PANEL / LANES, MAX_ROWS = 6, LONGEST_PASS = 32;

// Four bytes of a row: the inputs of one group. A row may begin anywhere.
typedef uint32_t Group __attribute__((may_alias, aligned(1)));
typedef const Group* Groups;

// Whether functions marked LIGHTVLLM_AVX512 may run.
inline bool has_avx512() { return isa() >= Isa::AVX512VNNI; }

// Where a pass over a panel prefetches: `lines` cache lines from `from` on for each group of inputs, then `step` bytes
// further. With few rows that is the same stream, AHEAD bytes on, as fast as it is read. With more it is the next panel,
// spread over the passes of this one. It is handed on by reference: a copy would wait for the stores of the pass before.
struct Prefetch {
  static constexpr int64_t AHEAD = 4096;
  const char* from;
  int64_t step, lines;
};

// One pass over a panel: sums[row, PANEL] for 1 to MAX_ROWS rows (by AMX LONGEST_PASS) of `groups` groups each. See linear.cpp.
typedef void (*Pass)(int64_t rows, Groups x, int64_t x_stride, Groups panel, int64_t groups, const Prefetch& ahead, float* sums);
Pass pass_for(const float*);
Pass pass_for(const bf16*);

// Calls f(first_row, rows, prefetch) for blocks of at most max_rows rows, as equal as can be, over one panel.
// panel_bytes: of a panel; groups: steps in which a pass reads it.
template <class F>
LIGHTVLLM_INLINE void for_row_blocks(int64_t rows, int64_t max_rows, const void* panel, int64_t panel_bytes, int64_t groups, const F& f) {
  const int64_t blocks = std::max<int64_t>(1, (rows + max_rows - 1) / max_rows), least = rows / blocks, larger = rows % blocks;
  const int64_t share = panel_bytes / blocks, step = share / groups;
  const char* bytes = static_cast<const char*>(panel);
  Prefetch ahead = {blocks == 1 ? bytes + Prefetch::AHEAD : bytes + panel_bytes, step, (step + 63) / 64};
  for (int64_t block = 0, row = 0; row < rows; block++, ahead.from += share) {
    const int64_t count = least + (block < larger);
    f(row, count, ahead);
    row += count;
  }
}

// Calls f.template operator()<ROWS>() with ROWS = rows, 1 to MAX_ROWS.
template <class F>
LIGHTVLLM_INLINE void with_rows(int64_t rows, const F& f) {
  switch (rows) {
    case 1: return f.template operator()<1>();
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    case 4: return f.template operator()<4>();
    case 5: return f.template operator()<5>();
    default: return f.template operator()<6>();
  }
}

// An empty tensor of `like`'s type for weights, in huge pages where the system has them: all of it is read in every step,
// and with small pages a quarter of that time would be looking up where they lie.
inline Tensor empty_weight(const Tensor& like, const std::vector<int64_t>& sizes) {
#if defined(__linux__)
  constexpr size_t HUGE_PAGE = 2 << 20;
  size_t bytes = like.element_size();
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 0; bytes *= sizes[i])
    if (i + 1 < sizes.size()) strides[i] = strides[i + 1] * sizes[i + 1];
  void* memory = bytes < HUGE_PAGE ? nullptr : std::aligned_alloc(HUGE_PAGE, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
  if (memory) {
    madvise(memory, bytes, MADV_HUGEPAGE);
    return torch::stable::from_blob(memory, sizes, strides, like.device(), like.scalar_type(), std::free);
  }
#endif
  return torch::stable::new_empty(like, sizes);
}

#if defined(__x86_64__)
// What store_sums does, for whole panels in bfloat16 without a bias: the processor rounds them.
LIGHTVLLM_AVX512 inline void round_sums(const float* sums, int64_t rows, int64_t stride, bf16* out) {
  for (int64_t r = 0; r < rows; r++)
    LIGHTVLLM_UNROLL for (int64_t v = 0; v < VECTORS; v += 2) {
      const float* from = sums + r * PANEL + v * LANES;
      const __m512bh pair = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + LANES), _mm512_loadu_ps(from));
      _mm512_storeu_si512(out + r * stride + v * LANES, (__m512i)pair);
    }
}
#endif

// Fetches where the sums of `rows` rows by the panel number `panel` are going to lie in out [rows, outputs], or every store
// would wait for its line.
template <class T>
LIGHTVLLM_INLINE void fetch_outputs(int64_t rows, int64_t panel, int64_t outputs, const T* out) {
  const int64_t start = panel * PANEL, bytes = std::min(PANEL, outputs - start) * sizeof(T);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(reinterpret_cast<const char*>(out + r * outputs + start) + byte, 1);
}

// The sums of `rows` rows by the panel number `panel`, and the bias -> out [rows, outputs].
template <class T>
void store_sums(const float* sums, int64_t rows, int64_t panel, int64_t outputs, const T* bias, T* out) {
  const int64_t start = panel * PANEL, count = std::min(PANEL, outputs - start);
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, bf16>)
    if (!bias && count == PANEL && has_avx512()) return round_sums(sums, rows, outputs, out + start);
#endif
  vectorized([&]() LIGHTVLLM_BODY {
    for (int64_t r = 0; r < rows; r++) {
      const float* from = sums + r * PANEL;
      T* to = out + r * outputs + start;
      int64_t n = 0;
      for (; n + LANES <= count; n += LANES) store(to + n, bias ? load(from + n) + load(bias + start + n) : load(from + n));
      for (; n < count; n++) store_one(to + n, bias ? from[n] + to_float(bias[start + n]) : from[n]);
    }
  });
}

}  // namespace lightvllm
