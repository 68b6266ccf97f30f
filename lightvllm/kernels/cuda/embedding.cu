// The vector of each token.
// Reference twin: lightvllm/kernels/reference.py; test: tests/kernels/gpu/test_cuda_ops.py.
#include "numbers.h"

namespace lightvllm::cuda {
namespace {

// The host knows no token ids here, so a bad one cannot be refused: it gets zeros, as most_likely's -1 does, which
// stands for a row of logits that were not finite.
template <class T, int WIDTH>
__global__ void copy_rows(const T* weight, const int64_t* token_ids, T* out, int64_t vocab_size, int64_t size) {
  wait_for_previous();
  let_next_begin();
  const int64_t token = blockIdx.x, token_id = token_ids[token];
  const bool is_token = token_id >= 0 && token_id < vocab_size;
  for (int64_t i = threadIdx.x * WIDTH; i < size; i += blockDim.x * WIDTH)
    store(out + token * size + i, is_token ? load<WIDTH>(weight + token_id * size + i) : Vector<T, WIDTH>{});
}

}  // namespace

cudaError_t embedding(const void* weight, const int64_t* token_ids, void* out, int64_t tokens, int64_t vocab_size,
                      int64_t size, Type type, cudaStream_t stream) {
  if (tokens * size == 0) return cudaSuccess;
  return for_type(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int WIDTH = VECTOR_WIDTH<T>;
    const bool has_vectors = are_aligned({address(weight), address(out), size * int64_t(sizeof(T))});
    const int threads = std::clamp(power_of_two(size / (has_vectors ? WIDTH : 1)), 32, 512);
    return launch(has_vectors ? copy_rows<T, WIDTH> : copy_rows<T, 1>, unsigned(tokens), threads, 0, stream,
                  static_cast<const T*>(weight), token_ids, static_cast<T*>(out), vocab_size, size);
  });
}

}  // namespace lightvllm::cuda
