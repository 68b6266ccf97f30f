// Attention against the paged KV cache: decodes and prefill chunks alike.
// Reference twin: lightvllm/kernels/reference.py:paged_attention; test: tests/kernels/test_paged_attention.py.
//
// A row is one query head of one token. The keys of a sequence are cut into tiles that begin at multiples of TILE. Of
// each tile a row computes scores, weights relative to the tile's own highest score, rounded to the queries' type, and the
// weighted sum of values; the tiles' sums are merged in order (Milakov and Gimelshein, 2018; FlashAttention, Dao et al.,
// 2022). Scores and sums are products with panels, as in linear.cpp: a panel of PANEL keys, or of PANEL dimensions of the
// values, is laid out once and serves all rows that share it, one in a decode or dozens in a chunk. A row's arithmetic is
// its own: a token's attention is bitwise equal in a decode, in any chunk, beside any request, on any number of threads.
//
// The cache is of the type of the queries, or int8 with a scale for each token and head. Integers are exact in both types:
// they are widened as they are read, a key's scale multiplies its scores, and a value's scale its weights.
#include <algorithm>
#include <atomic>
#include <memory>

#include "attention_panels.h"
#include "attention_pieces.h"

namespace lightvllm {
namespace {

constexpr float NEVER_SEEN = -1e30f;

// What the tasks of one call share.
struct Call {
  int64_t group, head_dim, width;  // width: head_dim filled up to whole panels
  int64_t block_size, head_stride, token_stride;  // of the cache, in its own type
  int64_t query_stride, out_stride;
  int64_t window;  // <= 0: full attention
  float scale;
  Pass pass;
};

// Some KV heads of some tokens of one request, against tiles [first_tile, last_tile) of its keys.
template <class T, class C>
struct Task {
  const T* query;
  T* out;
  const C *keys, *values;  // the cache, at the first of the KV heads
  const int32_t* blocks;
  int64_t kv_heads, tokens, first_position, first_tile, last_tile;
  float* partials;  // [rows, tiles of the sequence, width + 2]; or none: the task has all tiles, and writes `out`
  int64_t sequence_tiles;
};

// A row's weighted sum so far, relative to `peak`; the sum itself lies elsewhere.
struct Softmax {
  float peak = NEVER_SEEN, total = 0;
};

// The factors that bring two parts of a sum to a common peak; the first becomes both.
struct Merge {
  float first, second;
};

LIGHTVLLM_INLINE Merge merge(Softmax& first, Softmax second) {
  const float peak = std::max(first.peak, second.peak);
  const f32x16 factors = exp(f32x16{first.peak - peak, second.peak - peak});
  first.peak = peak;
  first.total = first.total * factors[0] + second.total * factors[1];
  return {factors[0], factors[1]};
}

LIGHTVLLM_INLINE void merge_sums(float* first, const float* second, int64_t count, Merge by) {
  for (int64_t i = 0; i < count; i += LANES) store(first + i, load(first + i) * by.first + load(second + i) * by.second);
}

// ---- a task ---------------------------------------------------------------------------------------------------------

// Where the keys and values of a tile and one head lie, those that are fetched meanwhile, and the scales of int8.
template <class C>
struct HeadRows {
  const C *keys[TILE], *values[TILE], *keys_ahead[TILE], *values_ahead[TILE];
  float key_scales[TILE], value_scales[TILE];
};

// A thread's working memory, for tasks of `rows` rows at most.
template <class T, class C>
struct Scratch {
  std::unique_ptr<char[]> memory;
  T *query, *weights;  // [rows, head_dim], [rows, TILE]
  C* nothing;          // a token of zeros, which stands behind a sequence
  float *scores, *sums, *output;  // [rows, TILE], [MAX_ROWS, PANEL], [rows, width]
  uint32_t* panel;  // what lies beside the dimensions of a head may be anything, as are the sums that it gives
  Softmax softmax[MOST_ROWS];
  Merge merges[MOST_ROWS];
  const C *keys[2][TILE], *values[2][TILE];  // of this tile and the next
  HeadRows<C> head;

