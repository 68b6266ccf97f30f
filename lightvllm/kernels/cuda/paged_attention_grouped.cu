// Paged attention where query heads share keys (grouped queries): each key and value is read once for all of them.
// Reference twin: paged_attention in lightvllm/kernels/reference.py; test: tests/kernels/gpu/test_cuda_attention.py.
//
// What a key meets is a small matrix, up to 8 query heads, so tensor cores do the products, with mma.m16n8k16 of the PTX
// ISA: 16 keys times 8 heads, then numbers of values times those heads. A warp goes through its keys 16 at a time; what
// comes next is loaded while the last is worked on, straight into the registers that the products take it from.
#include <type_traits>

#include "paged_attention.h"
#include "paged_attention_grouped.h"

namespace lightvllm::cuda {
namespace {

constexpr int WARPS = 2;
constexpr int THREADS = WARPS * 32;
constexpr int HEADS = 8;  // of one block

// d += a b: a: [16, 16], b: [16, 8], d: [16, 8] float32
template <class T>
__device__ inline void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two numbers in one register.
template <class T>
__device__ inline uint32_t pair(float low, float high) {
  const Vector<T, 2> both = {narrow<T>(low), narrow<T>(high)};
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Of a matrix [8, 8] of 16-bit numbers a register has (g, 2t) and (g, 2t + 1); then (2t, g) and (2t + 1, g).
__device__ inline uint32_t transposed(uint32_t x) {
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(x));
  return x;
}

// What one warp has found in its keys so far.
template <class T, class C, int SIZE>
struct Found {
  static constexpr int STEPS = SIZE / 16;  // products over a head
  Vector<uint32_t, 2> query[STEPS];        // of head g
  float sums_of_values[STEPS][4] = {};     // of each product: its first number for heads 2t and 2t + 1, then its second
  float largest[2] = {LOWEST, LOWEST}, sums[2] = {};  // of heads 2t, 2t + 1; the sums of this thread's keys only

  // scores: of keys g and g + 8, each for heads 2t and 2t + 1
  __device__ void score(const Cached<T, C, SIZE>& cached, float (&scores)[4]) const {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      uint32_t operand[4];
      cached.key_operand(step, operand);
      multiply<T>(scores, operand, query[step].at[0], query[step].at[1]);
    }
  }

  // Makes weights of scores, and brings what was summed so far to the new largest score.
  __device__ void weigh(float (&scores)[4], int keys_left, int g) {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (g + i / 2 * 8 >= keys_left) scores[i] = -INFINITY;
    float keep[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float now = fmaxf(scores[h], scores[h + 2]);
      for (int offset = 4; offset < 32; offset *= 2) now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, offset));
      now = fmaxf(now, largest[h]);
      keep[h] = exp2f(largest[h] - now);
      largest[h] = now;
      scores[h] = exp2f(scores[h] - now), scores[h + 2] = exp2f(scores[h + 2] - now);
      sums[h] = sums[h] * keep[h] + scores[h] + scores[h + 2];
    }
    if (__all_sync(0xffffffff, keep[0] == 1 && keep[1] == 1)) return;
#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
      for (int i = 0; i < 4; i++) sums_of_values[step][i] *= keep[i % 2];
  }

  // Weights come with (key, head) = (g, 2t), and go into the product with (2t, g).
  __device__ void add_values(const Cached<T, C, SIZE>& cached, const float (&weights)[4]) {
    const float first = cached.value_scale(0), second = cached.value_scale(1);
    const uint32_t low = transposed(pair<T>(weights[0] * first, weights[1] * first));
    const uint32_t high = transposed(pair<T>(weights[2] * second, weights[3] * second));
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      uint32_t operand[4];
      cached.value_operand(step, operand);
      multiply<T>(sums_of_values[step], operand, low, high);
    }
  }
};

