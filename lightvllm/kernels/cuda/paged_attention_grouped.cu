// Paged attention where query heads share keys (grouped queries): each key and value is read once for all of them.
// Reference twin: paged_attention in lightvllm/kernels/reference.py; test: tests/kernels/gpu/test_cuda_attention.py.
//
// What a key meets is a small matrix, up to 8 query heads, so tensor cores do the products: 16 keys times 8 heads, with
// mma.m16n8k16 of the PTX ISA. In a product the order of what is summed is free. Keys are therefore taken as 16-byte
// loads happen to leave them in registers: thread (g, t) = (lane / 4, lane % 4) has numbers [8t, 8t + 8) of every 32 of
// key g and of key g + 8, and of query head g. Scores come out with (key, head) = (g, 2t), and go in again as weights of
// heads g and keys 2t: a transposition, which one instruction does. Values are taken as a matrix of numbers times keys:
// thread (g, t) has numbers [8g, 8g + 8) of every 64 of keys 2t, 2t + 1, 2t + 8 and 2t + 9, and pairs those of two keys.
// No shared memory until the end, and many loads of 16 bytes are under way for every thread: of the next keys while the
// last are worked on.
#include "paged_attention.h"

namespace lightvllm::cuda {
namespace {

constexpr int WARPS = 2;
constexpr int THREADS = WARPS * 32;
constexpr int HEADS = 8;  // of one block

// d += a b: a: [16, 16], b: [16, 8], d: [16, 8] float32
template <class T>
__device__ inline void multiply(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two numbers in one register.
template <class T>
__device__ inline uint32_t pair(float low, float high) {
  const Vector<T, 2> both = {narrow<T>(low), narrow<T>(high)};
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Of a matrix [8, 8] of 16-bit numbers, a register holds (g, 2t) and (g, 2t + 1); then (2t, g) and (2t + 1, g).
__device__ inline uint32_t transposed(uint32_t x) {
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(x));
  return x;
}

using Words = Vector<uint32_t, 4>;  // eight numbers, two in each

// One warp's way through its keys, 16 at a time.
template <class T, int SIZE>
struct Tile {
  static constexpr int KEY_VECTORS = SIZE / 32, VALUE_VECTORS = SIZE / 64;
  Words query[KEY_VECTORS], keys[2][KEY_VECTORS], values[4][VALUE_VECTORS];
  float sums_of_values[VALUE_VECTORS][4][4] = {};  // of each product: numbers 8g + 2w and 8g + 2w + 1 of heads 2t, 2t + 1
  float largest[2] = {LOWEST, LOWEST}, sums[2] = {};  // of heads 2t, 2t + 1; the sums of this thread's keys only

  __device__ void load_keys(const T* heads, int64_t slot_stride, int slot, int g, int t) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const T* head = heads + __shfl_sync(0xffffffff, slot, g + 8 * i) * slot_stride + 8 * t;
#pragma unroll
      for (int v = 0; v < KEY_VECTORS; v++) keys[i][v] = load_once<4>(reinterpret_cast<const uint32_t*>(head + 32 * v));
    }
  }

  __device__ void load_values(const T* heads, int64_t slot_stride, int slot, int g, int t) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const T* head = heads + __shfl_sync(0xffffffff, slot, 2 * t + i % 2 + i / 2 * 8) * slot_stride + 8 * g;
#pragma unroll
      for (int v = 0; v < VALUE_VECTORS; v++) values[i][v] = load_once<4>(reinterpret_cast<const uint32_t*>(head + 64 * v));
    }
  }

  // scores: of keys g and g + 8, each for heads 2t and 2t + 1
  __device__ void score(float (&scores)[4]) const {
#pragma unroll
    for (int v = 0; v < KEY_VECTORS; v++) {
      const auto &a = keys[0][v].at, &b = keys[1][v].at, &q = query[v].at;
      multiply<T>(scores, a[0], b[0], a[1], b[1], q[0], q[1]);
      multiply<T>(scores, a[2], b[2], a[3], b[3], q[2], q[3]);
    }
  }

  // Makes weights of scores, and brings what was summed so far to the new largest score.
  __device__ void weigh(float (&scores)[4], float scale, int keys_left, int g) {
#pragma unroll
    for (int i = 0; i < 4; i++) scores[i] = g + i / 2 * 8 < keys_left ? scores[i] * scale : -INFINITY;
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
    for (int v = 0; v < VALUE_VECTORS; v++)
#pragma unroll
      for (int i = 0; i < 16; i++) sums_of_values[v][i / 4][i % 4] *= keep[i % 2];
  }

  __device__ void add_values(const float (&weights)[4]) {
    const uint32_t first = transposed(pair<T>(weights[0], weights[1])), second = transposed(pair<T>(weights[2], weights[3]));
    constexpr uint32_t LOW = 0x5410, HIGH = 0x7632;  // which bytes of two registers __byte_perm takes
#pragma unroll
    for (int v = 0; v < VALUE_VECTORS; v++)
#pragma unroll
      for (int w = 0; w < 4; w++) {
        const uint32_t a = values[0][v].at[w], b = values[1][v].at[w], c = values[2][v].at[w], d = values[3][v].at[w];
        multiply<T>(sums_of_values[v][w], __byte_perm(a, b, LOW), __byte_perm(a, b, HIGH), __byte_perm(c, d, LOW),
                    __byte_perm(c, d, HIGH), first, second);
      }
  }
};