  Scratch(const Call& call, int64_t rows) {
    const int64_t panel_words = PANEL * std::max<int64_t>(call.head_dim, TILE);
    const int64_t floats = rows * (TILE + call.width) + MAX_ROWS * PANEL + panel_words;
    memory.reset(new char[64 + floats * sizeof(float) + rows * (call.head_dim + TILE) * sizeof(T) + call.token_stride * sizeof(C)]);
    sums = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64);
    panel = reinterpret_cast<uint32_t*>(sums + MAX_ROWS * PANEL);
    scores = reinterpret_cast<float*>(panel + panel_words);
    output = scores + rows * TILE;
    query = reinterpret_cast<T*>(output + rows * call.width);
    weights = query + rows * call.head_dim;
    nothing = reinterpret_cast<C*>(weights + rows * TILE);
    std::memset(nothing, 0, call.token_stride * sizeof(C));
  }
};

// Where the keys and values of a tile lie, those at `end` and behind it nowhere.
template <class T, class C>
LIGHTVLLM_INLINE void find_rows(const Call& call, const Task<T, C>& task, int64_t start, int64_t end, const C* nothing,
                                const C** keys, const C** values) {
  for (int64_t j = 0; j < TILE;) {
    const int64_t position = start + j;
    if (position >= end) {
      for (; j < TILE; j++) keys[j] = values[j] = nothing;
      return;
    }
    const int64_t offset = position % call.block_size;
    int64_t at = (task.blocks[position / call.block_size] * call.block_size + offset) * call.token_stride;
    const int64_t last = std::min({j + call.block_size - offset, end - start, TILE});
    for (; j < last; j++, at += call.token_stride) {
      keys[j] = task.keys + at;
      values[j] = task.values + at;
    }
  }
}

// What a tile's keys and values, TILE of each, are to be multiplied with, where the cache is of int8.
struct Scales {
  const float *keys, *values;
};

// A row's scores of a tile -> weights. Keys before `first` and behind `last`, counted from the tile's begin, are not seen.
template <bool HAS_SCALES, class T>
LIGHTVLLM_INLINE Softmax weigh(const float* scores, float scale, int64_t first, int64_t last, Scales scales, T* weights) {
  const f32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const bool is_whole = first <= 0 && last >= TILE - 1;
  first = std::max<int64_t>(first, 0), last = std::min(last, TILE - 1);
  const float middle = 0.5f * float(first + last), reach = 0.5f * float(last - first);  // one comparison a key
  const f32x16 never = splat(NEVER_SEEN), nothing = {};
  auto distance = [&](int64_t i) LIGHTVLLM_BODY { return (f32x16)((u32x16)(lane + (i * LANES - middle)) & 0x7fffffffu); };
  f32x16 scaled[TILE / LANES], highest = never, total = {};
#pragma GCC unroll 8
  for (int64_t i = 0; i < TILE / LANES; i++) {
    scaled[i] = load(scores + i * LANES) * scale;
    if constexpr (HAS_SCALES) scaled[i] *= load(scales.keys + i * LANES);
    if (!is_whole) scaled[i] = distance(i) > reach ? never : scaled[i];
    highest = maximum(highest, scaled[i]);
  }
  Softmax result;
  for (int64_t i = 0; i < LANES; i++) result.peak = std::max(result.peak, highest[i]);
#pragma GCC unroll 8
  for (int64_t i = 0; i < TILE / LANES; i++) {
    f32x16 weight = exp(scaled[i] - result.peak);
    if (!is_whole) weight = distance(i) > reach ? nothing : weight;
    if constexpr (HAS_SCALES) {
      total += weight;
      weight *= load(scales.values + i * LANES);
      if (!is_whole) weight = distance(i) > reach ? nothing : weight;  // nothing by a scale that is not a number
      store(weights + i * LANES, weight);
    } else {
      store(weights + i * LANES, weight);
      total += load(weights + i * LANES);
    }
  }
  result.total = sum(total);
  return result;
}

// One KV head's keys and values of a tile, against the task's rows of that head.
template <class T, class C>
struct HeadTile {
  static constexpr int64_t PER_WORD = 4 / sizeof(T);
  static constexpr bool HAS_SCALES = !std::is_same_v<T, C>;
  const Call& call;
  const Task<T, C>& task;
  Scratch<T, C>& scratch;
  FewRows<C> few;
  int64_t tile, start, stop;  // keys [start, stop)
  int64_t first_row, rows;    // of the task's
  HeadRows<C>& head = scratch.head;

