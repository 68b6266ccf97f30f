// What `few_rows_attention.cu` computes and its bindings fill in.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "few_rows.h"

namespace lightvllm::cuda {

// One token of each request: its heads normed and rotated, its key and value put into the cache, and its attention.
struct FewRowsAttention {
  const void* qkv;           // [rows, (num_heads + 2 * num_kv_heads) * head_dim]
  const void* query_weight;  // [head_dim] of an RMSNorm of each head, or null
  const void* key_weight;
  const float* cos;          // [rows, head_dim]
  const float* sin;
  void* key_cache;           // [num_blocks, block_size, num_kv_heads, head_dim]
  void* value_cache;
  const int64_t* slots;      // [rows]
  const int32_t* block_table;  // [rows, max_blocks]
  const int32_t* seq_lens;     // [rows], with the new token
  void* y;                     // [rows, num_heads * head_dim]
  int64_t qkv_stride, table_stride;
  int rows, num_heads, num_kv_heads, head_dim, block_size, sliding_window;
  float eps, scale;
};

cudaError_t few_rows_attention(const FewRowsAttention& attention, Number number, cudaStream_t stream);

}  // namespace lightvllm::cuda
