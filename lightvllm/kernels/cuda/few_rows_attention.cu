// Attention of a few requests that compute one token each, from the product of queries, keys and values on: the heads are
// normed and rotated, the new key and value go into the cache, and the queries attend. One kernel instead of four.
//
// Reference twin: `few_rows_attention` in kernels/reference.py. Test: tests/kernels/gpu/test_few_rows.py.
//
// A cluster of blocks shares the tokens of one request and one key head; what each found is merged through distributed
// shared memory, in a fixed order. The older tokens were written steps ago, so a block asks for its first ones before it
// waits for the product (see launch.h). Lengths and block table must be as old: in place before the step's first kernel.
#include "few_rows_attention.h"

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.h"
#include "matrix_unit.h"

namespace lightvllm::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int SPLITS = 8;  // blocks of a cluster
constexpr int WARPS = 8;
constexpr int TILE = 16;         // tokens that a warp works on at a time
constexpr int MOST_HEADS = 8;    // query heads of a key head, as the matrix units take them
constexpr int PARTIALS = WARPS + 1;  // what the warps found, and the new token

// A token's bytes in shared memory, so that reads of whole vectors (keys) and of 8 x 8 matrices (values) meet all banks.
template <int HEAD_DIM>
constexpr int KEY_PITCH = 2 * HEAD_DIM + 64;
template <int HEAD_DIM>
constexpr int VALUE_PITCH = 2 * HEAD_DIM + 16;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
template <int HEAD_DIM>
struct Shared {
  float sums[SPLITS][MOST_HEADS * HEAD_DIM / SPLITS];  // what each block of the cluster found, of this block's part
  float peaks[SPLITS][MOST_HEADS], totals[SPLITS][MOST_HEADS];
  float partial_peaks[PARTIALS][MOST_HEADS], partial_totals[PARTIALS][MOST_HEADS];
  alignas(16) uint16_t heads[MOST_HEADS + 2][HEAD_DIM];  // queries, the new key, the new value
};

// One warp: head `index` of the product, normed where there are weights, and rotated.
template <typename T, int HEAD_DIM>
__device__ void make_head(const FewRowsAttention& p, int row, int index, const T* norm_weight, bool is_rotated, T* to) {
  constexpr int HALF = HEAD_DIM / 2, PAIRS = HALF / 32;
  const int lane = threadIdx.x % 32;
  const T* from = static_cast<const T*>(p.qkv) + row * p.qkv_stride + index * HEAD_DIM;
  const float *cos = p.cos + row * HEAD_DIM + lane, *sin = p.sin + row * HEAD_DIM + lane;
  float first[PAIRS], second[PAIRS], cosines[PAIRS][2], sines[PAIRS][2], squares = 0.0f;
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    first[i] = from[lane + 32 * i], second[i] = from[lane + 32 * i + HALF];
    cosines[i][0] = cos[32 * i], cosines[i][1] = cos[32 * i + HALF];
    sines[i][0] = sin[32 * i], sines[i][1] = sin[32 * i + HALF];
    squares += first[i] * first[i] + second[i] * second[i];
  }
  if (norm_weight) {
    const float scale = rsqrtf(warp_sum(squares) / HEAD_DIM + p.eps);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      first[i] = narrow<T>(first[i] * scale * static_cast<float>(norm_weight[lane + 32 * i]));
      second[i] = narrow<T>(second[i] * scale * static_cast<float>(norm_weight[lane + 32 * i + HALF]));
    }
  }
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    const int at = lane + 32 * i;
    to[at] = narrow<T>(is_rotated ? first[i] * cosines[i][0] - second[i] * sines[i][0] : first[i]);
    to[at + HALF] = narrow<T>(is_rotated ? second[i] * cosines[i][1] + first[i] * sines[i][1] : second[i]);
  }
}

// Where the sixteen tokens from `position` on lie in the cache, one for each of the first lanes; -1 where there is none.
__device__ int64_t locate(const FewRowsAttention& p, int row, int kv_head, int position, int end) {
  const int at = position + threadIdx.x % 32;
  if (threadIdx.x % 32 >= TILE || at >= end) return -1;
  const int64_t block = p.block_table[row * p.table_stride + at / p.block_size];
  return ((block * p.block_size + at % p.block_size) * p.num_kv_heads + kv_head) * p.head_dim;
}