  // row: counted from first_row
  LIGHTVLLM_INLINE int64_t position_of(int64_t row) const { return task.first_position + row / call.group; }
  LIGHTVLLM_INLINE int64_t first_seen(int64_t row) const { return call.window > 0 ? position_of(row) - call.window + 1 : 0; }
  LIGHTVLLM_INLINE bool sees(int64_t row) const { return position_of(row) >= start && first_seen(row) < stop; }
  LIGHTVLLM_INLINE float* partial_of(int64_t row) const {
    return task.partials + ((first_row + row) * task.sequence_tiles + tile) * (call.width + 2);
  }

  // The addresses, and those that are fetched meanwhile: the next head's, or the first's of the next tile.
  LIGHTVLLM_INLINE void find(int64_t kv_head, int64_t now) const {
    const bool is_last = kv_head + 1 == task.kv_heads;
    for (int64_t j = 0; j < TILE; j++) {
      head.keys[j] = scratch.keys[now][j] + kv_head * call.head_stride;
      head.values[j] = scratch.values[now][j] + kv_head * call.head_stride;
      head.keys_ahead[j] = is_last ? scratch.keys[1 - now][j] : head.keys[j] + call.head_stride;
      head.values_ahead[j] = is_last ? scratch.values[1 - now][j] : head.values[j] + call.head_stride;
    }
    for (int64_t j = 0; HAS_SCALES && j < TILE; j++) {
      head.key_scales[j] = scale_behind(head.keys[j] + call.head_dim);
      head.value_scales[j] = scale_behind(head.values[j] + call.head_dim);
    }
  }

  static LIGHTVLLM_INLINE float scale_behind(const C* numbers) {
    float scale;
    std::memcpy(&scale, numbers, sizeof(scale));
    return scale;
  }

  LIGHTVLLM_INLINE void pass(const T* x, int64_t stride, int64_t count, int64_t words) const {
    call.pass(count, reinterpret_cast<Groups>(x), stride / PER_WORD, scratch.panel, words,
              Prefetch{reinterpret_cast<char*>(scratch.panel), 0, 1}, scratch.sums);
  }

  LIGHTVLLM_INLINE void keep_scores(int64_t row, int64_t count, int64_t key) const {
    for (int64_t r = 0; r < count; r++)
      std::memcpy(scratch.scores + (row + r) * TILE + key, scratch.sums + r * PANEL, PANEL * sizeof(float));
  }

  // The scores of PANEL keys from the tile's `key` on.
  LIGHTVLLM_INLINE void score(int64_t key) const {
    const T* query = scratch.query + first_row * call.head_dim;
    if constexpr (std::is_same_v<T, bf16>) {
      if (few.scores) {
        few.scores(head.keys + key, head.keys_ahead + key, call.head_dim, query, scratch.sums);
        return keep_scores(0, rows, key);
      }
    }
    pack_keys<T>(head.keys + key, head.keys_ahead + key, call.head_dim, scratch.panel);
    for_row_blocks(rows, MAX_ROWS, scratch.panel, 0, 1, [&](int64_t row, int64_t count, const Prefetch&) LIGHTVLLM_BODY {
      if (position_of(row + count - 1) < start + key || first_seen(row) >= start + key + PANEL) return;
      pass(query + row * call.head_dim, call.head_dim, count, call.head_dim / PER_WORD);
      keep_scores(row, count, key);
    });
  }

