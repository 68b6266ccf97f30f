// silu(gate) * up, the activation of gated MLPs.
// Reference twin: lightvllm/kernels/reference.py; test: tests/kernels/gpu/test_cuda_ops.py.
#include "numbers.h"

namespace lightvllm::cuda {
namespace {

constexpr int THREADS = 128;
constexpr int VECTORS = 2;  // of a thread; all are asked for before the first is used

template <class T>
__device__ inline float silu(T x) {
  const float wide = widen(x);
  if constexpr (sizeof(T) < sizeof(float)) return __fdividef(wide, 1 + __expf(-wide));  // what is lost is rounded away
  return wide / (1 + expf(-wide));
}

template <class T, int WIDTH>
__global__ void gate(const T* x, int64_t stride, T* out, int64_t size) {
  wait_for_previous();
  let_next_begin();
  const T* row = x + blockIdx.x * stride;
  const int64_t first = (int64_t(blockIdx.y) * VECTORS * THREADS + threadIdx.x) * WIDTH;
  Vector<T, WIDTH> gates[VECTORS], ups[VECTORS];
#pragma unroll
  for (int j = 0; j < VECTORS; j++) {
    const int64_t i = first + j * THREADS * WIDTH;
    if (i >= size) break;
    gates[j] = load<WIDTH>(row + i);
    ups[j] = load<WIDTH>(row + size + i);
  }
#pragma unroll
  for (int j = 0; j < VECTORS; j++) {
    const int64_t i = first + j * THREADS * WIDTH;
    if (i >= size) break;
    Vector<T, WIDTH> result;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) result.at[k] = narrow<T>(silu(gates[j].at[k]) * widen(ups[j].at[k]));
    store(out + blockIdx.x * size + i, result);
  }
}

template <class T, int WIDTH>
cudaError_t launch_gate(const void* x, int64_t stride, void* out, int64_t tokens, int64_t size, cudaStream_t stream) {
  const dim3 blocks(tokens, ceil_div(size, int64_t(VECTORS * THREADS * WIDTH)));
  return launch(gate<T, WIDTH>, blocks, THREADS, 0, stream, static_cast<const T*>(x), stride, static_cast<T*>(out), size);
}

}  // namespace

cudaError_t silu_and_mul(const void* x, int64_t stride, void* out, int64_t tokens, int64_t size, Type type,
                         cudaStream_t stream) {
  if (tokens * size == 0) return cudaSuccess;
  return for_type(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int64_t BYTES = sizeof(T);
    if (are_aligned({address(x), address(out), stride * BYTES, size * BYTES}))
      return launch_gate<T, VECTOR_WIDTH<T>>(x, stride, out, tokens, size, stream);
    return launch_gate<T, 1>(x, stride, out, tokens, size, stream);
  });
}

}  // namespace lightvllm::cuda
