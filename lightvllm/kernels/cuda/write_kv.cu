// Each token's key and value into its slot of the paged cache, as they are or rounded to int8.
// Reference twin: lightvllm/kernels/reference.py; test: tests/kernels/gpu/test_cuda_ops.py.
#include <cfloat>

#include "numbers.h"

namespace lightvllm::cuda {
namespace {

constexpr int THREADS = 256;
constexpr int LARGEST_HEAD = 256;  // in int8

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
  const auto key_part = load_once<WIDTH>(keys + place), value_part = load_once<WIDTH>(values + place);
  const int64_t to = (slots[token] * heads + head) * size + place;
  store(key_cache + to, key_part);
  store(value_cache + to, value_part);
}

// Unlike fmaxf, no number's larger than NaN.
__device__ inline float largest_of(float a, float b) {
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
  return a;
}

// x / step, rounded to an integer, in the lowest byte. The quotient is that of a division: one that is nearly a tie must
// not become one. `inverse` is 1 / step; adding 1.5 * 2^23 leaves no room behind the point.
__device__ inline uint32_t rounded_quotient(float x, float step, float inverse) {
  const float estimate = x * inverse;
  return __float_as_uint(fmaf(fmaf(-estimate, step, x), inverse, estimate) + 12582912.0f);
}

// A thread's share of a head: PIECES vectors, `lanes` vectors apart. What is past the head's end is zero.
template <class T, int WIDTH, int PIECES>
struct Share {
  Vector<T, WIDTH> pieces[PIECES] = {};

  __device__ void load_from(const T* head, int size, int lane, int lanes) {
#pragma unroll
    for (int p = 0; p < PIECES; p++)
      if ((lane + p * lanes) * WIDTH < size) pieces[p] = load<WIDTH>(head + (lane + p * lanes) * WIDTH);
  }

  __device__ float largest() const {
    float result = 0;
#pragma unroll
    for (int i = 0; i < PIECES * WIDTH; i++) result = largest_of(result, fabsf(widen(pieces[i / WIDTH].at[i % WIDTH])));
    return result;
  }

  // `largest` is the whole head's. See round_heads of the reference.
  __device__ void round_to(int8_t* head, float largest, int size, int lane, int lanes) const {
    const float step = largest / 127;
    const bool is_normal = isfinite(largest) && step >= FLT_MIN;
    const float inverse = is_normal ? 1 / step : 0, scale = is_normal ? step : isfinite(largest) ? 0.0f : nanf("");
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      const int place = (lane + p * lanes) * WIDTH;
      Vector<int8_t, WIDTH> rounded;
#pragma unroll
      for (int i = 0; i < WIDTH; i++)
        rounded.at[i] = is_normal ? int8_t(rounded_quotient(widen(pieces[p].at[i]), step, inverse)) : 0;
      if (place < size) store(head + place, rounded);
    }
    if (WIDTH > 1 && lane == 0) *reinterpret_cast<float*>(head + size) = scale;
    if (WIDTH == 1)
      for (int i = lane; i < int(sizeof(scale)); i += lanes) head[size + i] = __float_as_uint(scale) >> (8 * i);
  }
};

// `lanes` neighbouring threads for each token's key and value of one head.
template <class T, int WIDTH, int PIECES>
__global__ void __launch_bounds__(THREADS) round_heads(Heads key, Heads value, int8_t* key_cache, int8_t* value_cache,
                                                       const int64_t* slots, int lanes) {
  wait_for_previous();
  let_next_begin();
  const int64_t index = (int64_t(blockIdx.x) * THREADS + threadIdx.x) / lanes, token = index / key.heads;
  const int64_t head = index - token * key.heads;
  const int lane = threadIdx.x % lanes, size = key.size;
  const bool is_head = token < key.tokens;  // threads of none still take part in the search for the largest
  Share<T, WIDTH, PIECES> keys, values;
  int64_t to = 0;
  if (is_head) {
    keys.load_from(static_cast<const T*>(key.data) + token * key.token_stride + head * key.head_stride, size, lane, lanes);
    values.load_from(static_cast<const T*>(value.data) + token * value.token_stride + head * value.head_stride, size, lane, lanes);
    to = (slots[token] * key.heads + head) * (size + int64_t(sizeof(float)));
  }
  float largest_key = keys.largest(), largest_value = values.largest();
#pragma unroll
  for (int offset = 16; offset; offset /= 2) {
    if (offset >= lanes) continue;
    largest_key = largest_of(largest_key, __shfl_xor_sync(0xffffffff, largest_key, offset));
    largest_value = largest_of(largest_value, __shfl_xor_sync(0xffffffff, largest_value, offset));
  }
  if (!is_head) return;
  keys.round_to(key_cache + to, largest_key, size, lane, lanes);
  values.round_to(value_cache + to, largest_value, size, lane, lanes);
}

template <class T, int WIDTH, int PIECES>
cudaError_t launch_round(Heads key, Heads value, void* key_cache, void* value_cache, const int64_t* slots,
                         cudaStream_t stream) {
  const int lanes = std::min(power_of_two(ceil_div(key.size, int64_t(WIDTH * PIECES))), 32);
  const unsigned blocks = ceil_div(key.tokens * key.heads * lanes, int64_t(THREADS));
  return launch(round_heads<T, WIDTH, PIECES>, blocks, THREADS, 0, stream, key, value, static_cast<int8_t*>(key_cache),
                static_cast<int8_t*>(value_cache), slots, lanes);
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
      if (key.size > LARGEST_HEAD) return cudaErrorNotSupported;
      if (!is_aligned) return launch_round<T, 1, LARGEST_HEAD / 32>(key, value, key_cache, value_cache, slots, stream);
      return launch_round<T, 4, 2>(key, value, key_cache, value_cache, slots, stream);
    }
    if (is_aligned) return launch_copy<T, VECTOR_WIDTH<T>>(key, value, key_cache, value_cache, slots, stream);
    return launch_copy<T, 1>(key, value, key_cache, value_cache, slots, stream);
  });
}

}  // namespace lightvllm::cuda