  // Scores -> weights, and what will merge their sums of values.
  LIGHTVLLM_INLINE void weigh_all() const {
    for (int64_t row = 0; row < rows; row++) {
      T* weights = scratch.weights + row * TILE;
      if (!sees(row)) {
        std::memset(weights, 0, TILE * sizeof(T));
        continue;
      }
      const Softmax of_tile = weigh<HAS_SCALES>(scratch.scores + row * TILE, call.scale, first_seen(row) - start,
                                                position_of(row) - start, {head.key_scales, head.value_scales}, weights);
      if (task.partials) {
        partial_of(row)[call.width] = of_tile.peak;
        partial_of(row)[call.width + 1] = of_tile.total;
      } else {
        scratch.merges[row] = merge(scratch.softmax[first_row + row], of_tile);
      }
    }
  }

  LIGHTVLLM_INLINE void keep_sums(int64_t row, int64_t count, int64_t d) const {
    for (int64_t r = 0; r < count; r++) {
      const float* sums = scratch.sums + r * PANEL;
      if (!sees(row + r)) continue;
      if (task.partials) {
        std::memcpy(partial_of(row + r) + d, sums, PANEL * sizeof(float));
      } else {
        merge_sums(scratch.output + (first_row + row + r) * call.width + d, sums, PANEL, scratch.merges[row + r]);
      }
    }
  }