// Ask for a tile of keys or values; tokens that are not there become zeros.
template <typename T, int HEAD_DIM, int PITCH>
__device__ void copy_tile(const void* cache, int64_t offset, uint32_t to) {
  constexpr int VECTORS = HEAD_DIM / 8;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < TILE * VECTORS / 32; i++) {
    const int token = (lane + 32 * i) / VECTORS, vector = (lane + 32 * i) % VECTORS;
    const int64_t at = __shfl_sync(~0u, offset, token);
    const T* from = static_cast<const T*>(cache) + (at < 0 ? 0 : at + 8 * vector);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + token * PITCH + 16 * vector), "l"(from),
                 "r"(at < 0 ? 0 : 16) : "memory");
  }
}

__device__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

__device__ void wait_for_all_but_one() {
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  __syncwarp();
}

// One warp's share of the older tokens: every eighth tile of its block's.
template <typename T, int HEAD_DIM>
struct Walk {
  const FewRowsAttention& p;
  const int row, kv_head, last, end;  // tiles up to `last`, positions up to `end`
  int start, tile;                    // position of tile 0
  uint8_t *keys, *values;
  float peak = -INFINITY, total = 0.0f, sums[HEAD_DIM / 8][4] = {};  // of head lane / 4; the upper heads are not there

  __device__ int64_t offset() const { return tile < last ? locate(p, row, kv_head, start + tile * TILE, end) : -1; }

  __device__ void copy_keys(int64_t offset) {
    if (tile < last) copy_tile<T, HEAD_DIM, KEY_PITCH<HEAD_DIM>>(p.key_cache, offset, shared_address(keys));
    end_group();
  }

  __device__ void copy_values(int64_t offset) {
    if (tile < last) copy_tile<T, HEAD_DIM, VALUE_PITCH<HEAD_DIM>>(p.value_cache, offset, shared_address(values));
    end_group();
  }

  // queries: [MOST_HEADS, HEAD_DIM] in shared memory
  __device__ void run(const uint16_t (*queries)[HEAD_DIM]) {
    const int lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4;
    uint4 query[HEAD_DIM / 32];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 32; i++)
      query[i] = *reinterpret_cast<const uint4*>(&queries[group][32 * i + 8 * quarter]);
    while (tile < last) {
      float scores[2][4] = {}, others[2][4] = {};  // of head lane / 4: tokens 2 * quarter and the next, and those 8 further on
      wait_for_all_but_one();
#pragma unroll
      for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 32; i++) {
          const uint4 key = *reinterpret_cast<const uint4*>(keys + (8 * half + group) * KEY_PITCH<HEAD_DIM> + 64 * i +
                                                            16 * quarter);
          multiply(scores[half], T(), query[i].x, 0, query[i].y, 0, key.x, key.y);
          multiply(others[half], T(), query[i].z, 0, query[i].w, 0, key.z, key.w);
        }
        scores[half][0] += others[half][0], scores[half][1] += others[half][1];
      }
      __syncwarp();
      const int position = start + tile * TILE;
      tile += WARPS;
      const int64_t next = offset();
      copy_keys(next);
      add(scores, position);
      wait_for_all_but_one();
      add_values(scores);
      __syncwarp();
      copy_values(next);
    }
  }

  // Turn scores into weights, and what there is so far to the new peak.
  __device__ void add(float (&scores)[2][4], int position) {
    const int quarter = threadIdx.x % 4;
    float new_peak = peak;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float& score = scores[i / 2][i % 2];
      score = position + i / 2 * 8 + 2 * quarter + i % 2 < end ? score * p.scale : -INFINITY;
      new_peak = fmaxf(new_peak, score);
    }
    new_peak = fmaxf(new_peak, __shfl_xor_sync(~0u, new_peak, 1));
    new_peak = fmaxf(new_peak, __shfl_xor_sync(~0u, new_peak, 2));
    const float factor = exp2f(peak - new_peak);
    peak = new_peak, total *= factor;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; i++) sums[i][0] *= factor, sums[i][1] *= factor;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float& score = scores[i / 2][i % 2];
      score = exp2f(score - peak);
      total += score;
    }
  }

  __device__ void add_values(const float (&weights)[2][4]) {
    const int lane = threadIdx.x % 32;
    const uint32_t low = pack<T>(weights[0][0], weights[0][1]), high = pack<T>(weights[1][0], weights[1][1]);
    const uint32_t from = shared_address(values) + lane % 16 * VALUE_PITCH<HEAD_DIM> + lane / 16 * 16;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) {
      uint32_t b[4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(from + 32 * i) : "memory");
      multiply(sums[2 * i], T(), low, 0, high, 0, b[0], b[1]);
      multiply(sums[2 * i + 1], T(), low, 0, high, 0, b[2], b[3]);
    }
  }
};

// A softmax over some tokens: the largest score, the sum of exp2(score - peak), and of that times one value of each.
struct Found {
  float peak = -INFINITY, total = 0.0f, sum = 0.0f;
};

