// Attention against the paged KV cache: decodes and prefill chunks alike.
// Reference twin: lightvllm/kernels/reference.py:paged_attention; test: tests/kernels/test_ops.py.
//
// Online softmax (Milakov and Gimelshein, 2018; FlashAttention, Dao et al., 2022) over tiles of TILE keys that begin at
// multiples of TILE in the request's own sequence. A row is one query head of one token; the rows of a task share each
// tile of keys and values, converted to float32 once, but each row's arithmetic is its own and the same whatever rows
// share its task: so a token's attention is bitwise equal in a decode, in any chunk, and beside any other request.
#include <algorithm>
#include <vector>

#include "common.h"

namespace lightvllm {

constexpr int64_t TILE = 32;
constexpr int64_t MAX_ROWS = 16;
constexpr float NEVER_SEEN = -1e30f;

// A task's inputs. Rows [kv_heads, tokens, group] of one request; token t has position first_position + t.
template <class T>
struct Task {
  const T* query;  // [tokens, kv_heads * group, head_dim]
  int64_t query_stride;
  T* out;
  int64_t out_stride;
  int64_t kv_heads, tokens, group, head_dim;
  const T *keys, *values;  // the cache at the first of the KV heads
  int64_t block_stride, token_stride, block_size;
  const int32_t* blocks;
  int64_t first_position, window;  // window <= 0: full attention
  float scale;
};

// Sixteen vectors -> the vector of their sums, lane i that of x[i]. Each halving folds pairs of vectors into one.
LIGHTVLLM_INLINE f32x16 sums(f32x16* x) {
  for (int half = 8; half >= 1; half /= 2) {
    for (int i = 0; i < half; i++) {
      f32x16 a = x[i], b = x[i + half];
      f32x16 low, high;
      if (half == 8) {
        low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        high = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
      } else if (half == 4) {
        low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
        high = __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
      } else if (half == 2) {
        low = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
        high = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
      } else {
        low = __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
        high = __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
      }
      x[i] = low + high;
    }
  }
  return x[0];
}

// out = out * correction + the values' weighted sum, over CHUNKS vectors of the head's dimensions.
template <int CHUNKS>
LIGHTVLLM_INLINE void add_values(float* out, const float* weights, const float* values, int64_t head_dim, f32x16 correction) {
  f32x16 totals[CHUNKS];
  for (int c = 0; c < CHUNKS; c++) totals[c] = load(out + c * LANES) * correction;
  for (int64_t j = 0; j < TILE; j++) {
    f32x16 weight = splat(weights[j]);
    for (int c = 0; c < CHUNKS; c++) totals[c] += weight * load(values + j * head_dim + c * LANES);
  }
  for (int c = 0; c < CHUNKS; c++) store(out + c * LANES, totals[c]);
}

// One row against a tile of keys and values that begins at position `start`.
template <class T>
LIGHTVLLM_INLINE void attend_tile(const Task<T>& task, int64_t start, int64_t position, const float* query,
                                  const float* key_tile, const float* value_tile, float* output, float* peak,
                                  f32x16* total) {
  const int64_t head_dim = task.head_dim, chunks = head_dim / LANES;
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  f32x16 scores[TILE / LANES];
  f32x16 highest = splat(NEVER_SEEN);
  i32x16 seen[TILE / LANES];
  for (int64_t part = 0; part < TILE / LANES; part++) {
    f32x16 products[LANES] = {};
    for (int64_t c = 0; c < chunks; c++) {
      f32x16 q = load(query + c * LANES);
      const float* k = key_tile + part * LANES * head_dim + c * LANES;
      for (int64_t j = 0; j < LANES; j++) products[j] += q * load(k + j * head_dim);
    }
    i32x16 positions = lane + int32_t(start + part * LANES);
    seen[part] = positions <= int32_t(position);
    if (task.window > 0) seen[part] &= positions > int32_t(position - task.window);
    scores[part] = sums(products);
    highest = maximum(highest, seen[part] ? scores[part] : splat(NEVER_SEEN));
  }
  float new_peak = *peak;
  for (int64_t i = 0; i < LANES; i++) new_peak = std::max(new_peak, highest[i]);
  f32x16 correction = exp(splat(*peak - new_peak));
  *peak = new_peak;
  *total = *total * correction;
  float weights[TILE];
  for (int64_t part = 0; part < TILE / LANES; part++) {
    f32x16 weight = seen[part] ? exp(scores[part] - new_peak) : f32x16{};
    *total += weight;
    store(weights + part * LANES, weight);
  }
  int64_t c = 0;  // several chunks at a time, as one sum alone waits for itself
  for (; c + 4 <= chunks; c += 4) add_values<4>(output + c * LANES, weights, value_tile + c * LANES, head_dim, correction);
  for (; c + 2 <= chunks; c += 2) add_values<2>(output + c * LANES, weights, value_tile + c * LANES, head_dim, correction);
  for (; c < chunks; c++) add_values<1>(output + c * LANES, weights, value_tile + c * LANES, head_dim, correction);
}

// The keys and values of one KV head at positions [start, start + TILE), as float32. What lies behind the sequence is
// zero: whatever the cache holds there must not reach a product.
template <class T>
LIGHTVLLM_INLINE void load_tile(const Task<T>& task, int64_t kv_head, int64_t start, int64_t end, float* key_tile,
                                float* value_tile) {
  const int64_t head_dim = task.head_dim;
  for (int64_t j = 0; j < TILE; j++) {
    float *key = key_tile + j * head_dim, *value = value_tile + j * head_dim;
    const int64_t position = start + j;
    if (position >= end) {
      std::memset(key, 0, head_dim * sizeof(float));
      std::memset(value, 0, head_dim * sizeof(float));
      continue;
    }
    const int64_t block = task.blocks[position / task.block_size];
    const int64_t at = block * task.block_stride + position % task.block_size * task.token_stride + kv_head * head_dim;
    for (int64_t d = 0; d < head_dim; d += LANES) {
      store(key + d, load(task.keys + at + d));
      store(value + d, load(task.values + at + d));
    }
  }
}

template <class T>
LIGHTVLLM_INLINE void attend_task(const Task<T>& task, float* scratch) {
  const int64_t head_dim = task.head_dim, rows_per_head = task.tokens * task.group, rows = task.kv_heads * rows_per_head;
  float* query = scratch;                          // [rows, head_dim], scaled
  float* output = query + MAX_ROWS * head_dim;     // [rows, head_dim]
  float* key_tile = output + MAX_ROWS * head_dim;  // [TILE, head_dim]
  float* value_tile = key_tile + TILE * head_dim;  // [TILE, head_dim]
  float peaks[MAX_ROWS];
  f32x16 totals[MAX_ROWS];
  auto token_of = [&](int64_t row) { return row % rows_per_head / task.group; };
  auto head_of = [&](int64_t row) { return row / rows_per_head * task.group + row % task.group; };
  for (int64_t row = 0; row < rows; row++) {
    const T* from = task.query + token_of(row) * task.query_stride + head_of(row) * head_dim;
    for (int64_t d = 0; d < head_dim; d += LANES) store(query + row * head_dim + d, load(from + d) * task.scale);
    std::memset(output + row * head_dim, 0, head_dim * sizeof(float));
    peaks[row] = NEVER_SEEN;
    totals[row] = f32x16{};
  }
  const int64_t end = task.first_position + task.tokens;
  const int64_t begin = task.window > 0 ? std::max<int64_t>(0, task.first_position - task.window + 1) / TILE * TILE : 0;
  for (int64_t start = begin; start < end; start += TILE) {
    for (int64_t kv_head = 0; kv_head < task.kv_heads; kv_head++) {  // inside: their keys are neighbours in memory
      load_tile(task, kv_head, start, end, key_tile, value_tile);
      for (int64_t row = kv_head * rows_per_head; row < (kv_head + 1) * rows_per_head; row++) {
        const int64_t position = task.first_position + token_of(row);
        if (start > position || (task.window > 0 && start + TILE <= position - task.window + 1)) continue;
        attend_tile(task, start, position, query + row * head_dim, key_tile, value_tile, output + row * head_dim,
                    &peaks[row], &totals[row]);
      }
    }
  }
  for (int64_t row = 0; row < rows; row++) {
    float inverse = 1.0f / sum(totals[row]);
    T* to = task.out + token_of(row) * task.out_stride + head_of(row) * head_dim;
    for (int64_t d = 0; d < head_dim; d += LANES) store(to + d, load(output + row * head_dim + d) * inverse);
  }
}

#define ATTEND(T) \
  LIGHTVLLM_KERNEL void attend(const Task<T>& task, float* scratch) { attend_task(task, scratch); }
ATTEND(float)
ATTEND(bf16)

// query: [num_tokens, num_heads, head_dim]; caches: [num_blocks, block_size, num_kv_heads, head_dim];
// block_table: [num_requests, max_blocks] int32; query_lens, seq_lens: [num_requests] int64
Tensor paged_attention(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, Tensor query_lens,
                       Tensor seq_lens, double scale, int64_t sliding_window) {
  int64_t heads = query.size(1), head_dim = query.size(2), kv_heads = key_cache.size(2);
  int64_t group = heads / kv_heads, requests = seq_lens.size(0);
  STD_TORCH_CHECK(head_dim % LANES == 0, "paged_attention: head_dim must be a multiple of 16");
  STD_TORCH_CHECK(group <= MAX_ROWS, "paged_attention: at most 16 query heads may share a key");
  STD_TORCH_CHECK(query.stride(2) == 1 && query.stride(1) == head_dim, "paged_attention: a token's heads must be contiguous");
  STD_TORCH_CHECK(key_cache.is_contiguous() && value_cache.is_contiguous() && block_table.is_contiguous(),
                  "paged_attention: cache and block table must be contiguous");
  STD_TORCH_CHECK(query.scalar_type() == key_cache.scalar_type(), "paged_attention: query and cache must have one type");
  Tensor out = torch::stable::new_empty(query, {query.size(0), heads, head_dim});
  // Tasks: for some KV heads of one request, some of its tokens, MAX_ROWS rows at most. A decode takes as many heads as
  // leave work for every thread. Heads are outermost: a thread's share is then a run of heads, each with the same work.
  struct Piece {
    int64_t request, first_token, first_position, tokens;
  };
  std::vector<Piece> pieces;
  int64_t most_tokens = std::max<int64_t>(1, MAX_ROWS / group), token = 0;
  bool all_decode = true;
  for (int64_t r = 0; r < requests; r++) {
    int64_t length = data<int64_t>(query_lens)[r], context = data<int64_t>(seq_lens)[r] - length;
    for (int64_t t = 0; t < length; t += most_tokens)
      pieces.push_back({r, token + t, context + t, std::min(most_tokens, length - t)});
    token += length;
    all_decode = all_decode && length == 1;
  }
  int64_t task_heads = 1, threads = torch::stable::get_num_threads();
  while (all_decode && 2 * task_heads * group <= MAX_ROWS && kv_heads % (2 * task_heads) == 0 &&
         int64_t(pieces.size()) * kv_heads / (2 * task_heads) >= threads)
    task_heads *= 2;
  int64_t block_size = key_cache.size(1), token_stride = kv_heads * head_dim;
  for_type(query, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    torch::stable::parallel_for(0, kv_heads / task_heads * int64_t(pieces.size()), 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(2 * (MAX_ROWS + TILE) * head_dim);
      for (int64_t i = begin; i < end; i++) {
        const Piece& piece = pieces[i % pieces.size()];
        int64_t kv_head = i / int64_t(pieces.size()) * task_heads;
        Task<T> task;
        task.query = data<T>(query) + piece.first_token * query.stride(0) + kv_head * group * head_dim;
        task.query_stride = query.stride(0);
        task.out = data<T>(out) + (piece.first_token * heads + kv_head * group) * head_dim;
        task.out_stride = heads * head_dim;
        task.kv_heads = task_heads;
        task.tokens = piece.tokens;
        task.group = group;
        task.head_dim = head_dim;
        task.keys = data<T>(key_cache) + kv_head * head_dim;
        task.values = data<T>(value_cache) + kv_head * head_dim;
        task.block_stride = block_size * token_stride;
        task.token_stride = token_stride;
        task.block_size = block_size;
        task.blocks = data<int32_t>(block_table) + piece.request * block_table.size(1);
        task.first_position = piece.first_position;
        task.window = sliding_window;
        task.scale = float(scale);
        attend(task, scratch.data());
      }
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(lightvllm, CPU, m) { m.impl("paged_attention", TORCH_BOX(&paged_attention)); }

}  // namespace lightvllm
