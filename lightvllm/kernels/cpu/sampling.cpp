// The most likely token of each row of logits.
// Reference twin: lightvllm/kernels/reference.py:most_likely; test: tests/kernels/test_sampling.py.
#include <algorithm>
#include <cmath>
#include <vector>

#include "common.h"

namespace lightvllm {
namespace {

constexpr int64_t PART = 8192;  // of a row: the second look at it finds it in the first-level cache

struct Best {
  float value;
  int64_t index;
};

// The first of the largest of x[0] to x[size - 1]; a NaN counts as the largest.
template <class T>
LIGHTVLLM_INLINE Best best_of(const T* x, int64_t size) {
  f32x16 highest = splat(-INFINITY), nan = {};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    const f32x16 v = load(x + i);
    highest = maximum(v, highest);
    nan = v != v ? v : nan;
  }
  float value = -INFINITY;
  for (int64_t lane = 0; lane < LANES; lane++) {
    if (nan[lane] != nan[lane]) return {NAN, 0};
    value = std::max(value, highest[lane]);
  }
  for (; i < size; i++) {
    if (std::isnan(to_float(x[i]))) return {NAN, 0};
    value = std::max(value, to_float(x[i]));
  }
  int64_t index = 0;
  while (to_float(x[index]) != value) index++;
  return {value, index};
}

// logits: [rows, size] -> [rows] int64: where the largest is, of equal ones the first; -1 where it is not finite
Tensor most_likely(Tensor logits) {
  STD_TORCH_CHECK(logits.dim() == 2 && logits.stride(1) == 1 && logits.size(1) > 0, "most_likely: expected [rows, size]");
  const int64_t rows = logits.size(0), size = logits.size(1), stride = logits.stride(0), parts = (size + PART - 1) / PART;
  Tensor out = torch::stable::new_empty(logits, {rows}, torch::headeronly::ScalarType::Long);
  std::vector<Best> best(rows * parts);
  for_type(logits, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = data<T>(logits);
    parallel_for(0, rows * parts, 4, [&](int64_t begin, int64_t end) {
      vectorized([&]() LIGHTVLLM_BODY {
        for (int64_t i = begin; i < end; i++) {
          const int64_t start = i % parts * PART;
          best[i] = best_of(from + i / parts * stride + start, std::min(PART, size - start));
          best[i].index += start;
        }
      });
    });
  });
  for (int64_t r = 0; r < rows; r++) {
    Best of_row = best[r * parts];
    for (int64_t i = r * parts + 1; i < (r + 1) * parts; i++)
      if (best[i].value > of_row.value || std::isnan(best[i].value)) of_row = best[i];
    data<int64_t>(out)[r] = std::isfinite(of_row.value) ? of_row.index : -1;
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvllm, CPU, m) { m.impl("most_likely", TORCH_BOX(&most_likely)); }

}  // namespace lightvllm
