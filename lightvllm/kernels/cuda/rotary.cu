// Rotary position embedding of heads, and before it an RMSNorm of each where there are weights.
// RoPE: Su et al., 2021, https://arxiv.org/abs/2104.09864.
// Reference twins: rotary and rotary_qkv in lightvllm/kernels/reference.py; test: tests/kernels/gpu/test_cuda_ops.py.
#include "numbers.h"

namespace lightvllm::cuda {
namespace {

constexpr int AT_ONCE = 4;  // heads that a thread asks for before it uses the first
constexpr int MOST_THREADS = 256;

template <class T, int WIDTH>
struct Pair {
  Vector<T, WIDTH> first, second;  // of one head, from the same place of its two halves
};

template <class T, int WIDTH>
__device__ inline Pair<T, WIDTH> load_pair(const T* first, int64_t half) {
  return {load<WIDTH>(first), load<WIDTH>(first + half)};
}

// Rounded once, as the norm alone would be.
template <class T, int WIDTH>
__device__ inline void scale(Pair<T, WIDTH>& x, float by, const Pair<T, WIDTH>& weight) {
#pragma unroll
  for (int i = 0; i < WIDTH; i++) {
    x.first.at[i] = narrow<T>(widen(x.first.at[i]) * by * widen(weight.first.at[i]));
    x.second.at[i] = narrow<T>(widen(x.second.at[i]) * by * widen(weight.second.at[i]));
  }
}

template <class T, int WIDTH>
__device__ inline void rotate(Pair<T, WIDTH>& x, const Pair<float, WIDTH>& cos, const Pair<float, WIDTH>& sin) {
#pragma unroll
  for (int i = 0; i < WIDTH; i++) {
    const float first = widen(x.first.at[i]), second = widen(x.second.at[i]);
    x.first.at[i] = narrow<T>(first * cos.first.at[i] - second * sin.first.at[i]);
    x.second.at[i] = narrow<T>(second * cos.second.at[i] + first * sin.second.at[i]);
  }
}

template <class T, int WIDTH>
__device__ inline float sum_of_squares(const Pair<T, WIDTH>& x) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < WIDTH; i++)
    sum += widen(x.first.at[i]) * widen(x.first.at[i]) + widen(x.second.at[i]) * widen(x.second.at[i]);
  return sum;
}

// A block has one token. `lanes` neighbouring threads share a head, each with one pair of vectors of it: what a thread
// reads of cosines, sines and weights serves all heads that it comes to.
template <class T, int WIDTH>
__global__ void rotate_vectors(Heads x, Rotation by, T* out, int lanes) {
  wait_for_previous();
  let_next_begin();
  const int64_t half = x.size / 2, token = blockIdx.x, place = threadIdx.x % lanes * WIDTH;
  const int group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  const bool has_place = place < half;
  const T* from = static_cast<const T*>(x.data) + token * x.token_stride + place;
  out += token * x.heads * x.size + place;
  Pair<float, WIDTH> cos, sin;
  Pair<T, WIDTH> query_weight, key_weight;
  if (has_place) {
    cos = load_pair<float, WIDTH>(by.cos + token * x.size + place, half);
    sin = load_pair<float, WIDTH>(by.sin + token * x.size + place, half);
    if (by.query_weight) {
      query_weight = load_pair<T, WIDTH>(static_cast<const T*>(by.query_weight) + place, half);
      key_weight = load_pair<T, WIDTH>(static_cast<const T*>(by.key_weight) + place, half);
    }
  }
  const int num_heads = x.heads, num_rotated = by.num_heads + by.num_kv_heads;
  for (int start = 0; start < num_heads; start += groups * AT_ONCE) {  // the same for all: sums need every thread
    Pair<T, WIDTH> heads[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
      const int head = start + j * groups + group;
      heads[j] = {};
      if (has_place && head < num_heads) heads[j] = load_pair<T, WIDTH>(from + head * x.head_stride, half);
    }
    if (by.query_weight) {
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++) {
        const int head = start + j * groups + group;
        const float sum = sum_of_neighbours(sum_of_squares(heads[j]), lanes), scale_by = rsqrtf(sum / x.size + by.eps);
        if (head < by.num_heads) scale(heads[j], scale_by, query_weight);
        else if (head < num_rotated) scale(heads[j], scale_by, key_weight);
      }
    }
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
      const int head = start + j * groups + group;
      if (head < num_rotated) rotate(heads[j], cos, sin);
      if (has_place && head < num_heads) {
        store(out + head * x.size, heads[j].first);
        store(out + head * x.size + half, heads[j].second);
      }
    }
  }
}

// Heads of any size, wherever they lie: a warp for each, and a pair of numbers at a time.
template <class T>
__global__ void rotate_numbers(Heads x, Rotation by, T* out) {
  wait_for_previous();
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32, half = x.size / 2;
  if (row >= x.tokens * x.heads) return;  // whole warps
  const int64_t token = row / x.heads, head = row % x.heads;
  const bool is_key = head >= by.num_heads, is_rotated = head < by.num_heads + by.num_kv_heads;
  const T* from = static_cast<const T*>(x.data) + token * x.token_stride + head * x.head_stride;
  const T* weight = static_cast<const T*>(is_key ? by.key_weight : by.query_weight);
  float sum = 0;
  for (int64_t i = threadIdx.x % 32; i < half; i += 32) sum += sum_of_squares(load_pair<T, 1>(from + i, half));
  const float by_norm = rsqrtf(sum_of_neighbours(sum, 32) / x.size + by.eps);
  for (int64_t i = threadIdx.x % 32; i < half; i += 32) {
    Pair<T, 1> pair = load_pair<T, 1>(from + i, half);
    if (is_rotated && weight) scale(pair, by_norm, load_pair<T, 1>(weight + i, half));
    const int64_t angle = token * x.size + i;
    if (is_rotated) rotate(pair, load_pair<float, 1>(by.cos + angle, half), load_pair<float, 1>(by.sin + angle, half));
    store(out + row * x.size + i, pair.first);
    store(out + row * x.size + half + i, pair.second);
  }
}

}  // namespace

cudaError_t rotate_heads(Heads x, Rotation by, void* out, Type type, cudaStream_t stream) {
  if (x.tokens * x.heads * x.size == 0) return cudaSuccess;
  return for_type(type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int WIDTH = VECTOR_WIDTH<T>;
    const int64_t vectors = x.size / 2 / WIDTH;
    if (x.size % (2 * WIDTH) == 0 && vectors <= 32 && are_aligned(x, sizeof(T)) &&
        are_aligned({address(by.query_weight), address(by.key_weight), address(by.cos), address(by.sin), address(out)})) {
      const int lanes = power_of_two(vectors);
      const int64_t threads = ceil_div(lanes * ceil_div(x.heads, int64_t(AT_ONCE)), int64_t(32)) * 32;
      return launch(rotate_vectors<T, WIDTH>, unsigned(x.tokens), unsigned(std::min<int64_t>(threads, MOST_THREADS)), 0,
                    stream, x, by, static_cast<T*>(out), lanes);
    }
    const unsigned blocks = ceil_div(x.tokens * x.heads, int64_t(4));
    return launch(rotate_numbers<T>, blocks, 4 * 32, 0, stream, x, by, static_cast<T*>(out));
  });
}

}  // namespace lightvllm::cuda
