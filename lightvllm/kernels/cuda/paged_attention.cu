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

// A block for each token and head; its warps share the splits, and each thread has NUMBERS neighbours of the result.
template <class T, int NUMBERS>
__global__ void __launch_bounds__(THREADS) join_splits(const __grid_constant__ PagedAttention call) {
  constexpr int AT_ONCE = 4;  // splits that a thread asks for before it uses the first
  __shared__ float weights[MOST_SPLITS], numbers[WARPS][LARGEST_HEAD];
  wait_for_previous();
  let_next_begin();
  const int64_t row = blockIdx.x;
  const int size = call.query.size, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Keys keys = keys_of(call, row / call.query.heads);
  const int used = ceil_div(keys.end - keys.begin, max(keys_each(call, keys), 1));
  // Every warp adds up all splits' totals: that is quicker than to tell the others.
  float2 totals[MOST_SPLITS / 32];
  float overall = LOWEST, sum = 0;
#pragma unroll
  for (int i = 0; i < MOST_SPLITS / 32; i++) {
    totals[i] = lane + 32 * i < used ? totals_of(call)[row * call.splits + lane + 32 * i] : float2{LOWEST, 0};
    overall = fmaxf(overall, totals[i].x);
  }
  for (int offset = 16; offset; offset /= 2) overall = fmaxf(overall, __shfl_xor_sync(0xffffffff, overall, offset));
#pragma unroll
  for (int i = 0; i < MOST_SPLITS / 32; i++) {
    const float weight = exp2f(totals[i].x - overall);
    sum += weight * totals[i].y;
    if (warp == 0) weights[lane + 32 * i] = weight;
  }
  sum = sum_of_neighbours(sum, 32);
  __syncthreads();

  for (int place = lane * NUMBERS; place < size; place += 32 * NUMBERS) {
    const float* partials = sums_of(call) + row * call.splits * size + place;
    float result[NUMBERS] = {};
    for (int start = warp; start < used; start += WARPS * AT_ONCE) {
      Vector<float, NUMBERS> parts[AT_ONCE] = {};
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++)
        if (start + j * WARPS < used) parts[j] = load<NUMBERS>(partials + int64_t(start + j * WARPS) * size);
#pragma unroll
      for (int i = 0; i < AT_ONCE * NUMBERS; i++)
        if (start + i / NUMBERS * WARPS < used)
          result[i % NUMBERS] += weights[start + i / NUMBERS * WARPS] * parts[i / NUMBERS].at[i % NUMBERS];
    }
#pragma unroll
    for (int i = 0; i < NUMBERS; i++) numbers[warp][place + i] = result[i];
  }
  __syncthreads();
  for (int place = threadIdx.x; place < size; place += THREADS) {
    float number = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) number += numbers[i][place];
    static_cast<T*>(call.out)[row * size + place] = narrow<T>(number / sum);
  }
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

// The multiprocessors take up blocks in waves; a wave takes as long as one block, that is as its keys and its beginning.
int64_t paged_attention_splits(int64_t requests, int64_t kv_heads, int64_t max_seq_len) {
  constexpr int64_t BLOCKS_EACH = 6, BEGINNING = 64;  // of a multiprocessor, as its registers allow; in keys
  static const int multiprocessors = [] {
    int device = 0, count = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return count;
  }();
  int64_t best = 1, shortest = INT64_MAX;
  for (int64_t splits = 1; splits <= std::min<int64_t>(MOST_SPLITS, ceil_div(max_seq_len, BEGINNING)); splits++) {
    const int64_t waves = ceil_div(requests * kv_heads * splits, multiprocessors * BLOCKS_EACH);
    const int64_t time = waves * (ceil_div(max_seq_len, splits) + BEGINNING);
    if (time < shortest) best = splits, shortest = time;
  }
  return best;
}

cudaError_t paged_attention_v2(const PagedAttention& call, cudaStream_t stream) {
  if (call.query.tokens == 0) return cudaSuccess;
  cudaError_t error = attend_grouped(call, stream);
  if (error == cudaErrorNotSupported) error = attend_any(call, stream);
  if (error != cudaSuccess || call.splits == 1) return error;
  return for_type(call.type, [&](auto zero) {
    using T = decltype(zero);
    return launch(call.query.size % 4 ? join_splits<T, 1> : join_splits<T, 4>, unsigned(call.query.tokens * call.query.heads),
                  THREADS, 0, stream, call);
  });
}

}  // namespace lightvllm::cuda
