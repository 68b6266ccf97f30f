// Each token's key and value into its slot of the paged cache, as they are or rounded to int8.
// Reference twin: lightvllm/kernels/reference.py; test: tests/kernels/gpu/test_cuda_ops.py.
#include <cfloat>

#include "numbers.h"

namespace lightvllm::cuda {
namespace {

constexpr int THREADS = 256;

// One vector of the keys and the one of the values at the same place, for each thread.
template <class T, int WIDTH>
__global__ void copy_heads(Heads key, Heads value, T* key_cache, T* value_cache, const int64_t* slots, uint32_t per_head) {
  wait_for_previous();
  let_next_begin();
  const uint32_t heads = key.heads, size = key.size;
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x, token = index / (heads * per_head);
  if (token >= key.tokens) return;
  const uint32_t in_token = index - token * (heads * per_head), head = in_token / per_head;
  const uint32_t place = (in_token - head * per_head) * WIDTH;
  const T* keys = static_cast<const T*>(key.data) + token * key.token_stride + head * key.head_stride;
  const T* values = static_cast<const T*>(value.data) + token * value.token_stride + head * value.head_stride;
  const auto key_part = load<WIDTH>(keys + place), value_part = load<WIDTH>(values + place);
  const int64_t to = (slots[token] * heads + head) * size + place;
  store(key_cache + to, key_part);
  store(value_cache + to, value_part);
}

// A head in int8, see round_heads of the reference: a warp's work.
template <class T, int WIDTH>
__device__ inline void round_head(const T* x, int size, int8_t* to) {
  const int lane = threadIdx.x % 32;
  float largest = 0;
  bool is_finite = true;
  for (int i = lane * WIDTH; i < size; i += 32 * WIDTH) {
    const auto part = load<WIDTH>(x + i);
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
      largest = fmaxf(largest, fabsf(widen(part.at[j])));  // which passes over NaN
      is_finite = is_finite && isfinite(widen(part.at[j]));
    }
  }
  is_finite = __all_sync(0xffffffff, is_finite);
  for (int offset = 16; offset; offset /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, offset));
  const float step = largest / 127;
  const bool is_normal = is_finite && step >= FLT_MIN;
  for (int i = lane * WIDTH; i < size; i += 32 * WIDTH) {
    const auto part = load<WIDTH>(x + i);
    Vector<int8_t, WIDTH> rounded;
#pragma unroll
    for (int j = 0; j < WIDTH; j++) rounded.at[j] = is_normal ? int8_t(__float2int_rn(widen(part.at[j]) / step)) : 0;
    store(to + i, rounded);
  }
  const float scale = is_normal ? step : is_finite ? 0.0f : nanf("");
  if (lane < int(sizeof(scale))) to[size + lane] = __float_as_uint(scale) >> (8 * lane);  // it may lie anywhere
}

// A warp for each head, first of the keys, then of the values.
template <class T, int WIDTH>
__global__ void round_heads(Heads key, Heads value, int8_t* key_cache, int8_t* value_cache, const int64_t* slots) {
  wait_for_previous();
  let_next_begin();
  const int64_t row = int64_t(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32, rows = key.tokens * key.heads;
  if (row >= 2 * rows) return;
  const bool is_value = row >= rows;
  const Heads& x = is_value ? value : key;
  const int64_t token = (is_value ? row - rows : row) / key.heads, head = row % key.heads;
  const T* from = static_cast<const T*>(x.data) + token * x.token_stride + head * x.head_stride;
  const int64_t to = (slots[token] * key.heads + head) * (key.size + int64_t(sizeof(float)));
  round_head<T, WIDTH>(from, key.size, (is_value ? value_cache : key_cache) + to);
}

template <class T, int WIDTH>
cudaError_t launch_copy(Heads key, Heads value, void* key_cache, void* value_cache, const int64_t* slots,
                        cudaStream_t stream) {
  const uint32_t per_head = key.size / WIDTH;
  const unsigned blocks = ceil_div(key.tokens * key.heads * per_head, int64_t(THREADS));
  return launch(copy_heads<T, WIDTH>, blocks, THREADS, 0, stream, key, value, static_cast<T*>(key_cache),
                static_cast<T*>(value_cache), slots, per_head);
}

}  // namespace

cudaError_t write_kv(Heads key, Heads value, void* key_cache, void* value_cache, const int64_t* slots, Type type,
                     Type cache_type, cudaStream_t stream) {
  if (key.tokens * key.heads * key.size == 0) return cudaSuccess;
  return for_type(type, [&](auto zero) {
    using T = decltype(zero);
    const bool is_aligned = are_aligned(key, sizeof(T)) && are_aligned(value, sizeof(T)) &&
                            are_aligned({address(key_cache), address(value_cache)});
    if (cache_type == Type::INT8) {
      const unsigned blocks = ceil_div(2 * key.tokens * key.heads, int64_t(THREADS / 32));
      return launch(is_aligned ? round_heads<T, 4> : round_heads<T, 1>, blocks, THREADS, 0, stream, key, value,
                    static_cast<int8_t*>(key_cache), static_cast<int8_t*>(value_cache), slots);
    }
    if (is_aligned) return launch_copy<T, VECTOR_WIDTH<T>>(key, value, key_cache, value_cache, slots, stream);
    return launch_copy<T, 1>(key, value, key_cache, value_cache, slots, stream);
  });
}

}  // namespace lightvllm::cuda