  // The weighted sums of PANEL dimensions of the values from `d` on. It moves the values' addresses there.
  LIGHTVLLM_INLINE void add_values(int64_t d) const {
    for (int64_t j = 0; d && j < TILE; j++) {
      head.values[j] += PANEL;
      head.values_ahead[j] += PANEL;
    }
    if constexpr (std::is_same_v<T, bf16>) {
      if (few.values && d + PANEL <= call.head_dim) {
        few.values(head.values, head.values_ahead, stop - start, scratch.weights, TILE, scratch.sums);
        return keep_sums(0, rows, d);
      }
    }
    pack_values<T>(head.values, head.values_ahead, stop - start, std::min(PANEL, call.head_dim - d), scratch.panel);
    for_row_blocks(rows, MAX_ROWS, scratch.panel, 0, 1, [&](int64_t row, int64_t count, const Prefetch&) LIGHTVLLM_BODY {
      const int64_t seen = std::min(stop, position_of(row + count - 1) + 1) - start;
      if (seen <= 0 || first_seen(row) >= stop) return;
      pass(scratch.weights + row * TILE, TILE, count, (seen + PER_WORD - 1) / PER_WORD);
      keep_sums(row, count, d);
    });
  }
};

template <class T, class C>
LIGHTVLLM_INLINE void attend_task(const Call& call, const Task<T, C>& task, Scratch<T, C>& scratch) {
  const int64_t head_dim = call.head_dim, group = call.group, width = call.width;
  const int64_t head_rows = task.tokens * group, rows = task.kv_heads * head_rows, end = task.first_position + task.tokens;
  // Where a row's head lies in the query and in the output.
  auto place_of = [&](int64_t row, int64_t token_stride) LIGHTVLLM_BODY {
    return row % head_rows / group * token_stride + (row / head_rows * group + row % group) * head_dim;
  };
  for (int64_t row = 0; row < rows; row++) {
    std::memcpy(scratch.query + row * head_dim, task.query + place_of(row, call.query_stride), head_dim * sizeof(T));
    if (!task.partials) std::memset(scratch.output + row * width, 0, width * sizeof(float));
    scratch.softmax[row] = Softmax();
  }
  const FewRows<C> few = few_rows<C>(head_rows);
  find_rows(call, task, task.first_tile * TILE, end, scratch.nothing, scratch.keys[0], scratch.values[0]);
  for (int64_t tile = task.first_tile; tile < task.last_tile; tile++) {
    const int64_t now = (tile - task.first_tile) % 2, start = tile * TILE, stop = std::min(start + TILE, end);
    find_rows(call, task, start + TILE, end, scratch.nothing, scratch.keys[1 - now], scratch.values[1 - now]);
    for (int64_t kv_head = 0; kv_head < task.kv_heads; kv_head++) {  // inside: their keys are neighbours in memory
      const HeadTile<T, C> part = {call, task, scratch, few, tile, start, stop, kv_head * head_rows, head_rows};
      part.find(kv_head, now);
      for (int64_t key = 0; key < stop - start; key += PANEL) part.score(key);
      part.weigh_all();
      for (int64_t d = 0; d < head_dim; d += PANEL) part.add_values(d);
    }
  }
  for (int64_t row = 0; row < rows && !task.partials; row++) {
    const float inverse = 1.0f / scratch.softmax[row].total;
    T* to = task.out + place_of(row, call.out_stride);
    for (int64_t d = 0; d < head_dim; d += LANES) store(to + d, load(scratch.output + row * width + d) * inverse);
  }
}

// Merges what the tasks of one decode wrote of tiles [first_tile, tiles): partials [tiles, width + 2] of one row.
template <class T>
LIGHTVLLM_INLINE void merge_row(const Call& call, float* partials, int64_t first_tile, int64_t tiles, T* out) {
  const int64_t width = call.width;
  float* output = partials + first_tile * (width + 2);  // the first tile's sums become all tiles'
  Softmax softmax;
  for (int64_t tile = first_tile; tile < tiles; tile++) {
    const float* partial = partials + tile * (width + 2);
    const Merge by = merge(softmax, {partial[width], partial[width + 1]});
    if (tile > first_tile) merge_sums(output, partial, width, by);
  }
  const float inverse = 1.0f / softmax.total;
  for (int64_t d = 0; d < call.head_dim; d += LANES) store(out + d, load(output + d) * inverse);
}

// ---- the op ---------------------------------------------------------------------------------------------------------

// A task before its types are known.
struct Unit {
  const Piece* piece;
  int64_t kv_head, first_tile;
};

// What the op was given, and how its work is cut.
struct Step {
  Tensor query, keys, values, block_table, out;
  Call call;
  std::vector<Piece> pieces;
  std::vector<Unit> units = {};
  int64_t most_rows = 0;
  std::unique_ptr<float[]> partials = {};
};

// Lists the tasks in the order in which threads take them, and makes room for what they leave to be merged.
void list_units(Step& step, int64_t kv_heads) {
  const int64_t heads = kv_heads * step.call.group;
  int64_t partial_floats = 0;
  for (int64_t kv_head = 0; kv_head < kv_heads; kv_head++) {  // outermost, so that pieces of a request share its cache
    for (Piece& piece : step.pieces) {
      if (kv_head % piece.kv_heads) continue;
      step.most_rows = std::max(step.most_rows, piece.kv_heads * piece.tokens * step.call.group);
      if (piece.tiles - piece.first_tile > piece.task_tiles && piece.partials < 0) {
        piece.partials = partial_floats;
        partial_floats += heads * piece.tiles * (step.call.width + 2);
      }
      for (int64_t tile = piece.first_tile; tile < piece.tiles; tile += piece.task_tiles)
        step.units.push_back({&piece, kv_head, tile});
    }
  }
  if (partial_floats) step.partials.reset(new float[partial_floats]);
}

template <class T, class C>
Task<T, C> task_of(const Step& step, const Unit& unit) {
  const auto& [piece, kv_head, first_tile] = unit;
  const int64_t group = step.call.group, head_dim = step.call.head_dim;
  Task<T, C> task;
  task.query = data<T>(step.query) + piece->first_token * step.call.query_stride + kv_head * group * head_dim;
  task.out = data<T>(step.out) + piece->first_token * step.call.out_stride + kv_head * group * head_dim;
  task.keys = data<C>(step.keys) + kv_head * step.call.head_stride;
  task.values = data<C>(step.values) + kv_head * step.call.head_stride;
  task.blocks = data<int32_t>(step.block_table) + piece->request * step.block_table.size(1);
  task.kv_heads = piece->kv_heads;
  task.tokens = piece->tokens;
  task.first_position = piece->first_position;
  task.first_tile = first_tile;
  task.last_tile = std::min(first_tile + piece->task_tiles, piece->tiles);
  task.sequence_tiles = piece->tiles;
  task.partials = nullptr;
  if (piece->partials >= 0)
    task.partials = step.partials.get() + piece->partials + kv_head * group * piece->tiles * (step.call.width + 2);
  return task;
}

// T: of the queries; C: of the cache.
template <class T, class C>
void attend(Step& step) {
  const Call& call = step.call;
  step.call.pass = pass_for(static_cast<const T*>(nullptr));
  std::atomic<size_t> next = 0;
  parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t, int64_t) {
    Scratch<T, C> scratch(call, step.most_rows);
    for (size_t i = next++; i < step.units.size(); i = next++) {
      const Task<T, C> task = task_of<T, C>(step, step.units[i]);
      vectorized([&]() LIGHTVLLM_BODY { attend_task(call, task, scratch); });
    }
  });
  const int64_t heads = call.out_stride / call.head_dim;
  for (const Piece& piece : step.pieces) {
    if (piece.partials < 0) continue;
    parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; head++)
        vectorized([&]() LIGHTVLLM_BODY {
          merge_row(call, step.partials.get() + piece.partials + head * piece.tiles * (call.width + 2), piece.first_tile,
                    piece.tiles, data<T>(step.out) + (piece.first_token * heads + head) * call.head_dim);
        });
    });
  }
}

