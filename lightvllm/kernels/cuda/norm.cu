// RMSNorm of rows, alone or of the sum of two; see Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467.
// Reference twins: rms_norm and add_rms_norm in lightvllm/kernels/reference.py; test: tests/kernels/gpu/test_cuda_ops.py.
//
// A row belongs to so many neighbouring threads that each holds a few vectors of it in registers: memory is read once.
// Blocks go from row to row, and ask for the next before they work on the last: memory never waits for a sum.
#include "numbers.h"

namespace lightvllm::cuda {
namespace {

constexpr int KEPT = 4;  // vectors of a row that a thread holds; of longer rows the others are read twice
constexpr int SMALLEST_BLOCK = 128, LARGEST_BLOCK = 512;
constexpr int THREADS_AT_ONCE = 640;  // of a multiprocessor, as the registers allow

// The sum over a row's threads, in each of them; the order depends on nothing but their number. `turn`: the same for all
// threads of the block, and another than the time before.
__device__ inline float sum_of_row(float x, int threads, int turn) {
  x = sum_of_neighbours(x, min(threads, 32));
  if (threads <= 32) return x;
  __shared__ float room[2][LARGEST_BLOCK / 32];  // one is read while the other is written
  float* sums = room[turn % 2];
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
  for (int i = 0; i < WIDTH; i++) sum += number(x, i) * number(x, i);
  return sum;
}

template <class T, int WIDTH>
__device__ inline Vector<T, WIDTH> scaled(const Vector<T, WIDTH>& x, float scale, const Vector<T, WIDTH>& weight) {
  return vector_of<T, WIDTH>([&](int i) { return number(x, i) * scale * number(weight, i); });
}

template <class T, int WIDTH>
__device__ inline Vector<T, WIDTH> sum_of(const Vector<T, WIDTH>& x, const Vector<T, WIDTH>& y) {
  return vector_of<T, WIDTH>([&](int i) { return number(x, i) + number(y, i); });
}

// What a thread holds of a row.
template <class T, int WIDTH>
struct Kept {
  Vector<T, WIDTH> vectors[KEPT];

  __device__ void load_from(const T* row, int first, int step, int size) {
#pragma unroll
    for (int j = 0; j < KEPT; j++)
      if (first + j * step < size) vectors[j] = load<WIDTH>(row + first + j * step);
  }
};

// With ADDS x and update are contiguous, and total = x + update takes the place of x.
template <class T, int WIDTH, bool ADDS>
__global__ void __launch_bounds__(LARGEST_BLOCK, 1) norm_rows(Heads x, const T* update, const T* weight, T* total, T* out,
                                                              float eps, int threads) {
  wait_for_previous();
  let_next_begin();
  const int size = x.size, heads = x.heads, step = threads * WIDTH, first = threadIdx.x % threads * WIDTH;
  const int64_t rows = x.tokens * heads, rows_each = blockDim.x / threads, stride = gridDim.x * rows_each;
  const auto row_of_x = [&](int64_t row) {
    const T* data = static_cast<const T*>(x.data);
    return heads == 1 ? data + row * x.token_stride : data + row / heads * x.token_stride + row % heads * x.head_stride;
  };
  Kept<T, WIDTH> weights, next, next_update;
  weights.load_from(weight, first, step, size);
  int64_t row = blockIdx.x * rows_each + threadIdx.x / threads;
  if (row < rows) {
    next.load_from(row_of_x(row), first, step, size);
    if constexpr (ADDS) next_update.load_from(update + row * size, first, step, size);
  }
  int turn = 0;
  for (int64_t start = blockIdx.x * rows_each; start < rows; start += stride, row += stride, turn++) {
    const int end = row < rows ? size : 0;  // threads without a row still take part in the sums
    const T* from = row < rows ? row_of_x(row) : nullptr;
    Kept<T, WIDTH> kept = next;
    if constexpr (ADDS) {
#pragma unroll
      for (int j = 0; j < KEPT; j++)
        if (first + j * step < end)
          store(total + row * size + first + j * step, kept.vectors[j] = sum_of(kept.vectors[j], next_update.vectors[j]));
    }
    if (row + stride < rows) {
      next.load_from(row_of_x(row + stride), first, step, size);
      if constexpr (ADDS) next_update.load_from(update + (row + stride) * size, first, step, size);
    }
    float sum = 0;
#pragma unroll
    for (int j = 0; j < KEPT; j++)
      if (first + j * step < end) sum += sum_of_squares(kept.vectors[j]);
    for (int i = first + KEPT * step; i < end; i += step) {
      Vector<T, WIDTH> vector = load<WIDTH>(from + i);
      if constexpr (ADDS) store(total + row * size + i, vector = sum_of(vector, load<WIDTH>(update + row * size + i)));
      sum += sum_of_squares(vector);
    }
    const float scale = rsqrtf(sum_of_row(sum, threads, turn) / float(size) + eps);
#pragma unroll
    for (int j = 0; j < KEPT; j++)
      if (first + j * step < end)
        store(out + row * size + first + j * step, scaled(kept.vectors[j], scale, weights.vectors[j]));
    for (int i = first + KEPT * step; i < end; i += step)
      store(out + row * size + i, scaled(load<WIDTH>(ADDS ? total + row * size + i : from + i), scale, load<WIDTH>(weight + i)));
  }
}

template <class T, int WIDTH, bool ADDS>
cudaError_t launch_norm(Heads x, const void* update, const void* weight, void* total, void* out, float eps,
                        cudaStream_t stream) {
  const int64_t vectors = x.size / WIDTH;
  // A warp a row where that is enough; of short rows, several in one warp.
  const int threads = std::clamp(power_of_two(ceil_div(vectors, int64_t(KEPT))), std::min(power_of_two(vectors), 32), LARGEST_BLOCK);
  const int block = std::max(threads, SMALLEST_BLOCK);
  const int64_t needed = ceil_div(x.tokens * x.heads, int64_t(block / threads));
  const unsigned blocks = std::min(needed, multiprocessors() * std::max(THREADS_AT_ONCE / block, 1));
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