// What several parts found, as one.
template <int PARTS, typename Peak, typename Total, typename Sum>
__device__ Found merge(Peak peak_of, Total total_of, Sum sum_of) {
  Found found;
#pragma unroll
  for (int i = 0; i < PARTS; i++) found.peak = fmaxf(found.peak, peak_of(i));
#pragma unroll
  for (int i = 0; i < PARTS; i++) {
    const bool is_empty = peak_of(i) == -INFINITY;  // and its sum may be anything
    const float factor = exp2f(peak_of(i) - found.peak);
    found.total += is_empty ? 0.0f : factor * total_of(i), found.sum += is_empty ? 0.0f : factor * sum_of(i);
  }
  return found;
}

// The new token's key and value: into the cache, and as one more part of what the block found.
template <typename T, int HEAD_DIM>
__device__ void add_new_token(const FewRowsAttention& p, int row, int kv_head, int group_size, Shared<HEAD_DIM>& shared,
                              float (*partial)[MOST_HEADS][HEAD_DIM]) {
  const T (*heads)[HEAD_DIM] = reinterpret_cast<const T(*)[HEAD_DIM]>(shared.heads);
  const T *key = heads[MOST_HEADS], *value = heads[MOST_HEADS + 1];
  const int64_t at = (p.slots[row] * p.num_kv_heads + kv_head) * HEAD_DIM;
  for (int i = threadIdx.x; i < HEAD_DIM; i += 32 * WARPS) {
    static_cast<T*>(p.key_cache)[at + i] = key[i];
    static_cast<T*>(p.value_cache)[at + i] = value[i];
  }
  for (int head = threadIdx.x / 32; head < group_size; head += WARPS) {
    float score = 0.0f;
    for (int i = threadIdx.x % 32; i < HEAD_DIM; i += 32) {
      score += static_cast<float>(heads[head][i]) * static_cast<float>(key[i]);
      partial[WARPS][head][i] = value[i];
    }
    score = warp_sum(score) * p.scale;
    shared.partial_peaks[WARPS][head] = score, shared.partial_totals[WARPS][head] = 1.0f;
  }
}

// What the block's warps found, as one, to the blocks of the cluster: each has a part of the numbers of all.
template <typename T, int HEAD_DIM>
__device__ void merge_warps(const Walk<T, HEAD_DIM>& walk, int rank, int group_size, Shared<HEAD_DIM>& shared,
                            float (*partial)[MOST_HEADS][HEAD_DIM], const cg::cluster_group& cluster) {
  const int warp = threadIdx.x / 32, head = threadIdx.x % 32 / 4, quarter = threadIdx.x % 4;
  float total = walk.total;
  total += __shfl_xor_sync(~0u, total, 1);
  total += __shfl_xor_sync(~0u, total, 2);
  shared.partial_peaks[warp][head] = walk.peak, shared.partial_totals[warp][head] = total;
  if (head < group_size)
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; i++)
      *reinterpret_cast<float2*>(&partial[warp][head][8 * i + 2 * quarter]) = {walk.sums[i][0], walk.sums[i][1]};
  __syncthreads();
  for (int i = threadIdx.x; i < group_size * HEAD_DIM; i += 32 * WARPS) {
    const int of_head = i / HEAD_DIM, dim = i % HEAD_DIM;
    const Found found = merge<PARTIALS>(
        [&](int part) { return shared.partial_peaks[part][of_head]; },
        [&](int part) { return shared.partial_totals[part][of_head]; },
        [&](int part) { return partial[part][of_head][dim]; });
    *cluster.map_shared_rank(&shared.sums[rank][i / SPLITS], i % SPLITS) = found.sum;
    if (dim < SPLITS) {
      *cluster.map_shared_rank(&shared.peaks[rank][of_head], dim) = found.peak;
      *cluster.map_shared_rank(&shared.totals[rank][of_head], dim) = found.total;
    }
  }
}
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define CLUSTER
#else
#define CLUSTER __cluster_dims__(SPLITS)
#endif

