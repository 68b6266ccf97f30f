// Adds two vectors. The smallest op there is: docs/how-to/cuda.md walks through it, from schema to test.
// Reference twin: torch.add; test: tests/kernels/gpu/test_cuda_ops.py.
#include "numbers.h"

namespace lightvllm::cuda {
namespace {

// Every thread runs this function, and adds the WIDTH numbers that its own place tells it to.
template <class T, int WIDTH>
__global__ void add(const T* a, const T* b, T* out, int64_t size) {
  wait_for_previous();  // it may have been started while the kernel that makes `a` still runs
  const int64_t first = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH;
  if (first >= size) return;  // the last block is seldom full
  const auto x = load<WIDTH>(a + first), y = load<WIDTH>(b + first);  // one instruction each, 16 bytes
  Vector<T, WIDTH> sum;
#pragma unroll
  for (int i = 0; i < WIDTH; i++) sum.at[i] = narrow<T>(widen(x.at[i]) + widen(y.at[i]));
  store(out + first, sum);
}

template <class T, int WIDTH>
cudaError_t launch_add(const void* a, const void* b, void* out, int64_t size, cudaStream_t stream) {
  constexpr int THREADS = 256;
  const unsigned blocks = ceil_div(size, int64_t(THREADS * WIDTH));
  return launch(add<T, WIDTH>, blocks, THREADS, 0, stream, static_cast<const T*>(a), static_cast<const T*>(b),
                static_cast<T*>(out), size);
}

}  // namespace

cudaError_t vector_add(const void* a, const void* b, void* out, int64_t size, Type type, cudaStream_t stream) {
  if (size == 0) return cudaSuccess;  // a grid without blocks is an error
  return for_type(type, [&](auto zero) {
    using T = decltype(zero);
    // A load of 16 bytes wants an address that 16 divides; a slice may begin anywhere.
    const int64_t bytes = size * int64_t(sizeof(T));
    if (are_aligned({address(a), address(b), address(out), bytes}))
      return launch_add<T, VECTOR_WIDTH<T>>(a, b, out, size, stream);
    return launch_add<T, 1>(a, b, out, size, stream);
  });
}

}  // namespace lightvllm::cuda
