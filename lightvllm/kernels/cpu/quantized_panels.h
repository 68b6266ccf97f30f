// The inner loops of quantized_linear.cpp: rounded rows by one panel of a quantized weight.
#pragma once

#include "panels.h"

namespace lightvllm {

constexpr int64_t QUAD = 4;

// The inputs of a product, rounded: x[row, i] = scales[row, group of i] * values[row, i].
struct RoundedRows {
  const int8_t* values;  // [rows, stride], from -127 on
  int64_t stride;
  const float* scales;  // [rows, groups]
  const int32_t* sums;  // [rows, groups], of the values
};

// A weight's panel and what its integers mean.
struct Panel {
  const uint8_t* values;    // [quads, PANEL, QUAD], or two quads in each
  const float* scales;      // [groups, PANEL]
  const int32_t* zeros;     // [groups, PANEL], or none: `zero` for all
  int32_t zero;
  const uint8_t* codebook;  // [16], or none
  int64_t quads, groups, quads_per_group;

  LIGHTVLLM_INLINE int64_t first_quad(int64_t group) const { return group * quads_per_group; }
  LIGHTVLLM_INLINE int64_t last_quad(int64_t group) const { return std::min((group + 1) * quads_per_group, quads); }
};

// sums[row, PANEL] = the rows by the panel.
typedef void (*QuantizedPass)(int64_t rows, const RoundedRows& x, const Panel& panel, const Prefetch& ahead, float* sums);

// How a weight is multiplied. Where there is a `widen`, it makes bytes of a panel's halves, and the pass reads those.
struct QuantizedKernel {
  QuantizedPass pass;
  void (*widen)(const Panel& halves, uint8_t* bytes) = nullptr;
  int64_t max_rows = MAX_ROWS;
};

// For some rows by weights of 8 bits, or of 4, which may be indices into a codebook.
QuantizedKernel quantized_kernel(int64_t rows, int64_t bits, bool has_codebook);

}  // namespace lightvllm