// For GPUs since Hopper.
template <typename T, int HEAD_DIM>
__global__ void CLUSTER __launch_bounds__(32 * WARPS)
    few_rows_attention_kernel(const __grid_constant__ FewRowsAttention p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t tiles[];
  __shared__ Shared<HEAD_DIM> shared;
  let_next_begin();
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.barrier_arrive();
  const int rank = blockIdx.x % SPLITS, kv_head = blockIdx.x / SPLITS % p.num_kv_heads;
  const int row = blockIdx.x / SPLITS / p.num_kv_heads, warp = threadIdx.x / 32;
  const int group_size = p.num_heads / p.num_kv_heads, seq_len = p.seq_lens[row], end = seq_len - 1;
  const int start = p.sliding_window ? max(seq_len - p.sliding_window, 0) : 0;
  const int number = (end - start + TILE - 1) / TILE;
  uint8_t* keys = tiles + warp * TILE * (KEY_PITCH<HEAD_DIM> + VALUE_PITCH<HEAD_DIM>);
  Walk<T, HEAD_DIM> walk{p, row, kv_head, number * (rank + 1) / SPLITS, end, start, number * rank / SPLITS + warp,
                         keys, keys + TILE * KEY_PITCH<HEAD_DIM>};
  const int64_t offset = walk.offset();
  walk.copy_keys(offset);
  walk.copy_values(offset);
  T (*heads)[HEAD_DIM] = reinterpret_cast<T(*)[HEAD_DIM]>(shared.heads);
  for (int i = threadIdx.x; i < (MOST_HEADS - group_size) * HEAD_DIM; i += 32 * WARPS)
    heads[group_size][i] = narrow<T>(0.0f);  // queries that are not there
  wait_for_previous();
  for (int i = warp; i < group_size + 2; i += WARPS) {  // queries, key, value
    const int other = i - group_size, index = other < 0 ? kv_head * group_size + i : p.num_heads + kv_head + other * p.num_kv_heads;
    const void* weight = other < 0 ? p.query_weight : other == 0 ? p.key_weight : nullptr;
    make_head<T, HEAD_DIM>(p, row, index, static_cast<const T*>(weight), other < 1, heads[other < 0 ? i : MOST_HEADS + other]);
  }
  __syncthreads();
  walk.run(shared.heads);
  __syncthreads();  // now the tiles make room for what the warps found
  float (*partial)[MOST_HEADS][HEAD_DIM] = reinterpret_cast<float(*)[MOST_HEADS][HEAD_DIM]>(tiles);
  if (rank == 0)
    add_new_token<T, HEAD_DIM>(p, row, kv_head, group_size, shared, partial);
  else if (threadIdx.x < MOST_HEADS)
    shared.partial_peaks[WARPS][threadIdx.x] = -INFINITY, shared.partial_totals[WARPS][threadIdx.x] = 0.0f;
  cluster.barrier_wait();  // by now all blocks of the cluster have begun
  merge_warps<T, HEAD_DIM>(walk, rank, group_size, shared, partial, cluster);
  cluster.sync();
  for (int i = threadIdx.x; i < group_size * HEAD_DIM / SPLITS; i += 32 * WARPS) {
    const int number = i * SPLITS + rank, head = number / HEAD_DIM;
    const Found found = merge<SPLITS>(
        [&](int part) { return shared.peaks[part][head]; }, [&](int part) { return shared.totals[part][head]; },
        [&](int part) { return shared.sums[part][i]; });
    static_cast<T*>(p.y)[(static_cast<int64_t>(row) * p.num_heads + kv_head * group_size) * HEAD_DIM + number] =
        narrow<T>(found.sum / found.total);
  }
#endif
}

template <typename T, int HEAD_DIM>
cudaError_t launch_attention(const FewRowsAttention& p, cudaStream_t stream) {
  const int tiles = WARPS * TILE * (KEY_PITCH<HEAD_DIM> + VALUE_PITCH<HEAD_DIM>);
  const int partials = PARTIALS * MOST_HEADS * HEAD_DIM * sizeof(float), bytes = tiles > partials ? tiles : partials;
  const auto kernel = few_rows_attention_kernel<T, HEAD_DIM>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  return launch(kernel, dim3(SPLITS * p.num_kv_heads * p.rows), dim3(32 * WARPS), bytes, stream, p);
}

template <typename T>
cudaError_t launch_for_type(const FewRowsAttention& p, cudaStream_t stream) {
  if (p.head_dim == 64) return launch_attention<T, 64>(p, stream);
  if (p.head_dim == 128) return launch_attention<T, 128>(p, stream);
  return p.head_dim == 256 ? launch_attention<T, 256>(p, stream) : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t few_rows_attention(const FewRowsAttention& attention, Number number, cudaStream_t stream) {
  if (attention.rows == 0) return cudaSuccess;
  if (!can_begin_early()) return cudaErrorNotSupported;
  FewRowsAttention p = attention;
  p.scale *= 1.44269504f;  // so that exp2 serves
  if (number == Number::HALF) return launch_for_type<__half>(p, stream);
  return number == Number::BFLOAT16 ? launch_for_type<__nv_bfloat16>(p, stream) : cudaErrorInvalidValue;
}

}  // namespace lightvllm::cuda