template <class T, int SIZE>
__global__ void __launch_bounds__(THREADS) attend(const __grid_constant__ PagedAttention call) {
  __shared__ float numbers[WARPS][HEADS][SIZE], largests[WARPS][HEADS], sums[WARPS][HEADS];
  wait_for_previous();
  let_next_begin();
  const int group = call.query.heads / call.kv_heads, parts = ceil_div(group, HEADS);
  const int64_t token = blockIdx.x / (call.kv_heads * parts);
  const int kv_head = blockIdx.x / parts % call.kv_heads, first = blockIdx.x % parts * HEADS;
  const int heads = min(group - first, HEADS), first_head = kv_head * group + first;
  const Keys span = keys_of(call, token, blockIdx.y);
  if (span.begin >= span.end) return;  // the split has nothing
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int64_t slot_stride = call.kv_heads * SIZE;
  const T* key_heads = static_cast<const T*>(call.key_cache) + kv_head * SIZE;
  const T* value_heads = static_cast<const T*>(call.value_cache) + kv_head * SIZE;
  const auto slot_at = [&](int tile) { return int(slot_of(call, span, min(tile + lane % TILE, span.end - 1))); };

  Tile<T, SIZE> tile;
  constexpr int STEP = WARPS * TILE;
  constexpr bool HOLDS_BOTH = SIZE <= 128;  // keys and values: of larger heads there are too few registers
  int start = span.begin + warp * TILE;
  if (start < span.end) {
    const T* query = static_cast<const T*>(call.query.data) + token * call.query.token_stride;
#pragma unroll
    for (int v = 0; v < SIZE / 32; v++)
      tile.query[v] = g < heads ? load<4>(reinterpret_cast<const uint32_t*>(query + (first_head + g) * call.query.head_stride + 32 * v + 8 * t))
                                : Words{};
    int slot = slot_at(start), next_slot = slot_at(start + STEP);
    tile.load_keys(key_heads, slot_stride, slot, g, t);
    if (HOLDS_BOTH) tile.load_values(value_heads, slot_stride, slot, g, t);
    while (true) {
      const bool has_next = start + STEP < span.end;
      float scores[4] = {};
      tile.score(scores);
      if (!HOLDS_BOTH) tile.load_values(value_heads, slot_stride, slot, g, t);
      else if (has_next) tile.load_keys(key_heads, slot_stride, next_slot, g, t);
      tile.weigh(scores, call.scale * LOG2_E, span.end - start, g);
      tile.add_values(scores);
      if (!has_next) break;
      if (HOLDS_BOTH) tile.load_values(value_heads, slot_stride, next_slot, g, t);
      else tile.load_keys(key_heads, slot_stride, next_slot, g, t);
      start += STEP, slot = next_slot;
      next_slot = slot_at(start + STEP);
    }
  }

#pragma unroll
  for (int h = 0; h < 2; h++) {
    for (int offset = 4; offset < 32; offset *= 2) tile.sums[h] += __shfl_xor_sync(0xffffffff, tile.sums[h], offset);
    if (g == 0) largests[warp][2 * t + h] = tile.largest[h], sums[warp][2 * t + h] = tile.sums[h];
    if (2 * t + h >= heads) continue;
#pragma unroll
    for (int v = 0; v < SIZE / 64; v++)
#pragma unroll
      for (int i = 0; i < 8; i++)
        numbers[warp][2 * t + h][64 * v + 8 * g + i] = tile.sums_of_values[v][i / 2][i % 2 * 2 + h];
  }
  __syncthreads();
  for (int head = warp; head < heads; head += WARPS)
    put_together<T, WARPS>(call, token * call.query.heads + first_head + head, blockIdx.y, numbers[0][head], HEADS * SIZE,
                           &largests[0][head], &sums[0][head], HEADS, lane, 32);
}

template <class T>
cudaError_t launch_attend(const PagedAttention& call, cudaStream_t stream) {
  const int64_t parts = ceil_div(call.query.heads / call.kv_heads, int64_t(HEADS));
  const dim3 blocks(call.query.tokens * call.kv_heads * parts, call.splits);
  switch (call.query.size) {
    case 64: return launch(attend<T, 64>, blocks, THREADS, 0, stream, call);
    case 128: return launch(attend<T, 128>, blocks, THREADS, 0, stream, call);
    case 256: return launch(attend<T, 256>, blocks, THREADS, 0, stream, call);
    default: return cudaErrorNotSupported;
  }
}

}  // namespace

cudaError_t attend_grouped(const PagedAttention& call, cudaStream_t stream) {
  const bool is_aligned = are_aligned(call.query, 2) && are_aligned({address(call.key_cache), address(call.value_cache)});
  if (!is_aligned || call.type != call.cache_type) return cudaErrorNotSupported;
  if (call.type == Type::BFLOAT16) return launch_attend<__nv_bfloat16>(call, stream);
  if (call.type == Type::HALF) return launch_attend<__half>(call, stream);
  return cudaErrorNotSupported;
}

}  // namespace lightvllm::cuda
