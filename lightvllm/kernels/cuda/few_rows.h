// What `few_rows.cu` computes and its bindings fill in.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lightvllm::cuda {

constexpr int MOST_ROWS = 8;  // more of them keep the matrix units busy in other ways

enum class Number { FLOAT, HALF, BFLOAT16 };

// y = product (+ residual), where product = norm(x) W^T + b, or silu(first half of that) * second half where `is_gated`.
// Rows of x and of the weight may lie further apart than they are long; everything else is contiguous.
struct FewRows {
  const void* x;            // [rows, inputs]
  const void* weight;       // [outputs, inputs]
  const void* bias;         // [outputs] or null
  const void* norm_weight;  // [inputs] of an RMSNorm in front of the product, or null
  const void* residual;     // the shape of y, or null
  void* y;                  // [rows, outputs], half as many where `is_gated`
  int64_t x_stride, weight_stride;
  int rows, inputs, outputs;
  float eps;
  bool is_gated;
};

cudaError_t few_rows_linear(const FewRows& product, Number number, cudaStream_t stream);
cudaError_t few_rows_plain(const FewRows& product, Number number, cudaStream_t stream);

}  // namespace lightvllm::cuda
