// Passes over a panel by the matrix unit of Intel's processors from Sapphire Rapids on. See amx.cpp.
#pragma once

#include "quantized_panels.h"

namespace lightvllm {

#if defined(__x86_64__)
constexpr int64_t AMX_ROWS = LONGEST_PASS;

// See Pass and QuantizedPass; the latter for values of 8 bits. For at most AMX_ROWS rows.
void amx_bf16_pass(int64_t rows, Groups x, int64_t x_stride, Groups panel, int64_t groups, const Prefetch& ahead, float* sums);
void amx_quantized_pass(int64_t rows, const RoundedRows& x, const Panel& panel, const Prefetch& ahead, float* sums);
#endif

}  // namespace lightvllm
