// Attention of single tokens over keys and values in the blocks of a paged cache.
// PagedAttention: Kwon et al., 2023, https://arxiv.org/abs/2309.06180. Splitting the context: Flash-Decoding, Dao et al.,
// 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html.
// Reference twin: paged_attention in lightvllm/kernels/reference.py; test: tests/kernels/gpu/test_cuda_attention.py.
//
// v1: a block for each token and query head goes through all keys. v2: as many as fill the GPU share the context of one,
// and a second kernel puts their results together.
#include "paged_attention.h"

namespace lightvllm::cuda {
namespace {

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * 32;

// One thread's share of a head: PIECES vectors, `lanes` vectors apart. What is past the head's end is zero.
template <class C, int WIDTH, int PIECES>
struct Share {
  Vector<C, WIDTH> pieces[PIECES];

  __device__ void load_from(const C* head, int lane, int lanes, int size) {
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
      const int place = (lane + p * lanes) * WIDTH;
      pieces[p] = place < size ? load<WIDTH>(head + place) : Vector<C, WIDTH>{};
    }
  }
};

// An int8 head's scale, behind its numbers: aligned to four bytes if they are.
template <int WIDTH>
__device__ inline float scale_behind(const int8_t* head, int size) {
  if constexpr (WIDTH > 1) return *reinterpret_cast<const float*>(head + size);
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) bits |= uint32_t(uint8_t(head[size + i])) << (8 * i);
  return __uint_as_float(bits);
}

// `lanes` neighbouring threads go through keys, each with its share of every head: a power of two, up to 32.
template <class T, class C, int WIDTH, int PIECES>
__global__ void __launch_bounds__(THREADS) attend(const __grid_constant__ PagedAttention call, int lanes) {
  constexpr int UNROLL = WIDTH > 1 ? 4 : 1;  // keys whose loads are under way together
  constexpr int NUMBERS = WIDTH * PIECES;
  constexpr bool IS_INT8 = sizeof(C) == 1;
  __shared__ float numbers[WARPS][LARGEST_HEAD], largests[WARPS], sums[WARPS];
  wait_for_previous();
  let_next_begin();
  const int64_t row = blockIdx.x, token = row / call.query.heads, head = row % call.query.heads;
  const Keys keys = keys_of(call, token, blockIdx.y);
  if (keys.begin >= keys.end) return;  // the split has nothing
  const int size = call.query.size, lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = THREADS / lanes;
  const int64_t head_bytes = size + (IS_INT8 ? int64_t(sizeof(float)) : 0), slot_stride = call.kv_heads * head_bytes;
  const int64_t kv_head = head / (call.query.heads / call.kv_heads);
  const C* key_heads = static_cast<const C*>(call.key_cache) + kv_head * head_bytes;
  const C* value_heads = static_cast<const C*>(call.value_cache) + kv_head * head_bytes;

  const T* from = static_cast<const T*>(call.query.data) + token * call.query.token_stride + head * call.query.head_stride;
  float query[NUMBERS], sum_of_values[NUMBERS] = {}, largest = LOWEST, sum = 0;
#pragma unroll
  for (int i = 0; i < NUMBERS; i++) {
    const int place = (lane + i / WIDTH * lanes) * WIDTH + i % WIDTH;
    query[i] = place < size ? widen(from[place]) * call.scale * LOG2_E : 0;
  }
  for (int start = keys.begin; start < keys.end; start += groups * UNROLL) {
    Share<C, WIDTH, PIECES> key[UNROLL], value[UNROLL];
    float scores[UNROLL], value_scales[UNROLL], largest_now = largest;
#pragma unroll
    for (int j = 0; j < UNROLL; j++) {
      const int position = min(start + j * groups + group, keys.end - 1);
      const int64_t offset = slot_of(call, keys, position) * slot_stride;
      key[j].load_from(key_heads + offset, lane, lanes, size);
      value[j].load_from(value_heads + offset, lane, lanes, size);
      scores[j] = value_scales[j] = 1;
      if constexpr (IS_INT8) {
        scores[j] = scale_behind<WIDTH>(key_heads + offset, size);
        value_scales[j] = scale_behind<WIDTH>(value_heads + offset, size);
      }
    }
#pragma unroll
    for (int j = 0; j < UNROLL; j++) {
      float product = 0;
#pragma unroll
      for (int i = 0; i < NUMBERS; i++) product += query[i] * widen(key[j].pieces[i / WIDTH].at[i % WIDTH]);
      scores[j] *= sum_of_neighbours(product, lanes);
      if (start + j * groups + group >= keys.end) scores[j] = -INFINITY;
      largest_now = fmaxf(largest_now, scores[j]);
    }
    const float keep = exp2f(largest - largest_now);
    largest = largest_now, sum *= keep;
#pragma unroll
    for (int i = 0; i < NUMBERS; i++) sum_of_values[i] *= keep;
#pragma unroll
    for (int j = 0; j < UNROLL; j++) {
      const float weight = exp2f(scores[j] - largest);
      sum += weight;
#pragma unroll
      for (int i = 0; i < NUMBERS; i++)
        sum_of_values[i] += weight * value_scales[j] * widen(value[j].pieces[i / WIDTH].at[i % WIDTH]);
    }
  }

  for (int offset = lanes; offset < 32; offset *= 2) {  // groups of one warp
    const float other = __shfl_xor_sync(0xffffffff, largest, offset), overall = fmaxf(largest, other);
    const float keep = exp2f(largest - overall);
    largest = overall, sum *= keep;
    sum += __shfl_xor_sync(0xffffffff, sum, offset);
#pragma unroll
    for (int i = 0; i < NUMBERS; i++) {
      sum_of_values[i] *= keep;
      sum_of_values[i] += __shfl_xor_sync(0xffffffff, sum_of_values[i], offset);
    }
  }
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 < lanes) {
#pragma unroll
    for (int i = 0; i < NUMBERS; i++) {
      const int place = (lane + i / WIDTH * lanes) * WIDTH + i % WIDTH;
      if (place < size) numbers[warp][place] = sum_of_values[i];
    }
    largests[warp] = largest, sums[warp] = sum;
  }
  __syncthreads();
  put_together<T, WARPS>(call, row, blockIdx.y, numbers[0], LARGEST_HEAD, largests, sums, 1, threadIdx.x, THREADS);
}