// query: [num_tokens, num_heads, head_dim]; caches: [num_blocks, block_size, num_kv_heads, head_dim], or int8 with
// head_dim + 4 bytes, see write_kv; block_table: [num_requests, max_blocks] int32; query_lens, seq_lens: [num_requests] int64
Tensor paged_attention(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, Tensor query_lens,
                       Tensor seq_lens, double scale, int64_t sliding_window) {
  const int64_t heads = query.size(1), head_dim = query.size(2), kv_heads = key_cache.size(2), group = heads / kv_heads;
  const bool is_int8 = key_cache.scalar_type() == torch::headeronly::ScalarType::Char;
  const int64_t head_stride = head_dim + (is_int8 ? sizeof(float) : 0);
  STD_TORCH_CHECK(head_dim % LANES == 0, "paged_attention: head_dim must be a multiple of 16");
  STD_TORCH_CHECK(group <= MOST_ROWS, "paged_attention: at most 72 query heads may share a key");
  STD_TORCH_CHECK(query.stride(2) == 1 && query.stride(1) == head_dim, "paged_attention: a token's heads must be contiguous");
  STD_TORCH_CHECK(key_cache.is_contiguous() && value_cache.is_contiguous() && block_table.is_contiguous(),
                  "paged_attention: cache and block table must be contiguous");
  STD_TORCH_CHECK(is_int8 || query.scalar_type() == key_cache.scalar_type(),
                  "paged_attention: query and cache must have one type, if the cache is not of int8");
  STD_TORCH_CHECK(key_cache.size(3) == head_stride && value_cache.size(3) == head_stride,
                  "paged_attention: the heads of query and cache must have one size, in int8 four bytes more for the scale");
  Call call = {group, head_dim, (head_dim + PANEL - 1) / PANEL * PANEL, key_cache.size(1), head_stride,
               kv_heads * head_stride, query.stride(0), heads * head_dim, sliding_window, float(scale), nullptr};
  Step step = {query, key_cache, value_cache, block_table, torch::stable::new_empty(query, {query.size(0), heads, head_dim}),
               call, cut(data<int64_t>(query_lens), data<int64_t>(seq_lens), seq_lens.size(0), group, kv_heads, sliding_window)};
  list_units(step, kv_heads);
  for_type(query, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (is_int8) return attend<T, int8_t>(step);
    attend<T, T>(step);
  });
  return step.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvllm, CPU, m) { m.impl("paged_attention", TORCH_BOX(&paged_attention)); }

}  // namespace lightvllm
