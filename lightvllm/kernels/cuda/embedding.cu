// The vector of each token.
// Reference twin: lightvllm/kernels/reference.py; test: tests/kernels/gpu/test_cuda_ops.py.
#include "numbers.h"

namespace lightvllm::cuda {
namespace {

constexpr int VECTORS = 4;  // that a thread asks for before it uses the first
constexpr int WARPS = 4;

// A warp for each token. The host knows no token ids here, so a bad one cannot be refused: it gets zeros, as most_likely's -1 does, which
// stands for a row of logits that were not finite.
template <class T, int WIDTH>
__global__ void copy_rows(const T* weight, const int64_t* token_ids, T* out, int64_t tokens, int64_t vocab_size,
                          int64_t size) {
  wait_for_previous();
  let_next_begin();
  const int64_t token = int64_t(blockIdx.x) * WARPS + threadIdx.x / 32;
  if (token >= tokens) return;
  const int64_t token_id = token_ids[token];
  const bool is_token = token_id >= 0 && token_id < vocab_size;
  for (int64_t start = threadIdx.x % 32 * WIDTH; start < size; start += VECTORS * 32 * WIDTH) {
    Vector<T, WIDTH> vectors[VECTORS] = {};
#pragma unroll
    for (int j = 0; j < VECTORS; j++)
      if (is_token && start + j * 32 * WIDTH < size) vectors[j] = load<WIDTH>(weight + token_id * size + start + j * 32 * WIDTH);
#pragma unroll
    for (int j = 0; j < VECTORS; j++)
      if (start + j * 32 * WIDTH < size) store(out + token * size + start + j * 32 * WIDTH, vectors[j]);
  }
}

}  // namespace

cudaError_t embedding(const void* weight, const int64_t* token_ids, void* out, int64_t tokens, int64_t vocab_size,
                      int64_t size, Type type, cudaStream_t stream) {
  if (tokens * size == 0) return cudaSuccess;
  return for_type(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int WIDTH = VECTOR_WIDTH<T>;
    const bool has_vectors = are_aligned({address(weight), address(out), size * int64_t(sizeof(T))});
    return launch(has_vectors ? copy_rows<T, WIDTH> : copy_rows<T, 1>, unsigned(ceil_div(tokens, int64_t(WARPS))), WARPS * 32,
                  0, stream, static_cast<const T*>(weight), token_ids, static_cast<T*>(out), tokens, vocab_size, size);
  });
}

}  // namespace lightvllm::cuda
