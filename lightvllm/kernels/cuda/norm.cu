// RMSNorm of rows, alone or of the sum of two; see Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467.
// Reference twins: rms_norm and add_rms_norm in lightvllm/kernels/reference.py; test: tests/kernels/gpu/test_cuda_ops.py.
//
// A row belongs to so many neighbouring threads that each holds a few vectors of it in registers: memory is read once.
#include "numbers.h"

namespace lightvllm::cuda {
namespace {

constexpr int KEPT = 4;             // vectors of a row that a thread holds; of longer rows the others are read twice
constexpr int SMALLEST_BLOCK = 128;
constexpr int LARGEST_BLOCK = 512;  // at which every thread has the registers it wants

// The sum over a row's threads, in each of them; the order depends on nothing but their number.
__device__ inline float sum_of_row(float x, int threads) {
  x = sum_of_neighbours(x, min(threads, 32));
  if (threads <= 32) return x;
  __shared__ float sums[LARGEST_BLOCK / 32];
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  const int warps = threads / 32, first = threadIdx.x / threads * warps;
  x = 0;
  for (int warp = 0; warp < warps; warp++) x += sums[first + warp];
  return x;
}

template <class T, int WIDTH>
__device__ inline float sum_of_squares(const Vector<T, WIDTH>& x) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < WIDTH; i++) sum += widen(x.at[i]) * widen(x.at[i]);
  return sum;
}

template <class T, int WIDTH>
__device__ inline Vector<T, WIDTH> scaled(const Vector<T, WIDTH>& x, float scale, const Vector<T, WIDTH>& weight) {
  Vector<T, WIDTH> result;
#pragma unroll
  for (int i = 0; i < WIDTH; i++) result.at[i] = narrow<T>(widen(x.at[i]) * scale * widen(weight.at[i]));
  return result;
}

template <class T, int WIDTH>
__device__ inline Vector<T, WIDTH> sum_of(const Vector<T, WIDTH>& x, const Vector<T, WIDTH>& y) {
  Vector<T, WIDTH> sum;
#pragma unroll
  for (int i = 0; i < WIDTH; i++) sum.at[i] = narrow<T>(widen(x.at[i]) + widen(y.at[i]));
  return sum;
}

// With ADDS x and update are contiguous, and total = x + update takes the place of x.
template <class T, int WIDTH, bool ADDS>
__global__ void __launch_bounds__(LARGEST_BLOCK, 1) norm_rows(Heads x, const T* update, const T* weight, T* total, T* out, float eps, int threads) {
  wait_for_previous();
  let_next_begin();
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x / threads) + threadIdx.x / threads;
  const bool is_row = row < x.tokens * x.heads;  // threads of none still take part in the sums
  const int64_t end = is_row ? x.size : 0, step = threads * WIDTH, first = threadIdx.x % threads * WIDTH;
  const T* from = static_cast<const T*>(x.data);
  from += x.heads == 1 ? row * x.token_stride : row / x.heads * x.token_stride + row % x.heads * x.head_stride;
  update += row * x.size, total += row * x.size, out += row * x.size;

  Vector<T, WIDTH> kept[KEPT], weights[KEPT];
#pragma unroll
  for (int j = 0; j < KEPT; j++)
    if (first + j * step < end) kept[j] = load<WIDTH>(from + first + j * step);
  if constexpr (ADDS) {
    Vector<T, WIDTH> updates[KEPT];
#pragma unroll
    for (int j = 0; j < KEPT; j++)
      if (first + j * step < end) updates[j] = load<WIDTH>(update + first + j * step);
#pragma unroll
    for (int j = 0; j < KEPT; j++)
      if (first + j * step < end) store(total + first + j * step, kept[j] = sum_of(kept[j], updates[j]));
  }
  float sum = 0;
#pragma unroll
  for (int j = 0; j < KEPT; j++) {
    if (first + j * step >= end) break;
    weights[j] = load<WIDTH>(weight + first + j * step);
    sum += sum_of_squares(kept[j]);
  }
  for (int64_t i = first + KEPT * step; i < end; i += step) {
    Vector<T, WIDTH> vector = load<WIDTH>(from + i);
    if constexpr (ADDS) store(total + i, vector = sum_of(vector, load<WIDTH>(update + i)));
    sum += sum_of_squares(vector);
  }
  const float scale = rsqrtf(sum_of_row(sum, threads) / x.size + eps);
#pragma unroll
  for (int j = 0; j < KEPT; j++)
    if (first + j * step < end) store(out + first + j * step, scaled(kept[j], scale, weights[j]));
  for (int64_t i = first + KEPT * step; i < end; i += step)
    store(out + i, scaled(load<WIDTH>((ADDS ? total : from) + i), scale, load<WIDTH>(weight + i)));
}

template <class T, int WIDTH, bool ADDS>
cudaError_t launch_norm(Heads x, const void* update, const void* weight, void* total, void* out, float eps,
                        cudaStream_t stream) {
  const int64_t vectors = x.size / WIDTH;
  // A warp a row where that is enough; of short rows, several in one warp.
  const int threads = std::clamp(power_of_two(ceil_div(vectors, int64_t(KEPT))), std::min(power_of_two(vectors), 32), LARGEST_BLOCK);
  const int block = std::max(threads, SMALLEST_BLOCK);
  const unsigned blocks = ceil_div(x.tokens * x.heads, int64_t(block / threads));
  return launch(norm_rows<T, WIDTH, ADDS>, blocks, block, 0, stream, x, static_cast<const T*>(update),
                static_cast<const T*>(weight), static_cast<T*>(total), static_cast<T*>(out), eps, threads);
}

}  // namespace

cudaError_t rms_norm(Heads x, const void* weight, void* out, float eps, Type type, cudaStream_t stream) {
  if (x.tokens * x.heads * x.size == 0) return cudaSuccess;
  return for_type(type, [&](auto zero) {
    using T = decltype(zero);
    if (are_aligned(x, sizeof(T)) && are_aligned({address(weight), address(out)}))
      return launch_norm<T, VECTOR_WIDTH<T>, false>(x, nullptr, weight, nullptr, out, eps, stream);
    return launch_norm<T, 1, false>(x, nullptr, weight, nullptr, out, eps, stream);
  });
}

cudaError_t add_rms_norm(const void* x, const void* update, const void* weight, void* total, void* out, int64_t tokens,
                         int64_t size, float eps, Type type, cudaStream_t stream) {
  if (tokens * size == 0) return cudaSuccess;
  const Heads rows = {x, tokens, 1, size, size, size};
  return for_type(type, [&](auto zero) {
    using T = decltype(zero);
    if (are_aligned(rows, sizeof(T)) && are_aligned({address(update), address(weight), address(total), address(out)}))
      return launch_norm<T, VECTOR_WIDTH<T>, true>(rows, update, weight, total, out, eps, stream);
    return launch_norm<T, 1, true>(rows, update, weight, total, out, eps, stream);
  });
}

}  // namespace lightvllm::cuda