// A block for each token and head; its warps share the splits.
template <class T>
__global__ void __launch_bounds__(THREADS) join_splits(const __grid_constant__ PagedAttention call) {
  constexpr int NUMBERS = LARGEST_HEAD / 32;
  __shared__ float numbers[WARPS][LARGEST_HEAD], largests[WARPS], sums[WARPS];
  wait_for_previous();
  let_next_begin();
  const int64_t row = blockIdx.x;
  const int size = call.query.size, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sum_of_values[NUMBERS] = {}, largest = LOWEST, sum = 0;
  for (int split = warp; split < call.splits; split += WARPS) {
    const Keys keys = keys_of(call, row / call.query.heads, split);
    if (keys.begin >= keys.end) break;  // nor have those behind it
    const float* partial = call.partials + (row * call.splits + split) * (size + PARTIAL_EXTRA);
    const float overall = fmaxf(largest, partial[size]), keep = exp2f(largest - overall);
    const float weight = exp2f(partial[size] - overall);
    largest = overall, sum = sum * keep + weight * partial[size + 1];
#pragma unroll
    for (int i = 0; i < NUMBERS; i++)
      if (lane + i * 32 < size) sum_of_values[i] = sum_of_values[i] * keep + weight * partial[lane + i * 32];
  }
#pragma unroll
  for (int i = 0; i < NUMBERS; i++)
    if (lane + i * 32 < size) numbers[warp][lane + i * 32] = sum_of_values[i];
  if (lane == 0) largests[warp] = largest, sums[warp] = sum;
  __syncthreads();
  PagedAttention whole = call;
  whole.splits = 1;
  put_together<T, WARPS>(whole, row, 0, numbers[0], LARGEST_HEAD, largests, sums, 1, threadIdx.x, THREADS);
}

template <class T, class C, int WIDTH, int PIECES>
cudaError_t launch_attend(const PagedAttention& call, cudaStream_t stream) {
  const dim3 blocks(call.query.tokens * call.query.heads, call.splits);
  const int lanes = std::min(power_of_two(ceil_div(call.query.size, int64_t(WIDTH))), 32);
  return launch(attend<T, C, WIDTH, PIECES>, blocks, THREADS, 0, stream, call, lanes);
}

cudaError_t attend_any(const PagedAttention& call, cudaStream_t stream) {
  return for_type(call.type, [&](auto zero) {
    using T = decltype(zero);
    if (call.cache_type == Type::INT8) {
      if (call.query.size % 4 == 0) return launch_attend<T, int8_t, 4, LARGEST_HEAD / 4 / 32>(call, stream);
      return launch_attend<T, int8_t, 1, LARGEST_HEAD / 32>(call, stream);
    }
    constexpr int WIDTH = VECTOR_WIDTH<T>;
    if (are_aligned({address(call.key_cache), address(call.value_cache), call.query.size * int64_t(sizeof(T))}))
      return launch_attend<T, T, WIDTH, LARGEST_HEAD / WIDTH / 32>(call, stream);
    return launch_attend<T, T, 1, LARGEST_HEAD / 32>(call, stream);
  });
}

}  // namespace

cudaError_t paged_attention_v1(const PagedAttention& call, cudaStream_t stream) {
  if (call.query.tokens == 0) return cudaSuccess;
  return attend_any(call, stream);
}

int64_t paged_attention_splits(int64_t requests, int64_t kv_heads, int64_t max_seq_len) {
  constexpr int64_t BLOCKS_EACH = 24, FEWEST_KEYS = 256, MOST = 64;
  static const int multiprocessors = [] {
    int device = 0, count = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return count;
  }();
  // Blocks of one multiprocessor should be so many that the last of them matter little, and each worth its beginning.
  const int64_t wanted = ceil_div(multiprocessors * BLOCKS_EACH, std::max<int64_t>(requests * kv_heads, 1));
  return std::clamp<int64_t>(wanted, 1, std::clamp<int64_t>(ceil_div(max_seq_len, FEWEST_KEYS), 1, MOST));
}

cudaError_t paged_attention_v2(const PagedAttention& call, cudaStream_t stream) {
  if (call.query.tokens == 0) return cudaSuccess;
  cudaError_t error = attend_grouped(call, stream);
  if (error == cudaErrorNotSupported) error = attend_any(call, stream);
  if (error != cudaSuccess || call.splits == 1) return error;
  return for_type(call.type, [&](auto zero) {
    return launch(join_splits<decltype(zero)>, unsigned(call.query.tokens * call.query.heads), THREADS, 0, stream, call);
  });
}

}  // namespace lightvllm::cuda