template <class T, class C, int SIZE>
__global__ void __launch_bounds__(THREADS, SIZE <= 128 ? 6 : 1) attend(const __grid_constant__ PagedAttention call) {
  constexpr int STEP = WARPS * TILE;
  constexpr int64_t HEAD_STRIDE = SIZE + (sizeof(C) == 1 ? sizeof(float) : 0);
  constexpr bool HOLDS_BOTH = SIZE <= 128;  // keys and values: of larger heads there are too few registers
  __shared__ float numbers[WARPS][HEADS][SIZE], largests[WARPS][HEADS], sums[WARPS][HEADS];
  wait_for_previous();
  let_next_begin();
  const int group = call.query.heads / call.kv_heads, parts = ceil_div(group, HEADS);
  const int64_t token = blockIdx.x / (call.kv_heads * parts);
  const int kv_head = blockIdx.x / parts % call.kv_heads, first = blockIdx.x % parts * HEADS;
  const int heads = min(group - first, HEADS), first_head = kv_head * group + first;
  const int64_t first_row = token * call.query.heads + first_head;
  const Keys span = keys_of(call, token, blockIdx.y);
  if (span.begin >= span.end) {
    if (threadIdx.x < heads) write_nothing(call, first_row + threadIdx.x, blockIdx.y);
    return;
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const C* key_heads = static_cast<const C*>(call.key_cache) + kv_head * HEAD_STRIDE;
  const C* value_heads = static_cast<const C*>(call.value_cache) + kv_head * HEAD_STRIDE;
  const auto slots_at = [&](int tile) -> Slots {
    return {int(slot_of(call, span, min(tile + lane % TILE, span.end - 1))), call.kv_heads * HEAD_STRIDE};
  };

  Found<T, C, SIZE> found;
  Cached<T, C, SIZE> cached;
  int start = span.begin + warp * TILE;
  if (start < span.end) {
    Slots slots = slots_at(start), next_slots = slots_at(start + STEP);
    cached.load_keys(key_heads, slots, g, t);
    if (HOLDS_BOTH) cached.load_values(value_heads, slots, g, t);
    const T* query = static_cast<const T*>(call.query.data) + token * call.query.token_stride + (first_head + g) * call.query.head_stride;
#pragma unroll
    for (int step = 0; step < found.STEPS; step++)
      found.query[step] = g < heads ? load<2>(reinterpret_cast<const uint32_t*>(query + cached.key_place(step, t))) : Vector<uint32_t, 2>{};
    while (true) {
      const bool has_next = start + STEP < span.end;
      const float scale = call.scale * LOG2_E, first_scale = scale * cached.key_scale(0), second_scale = scale * cached.key_scale(1);
      float scores[4] = {};
      found.score(cached, scores);
      if (!HOLDS_BOTH) cached.load_values(value_heads, slots, g, t);
      else if (has_next) cached.load_keys(key_heads, next_slots, g, t);
#pragma unroll
      for (int i = 0; i < 4; i++) scores[i] *= i < 2 ? first_scale : second_scale;
      found.weigh(scores, span.end - start, g);
      found.add_values(cached, scores);
      if (!has_next) break;
      if (HOLDS_BOTH) cached.load_values(value_heads, next_slots, g, t);
      else cached.load_keys(key_heads, next_slots, g, t);
      start += STEP, slots = next_slots;
      next_slots = slots_at(start + STEP);
    }
  }

#pragma unroll
  for (int h = 0; h < 2; h++) {
    for (int offset = 4; offset < 32; offset *= 2) found.sums[h] += __shfl_xor_sync(0xffffffff, found.sums[h], offset);
    if (g == 0) largests[warp][2 * t + h] = found.largest[h], sums[warp][2 * t + h] = found.sums[h];
    if (2 * t + h >= heads) continue;
#pragma unroll
    for (int step = 0; step < found.STEPS; step++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        numbers[warp][2 * t + h][cached.value_place(step, g) + i] = found.sums_of_values[step][2 * i + h];
  }
  __syncthreads();
  for (int head = warp; head < heads; head += WARPS)
    put_together<T, WARPS>(call, first_row + head, blockIdx.y, numbers[0][head], HEADS * SIZE, &largests[0][head],
                           &sums[0][head], HEADS, lane, 32);
}

template <class T, class C>
cudaError_t launch_attend(const PagedAttention& call, cudaStream_t stream) {
  const int64_t parts = ceil_div(call.query.heads / call.kv_heads, int64_t(HEADS));
  const dim3 blocks(call.query.tokens * call.kv_heads * parts, call.splits);
  switch (call.query.size) {
    case 64: return launch(attend<T, C, 64>, blocks, THREADS, 0, stream, call);
    case 128: return launch(attend<T, C, 128>, blocks, THREADS, 0, stream, call);
    case 256: return launch(attend<T, C, 256>, blocks, THREADS, 0, stream, call);
    default: return cudaErrorNotSupported;
  }
}

}  // namespace

cudaError_t attend_grouped(const PagedAttention& call, cudaStream_t stream) {
  const bool is_int8 = call.cache_type == Type::INT8;
  if (!are_aligned(call.query, 2) || !are_aligned({address(call.key_cache), address(call.value_cache)})) return cudaErrorNotSupported;
  if (call.type == Type::BFLOAT16)
    return (is_int8 ? launch_attend<__nv_bfloat16, int8_t> : launch_attend<__nv_bfloat16, __nv_bfloat16>)(call, stream);
  if (call.type == Type::HALF) return (is_int8 ? launch_attend<__half, int8_t> : launch_attend<__half, __half>)(call, stream);
  return cudaErrorNotSupported;
}

}  // namespace lightvllm::cuda
