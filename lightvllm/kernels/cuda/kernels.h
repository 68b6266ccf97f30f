// The launchers: each starts one op's kernel on a stream and says whether that worked. Nothing here knows PyTorch.
//
// Pointers are of device memory; sizes and strides count elements, not bytes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lightvllm::cuda {

enum class Type { FLOAT, HALF, BFLOAT16, INT8 };

// A tensor [tokens, heads, size], the numbers of a head next to each other; rows without heads are tokens of one head.
struct Heads {
  const void* data;
  int64_t tokens, heads, size, token_stride, head_stride;
};

cudaError_t vector_add(const void* a, const void* b, void* out, int64_t size, Type type, cudaStream_t stream);

cudaError_t embedding(const void* weight, const int64_t* token_ids, void* out, int64_t tokens, int64_t vocab_size,
                      int64_t size, Type type, cudaStream_t stream);

// out: [tokens, heads, size]
cudaError_t rms_norm(Heads x, const void* weight, void* out, float eps, Type type, cudaStream_t stream);

// x, update, total and out: [tokens, size]
cudaError_t add_rms_norm(const void* x, const void* update, const void* weight, void* total, void* out, int64_t tokens,
                         int64_t size, float eps, Type type, cudaStream_t stream);

// The first heads are of queries, then come keys; heads behind these are copied. Both norms' weights, or none.
struct Rotation {
  const void *query_weight, *key_weight;  // [size]
  const float *cos, *sin;                 // [tokens, size]
  int64_t num_heads, num_kv_heads;
  float eps;
};

// out: [tokens, heads, size]
cudaError_t rotate_heads(Heads x, Rotation rotation, void* out, Type type, cudaStream_t stream);

// x: [tokens, 2 * size], its rows `stride` apart; out: [tokens, size]
cudaError_t silu_and_mul(const void* x, int64_t stride, void* out, int64_t tokens, int64_t size, Type type,
                         cudaStream_t stream);

// caches: [slots, heads, size], or for INT8 [slots, heads, size + 4]; slots: [tokens]
cudaError_t write_kv(Heads key, Heads value, void* key_cache, void* value_cache, const int64_t* slots, Type type,
                     Type cache_type, cudaStream_t stream);

struct PagedAttention {
  Heads query;
  const void *key_cache, *value_cache;  // [blocks, block_size, kv_heads, size], in INT8 size + 4
  const int32_t* block_table;           // [requests, ...], rows `table_stride` apart
  const int32_t* query_starts;          // [requests + 1] where each request's tokens begin; null: each has one
  const int32_t* seq_lens;              // [requests]
  int64_t requests, table_stride, kv_heads, block_size;
  float scale;
  int64_t sliding_window;  // 0: none
  Type type, cache_type;
  int64_t splits;   // parts that a context is cut into; 1: not cut
  float* partials;  // tokens * heads * splits * (size + 2) + 2 floats, if it is cut
  void* out;        // [tokens, heads, size]
};

// v1: one block for each token and query head.
cudaError_t paged_attention_v1(const PagedAttention& call, cudaStream_t stream);

// v2: the context cut into `splits` parts, and their results put together by a second kernel. One token a request.
cudaError_t paged_attention_v2(const PagedAttention& call, cudaStream_t stream);
int64_t paged_attention_splits(int64_t requests, int64_t kv_heads, int64_t max_seq_len);

}  // namespace lightvllm::cuda
