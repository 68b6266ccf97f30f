// Products for a few rows that `few_rows.cu` has no faster way for: float32, sizes that are no multiples of 32, and GPUs
// before Hopper.
//
// Reference twin: `few_rows_linear` in kernels/reference.py. Test: tests/kernels/gpu/test_few_rows.py.
#include "few_rows.h"
#include "launch.h"
#include "matrix_unit.h"

namespace lightvllm::cuda {
namespace {

constexpr int WARPS = 8;

// A warp for each output, one number of a lane at a time.
template <typename T>
__global__ void __launch_bounds__(32 * WARPS) plain_kernel(const FewRows p, int units) {
  wait_for_previous();
  __shared__ float squares[WARPS][MOST_ROWS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const T *x = static_cast<const T*>(p.x), *norm_weight = static_cast<const T*>(p.norm_weight);
  float scales[MOST_ROWS];
  for (int row = 0; row < p.rows && norm_weight; row++) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < p.inputs; i += 32 * WARPS) {
      const float value = x[row * p.x_stride + i];
      sum += value * value;
    }
    sum = warp_sum(sum);
    if (lane == 0) squares[warp][row] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int row = 0; row < MOST_ROWS; row++) {
    float sum = 0.0f;
    for (int i = 0; i < WARPS && row < p.rows && norm_weight; i++) sum += squares[i][row];
    scales[row] = rsqrtf(sum / p.inputs + p.eps);
  }
  const int unit = blockIdx.x * WARPS + warp;
  if (unit >= units) return;
  float sums[2][MOST_ROWS] = {};
  for (int half = 0; half < (p.is_gated ? 2 : 1); half++) {
    const T* weight = static_cast<const T*>(p.weight) + (unit + half * units) * p.weight_stride;
#pragma unroll 4
    for (int i = lane; i < p.inputs; i += 32) {
      const float w = weight[i], n = norm_weight ? static_cast<float>(norm_weight[i]) : 1.0f;
#pragma unroll
      for (int row = 0; row < MOST_ROWS; row++) {
        if (row >= p.rows) break;
        float value = x[row * p.x_stride + i];
        if (norm_weight) value = static_cast<float>(narrow<T>(value * scales[row] * n));
        sums[half][row] += w * value;
      }
    }
  }
  const auto bias_of = [&](int output) {
    return p.bias ? static_cast<float>(static_cast<const T*>(p.bias)[output]) : 0.0f;
  };
#pragma unroll
  for (int row = 0; row < MOST_ROWS; row++) {
    if (row >= p.rows) break;
    const float sum = warp_sum(sums[0][row]) + bias_of(unit);
    const float partner = p.is_gated ? warp_sum(sums[1][row]) + bias_of(unit + units) : 0.0f;
    const T* residual = static_cast<const T*>(p.residual);
    const float added = residual ? static_cast<float>(residual[static_cast<int64_t>(row) * units + unit]) : 0.0f;
    const float result = (p.is_gated ? silu(sum) * partner : sum) + added;
    if (lane == 0) static_cast<T*>(p.y)[static_cast<int64_t>(row) * units + unit] = narrow<T>(result);
  }
}

template <typename T>
cudaError_t launch_plain(const FewRows& p, cudaStream_t stream) {
  const int units = p.is_gated ? p.outputs / 2 : p.outputs;
  return launch(plain_kernel<T>, dim3((units + WARPS - 1) / WARPS), dim3(32 * WARPS), 0, stream, p, units);
}

}  // namespace

cudaError_t few_rows_plain(const FewRows& product, Number number, cudaStream_t stream) {
  switch (number) {
    case Number::FLOAT: return launch_plain<float>(product, stream);
    case Number::HALF: return launch_plain<__half>(product, stream);
    default: return launch_plain<__nv_bfloat16>(product, stream);
  }
}

}  // namespace lightvllm::cuda
