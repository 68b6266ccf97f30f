// What the kernels of paged attention share: which keys a block has, where they lie, and what becomes of its result.
//
// A softmax over keys that come piece by piece keeps three things (Milakov and Gimelshein, 2018,
// https://arxiv.org/abs/1805.02867): the largest score so far, the sum of exp(score - largest), and the sum of values
// weighted so. Two such results for different keys make one, which is how threads, warps and splits are put together.
// Scores are in units of log 2 here: exp2 is one instruction.
#pragma once

#include <cfloat>

#include "numbers.h"

namespace lightvllm::cuda {

constexpr int LARGEST_HEAD = 256;
constexpr int TILE = 16;                 // keys; splits begin at multiples of it
constexpr float LOWEST = -FLT_MAX;       // of a softmax that has seen nothing: -inf less -inf would be no number
constexpr float LOG2_E = 1.4426950408889634f;
constexpr int MOST_SPLITS = 64;

struct Keys {
  const int32_t* blocks;
  int begin, end;  // positions
};

// The request that a token belongs to: the first that ends behind it.
__device__ inline int64_t request_of(const PagedAttention& call, int64_t token) {
  if (!call.query_starts) return token;
  int64_t low = 0, high = call.requests - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (call.query_starts[middle + 1] > token) high = middle;
    else low = middle + 1;
  }
  return low;
}

// The keys that a token sees.
__device__ inline Keys keys_of(const PagedAttention& call, int64_t token) {
  const int64_t request = request_of(call, token);
  int end = call.seq_lens[request];
  if (call.query_starts) end -= call.query_starts[request + 1] - 1 - int(token);
  const int begin = call.sliding_window && call.sliding_window < end ? end - int(call.sliding_window) : 0;
  return {call.block_table + request * call.table_stride, begin, end};
}

// Keys of one split: all have as many, but the last that has some.
__device__ inline int keys_each(const PagedAttention& call, const Keys& keys) {
  return ceil_div(ceil_div(keys.end - keys.begin, TILE), int(call.splits)) * TILE;
}

__device__ inline Keys keys_of(const PagedAttention& call, int64_t token, int split) {
  const Keys all = keys_of(call, token);
  const int each = keys_each(call, all), begin = all.begin + split * each;
  return {all.blocks, begin, min(begin + each, all.end)};
}

// Where in the cache, counted in tokens, the one at this position lies.
__device__ inline int64_t slot_of(const PagedAttention& call, const Keys& keys, int position) {
  const unsigned block_size = call.block_size, index = unsigned(position) / block_size;
  return int64_t(keys.blocks[index]) * block_size + (position - index * block_size);
}

// The largest score of each split, and the sum of its weights: [tokens, heads, splits].
__device__ inline float2* totals_of(const PagedAttention& call) { return reinterpret_cast<float2*>(call.partials); }

// The sums of weighted values, behind these: [tokens, heads, splits, size], beginning where a vector may.
__device__ inline float* sums_of(const PagedAttention& call) {
  return call.partials + ceil_div(call.query.tokens * call.query.heads * call.splits, int64_t(2)) * 4;
}

// One number of a head's result, whole or of one split: the sum of weighted values.
template <class T>
__device__ inline void write_number(const PagedAttention& call, int64_t row, int split, int place, float number,
                                    float largest, float sum) {
  if (call.splits == 1) {
    static_cast<T*>(call.out)[row * call.query.size + place] = narrow<T>(number / sum);
    return;
  }
  const int64_t part = row * call.splits + split;
  sums_of(call)[part * call.query.size + place] = number;
  if (place == 0) totals_of(call)[part] = {largest, sum};
}

// Puts the warps' results for one head together: numbers: [WARPS][...] with `stride` between warps. `row` is token *
// heads + head. Threads `first`, `first + step`, ... of the head's numbers are this thread's.
template <class T, int WARPS>
__device__ inline void put_together(const PagedAttention& call, int64_t row, int split, const float* numbers, int stride,
                                    const float* largest, const float* sums, int warp_stride, int first, int step) {
  float overall = LOWEST, sum = 0, factors[WARPS];
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) overall = fmaxf(overall, largest[warp * warp_stride]);
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) {
    factors[warp] = exp2f(largest[warp * warp_stride] - overall);
    sum += factors[warp] * sums[warp * warp_stride];
  }
  for (int place = first; place < call.query.size; place += step) {
    float number = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) number += factors[warp] * numbers[warp * stride + place];
    write_number<T>(call, row, split, place, number, overall, sum);
  }
}

// v2's kernel for heads that share keys, see paged_attention_grouped.cu; cudaErrorNotSupported where it does not fit.
cudaError_t attend_grouped(const PagedAttention& call, cudaStream_t stream);

}  // namespace lightvllm::cuda
