// The ops of CUDA C++, `torch.ops.lightvllm_cuda.*`: from tensors to launchers, see kernels.h.
//
// Ops that `lightvllm.kernels.SCHEMAS` has, too, have the same schema here. A check that fails is our bug: what users can
// get wrong is refused in Python.
#include "bindings.h"

// A namespace of their own, as they have the launchers' names.
namespace lightvllm::cuda::ops {
namespace {

// [tokens, heads, size] or [tokens, size]
Heads heads_of(const Tensor& x, const char* op) {
  STD_TORCH_CHECK(x.dim() == 2 || x.dim() == 3, op, ": expected [tokens, size] or [tokens, heads, size]");
  STD_TORCH_CHECK(x.numel() == 0 || x.size(x.dim() - 1) == 1 || x.stride(x.dim() - 1) == 1, op,
                  ": the numbers of a head must be contiguous");
  if (x.dim() == 2) return {x.const_data_ptr(), x.size(0), 1, x.size(1), x.stride(0), 0};
  return {x.const_data_ptr(), x.size(0), x.size(1), x.size(2), x.stride(0), x.stride(1)};
}

Tensor vector_add(Tensor a, Tensor b) {
  STD_TORCH_CHECK(a.is_contiguous() && b.is_contiguous() && a.numel() == b.numel() && a.scalar_type() == b.scalar_type(),
                  "vector_add: expected two contiguous tensors of one size and type");
  const DeviceGuard guard(a.get_device());
  Tensor out = torch::stable::empty_like(a);
  check(cuda::vector_add(a.const_data_ptr(), b.const_data_ptr(), out.mutable_data_ptr(), a.numel(), type_of(a), stream_of(a)),
        "vector_add");
  return out;
}

Tensor embedding(Tensor weight, Tensor token_ids) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && token_ids.dim() == 1 && token_ids.is_contiguous(),
                  "embedding: expected contiguous [vocab_size, size] and [tokens]");
  STD_TORCH_CHECK(token_ids.scalar_type() == torch::headeronly::ScalarType::Long, "embedding: token ids must be int64");
  const DeviceGuard guard(weight.get_device());
  const int64_t tokens = token_ids.size(0), size = weight.size(1);
  Tensor out = torch::stable::new_empty(weight, {tokens, size});
  check(cuda::embedding(weight.const_data_ptr(), static_cast<const int64_t*>(token_ids.const_data_ptr()), out.mutable_data_ptr(),
                  tokens, weight.size(0), size, type_of(weight), stream_of(weight)),
        "embedding");
  return out;
}

void check_weight(const Tensor& weight, const Tensor& x, int64_t size, const char* op) {
  STD_TORCH_CHECK(weight.is_contiguous() && weight.numel() == size && weight.scalar_type() == x.scalar_type(), op,
                  ": a norm's weight must be contiguous, of the size and type of what it scales");
}

Tensor rms_norm(Tensor x, Tensor weight, double eps) {
  const Heads heads = heads_of(x, "rms_norm");
  check_weight(weight, x, heads.size, "rms_norm");
  const DeviceGuard guard(x.get_device());
  Tensor out = x.dim() == 2 ? torch::stable::new_empty(x, {heads.tokens, heads.size})
                            : torch::stable::new_empty(x, {heads.tokens, heads.heads, heads.size});
  check(cuda::rms_norm(heads, weight.const_data_ptr(), out.mutable_data_ptr(), float(eps), type_of(x), stream_of(x)), "rms_norm");
  return out;
}

std::tuple<Tensor, Tensor> add_rms_norm(Tensor x, Tensor update, Tensor weight, double eps) {
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && update.is_contiguous() && update.numel() == x.numel() &&
                      update.scalar_type() == x.scalar_type(),
                  "add_rms_norm: expected two contiguous [tokens, size] of one type");
  check_weight(weight, x, x.size(1), "add_rms_norm");
  const DeviceGuard guard(x.get_device());
  Tensor total = torch::stable::empty_like(x), out = torch::stable::empty_like(x);
  check(cuda::add_rms_norm(x.const_data_ptr(), update.const_data_ptr(), weight.const_data_ptr(), total.mutable_data_ptr(),
                     out.mutable_data_ptr(), x.size(0), x.size(1), float(eps), type_of(x), stream_of(x)),
        "add_rms_norm");
  return {total, out};
}

Tensor rotate(const Tensor& x, Heads heads, Rotation rotation, const Tensor& cos, const Tensor& sin, const char* op) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(cos.is_contiguous() && sin.is_contiguous() && cos.numel() == heads.tokens * heads.size &&
                      sin.numel() == cos.numel() && cos.scalar_type() == ScalarType::Float && sin.scalar_type() == ScalarType::Float,
                  op, ": cos and sin must be contiguous [tokens, 1, head_dim] float32");
  STD_TORCH_CHECK(heads.size % 2 == 0, op, ": a head has two halves");
  rotation.cos = static_cast<const float*>(cos.const_data_ptr());
  rotation.sin = static_cast<const float*>(sin.const_data_ptr());
  const DeviceGuard guard(x.get_device());
  Tensor out = torch::stable::new_empty(x, {heads.tokens, heads.heads, heads.size});
  check(cuda::rotate_heads(heads, rotation, out.mutable_data_ptr(), type_of(x), stream_of(x)), op);
  return out;
}

Tensor rotary(Tensor x, Tensor cos, Tensor sin) {
  STD_TORCH_CHECK(x.dim() == 3, "rotary: expected [tokens, heads, head_dim]");
  return rotate(x, heads_of(x, "rotary"), {nullptr, nullptr, nullptr, nullptr, x.size(1), 0, 0}, cos, sin, "rotary");
}

Tensor rotary_qkv(Tensor qkv, std::optional<Tensor> query_weight, std::optional<Tensor> key_weight, double eps, Tensor cos,
                  Tensor sin, int64_t num_heads, int64_t num_kv_heads) {
  Heads heads = heads_of(qkv, "rotary_qkv");
  STD_TORCH_CHECK(qkv.dim() == 2, "rotary_qkv: expected [tokens, heads * head_dim]");
  heads.heads = num_heads + 2 * num_kv_heads, heads.size /= heads.heads, heads.head_stride = heads.size;
  STD_TORCH_CHECK(query_weight.has_value() == key_weight.has_value(), "rotary_qkv: weights for both norms, or for none");
  Rotation rotation = {nullptr, nullptr, nullptr, nullptr, num_heads, num_kv_heads, float(eps)};
  if (query_weight) {
    check_weight(*query_weight, qkv, heads.size, "rotary_qkv");
    check_weight(*key_weight, qkv, heads.size, "rotary_qkv");
    rotation.query_weight = query_weight->const_data_ptr(), rotation.key_weight = key_weight->const_data_ptr();
  }
  return rotate(qkv, heads, rotation, cos, sin, "rotary_qkv");
}

Tensor silu_and_mul(Tensor x) {
  STD_TORCH_CHECK(x.dim() == 2, "silu_and_mul: expected [tokens, 2 * size]");
  const Heads rows = heads_of(x, "silu_and_mul");
  const DeviceGuard guard(x.get_device());
  Tensor out = torch::stable::new_empty(x, {rows.tokens, rows.size / 2});
  check(cuda::silu_and_mul(rows.data, rows.token_stride, out.mutable_data_ptr(), rows.tokens, rows.size / 2, type_of(x), stream_of(x)),
        "silu_and_mul");
  return out;
}

// Behind each head of an int8 cache there are four bytes more, its scale.
void check_caches(const Tensor& x, const Tensor& key_cache, const Tensor& value_cache, const char* op) {
  const bool is_int8 = type_of(key_cache) == Type::INT8;
  STD_TORCH_CHECK(key_cache.is_contiguous() && value_cache.is_contiguous() && key_cache.numel() == value_cache.numel() &&
                      key_cache.scalar_type() == value_cache.scalar_type(),
                  op, ": the caches must be contiguous, of one size and type");
  STD_TORCH_CHECK(is_int8 || key_cache.scalar_type() == x.scalar_type(), op, ": the cache's type must be the tokens', or int8");
  STD_TORCH_CHECK(key_cache.size(3) == x.size(2) + (is_int8 ? 4 : 0), op, ": heads and cache must have one size, in int8 four more");
}

void write_kv(Tensor key, Tensor value, Tensor key_cache, Tensor value_cache, Tensor slots) {
  STD_TORCH_CHECK(key.dim() == 3 && value.dim() == 3, "write_kv: expected [tokens, kv_heads, head_dim]");
  STD_TORCH_CHECK(slots.scalar_type() == torch::headeronly::ScalarType::Long, "write_kv: slots must be int64");
  check_caches(key, key_cache, value_cache, "write_kv");
  const DeviceGuard guard(key.get_device());
  check(cuda::write_kv(heads_of(key, "write_kv"), heads_of(value, "write_kv"), key_cache.mutable_data_ptr(),
                 value_cache.mutable_data_ptr(), static_cast<const int64_t*>(slots.const_data_ptr()), type_of(key),
                 type_of(key_cache), stream_of(key)),
        "write_kv");
}

const int32_t* int32_of(const Tensor& x, const char* op) {
  STD_TORCH_CHECK(x.scalar_type() == torch::headeronly::ScalarType::Int, op, ": block table, starts and lengths must be int32");
  return static_cast<const int32_t*>(x.const_data_ptr());
}

PagedAttention call_of(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& block_table,
                       const Tensor& seq_lens, double scale, int64_t sliding_window, const Tensor& out, const char* op) {
  STD_TORCH_CHECK(query.dim() == 3 && query.size(2) <= 256, op, ": expected [tokens, heads, head_dim], head_dim <= 256");
  STD_TORCH_CHECK(block_table.dim() == 2 && (block_table.size(1) <= 1 || block_table.stride(1) == 1), op, ": a request's blocks must be contiguous");
  STD_TORCH_CHECK(query.size(1) % key_cache.size(2) == 0, op, ": as many query heads must share each key head");
  check_caches(query, key_cache, value_cache, op);
  PagedAttention call{};
  call.query = heads_of(query, op);
  call.key_cache = key_cache.const_data_ptr(), call.value_cache = value_cache.const_data_ptr();
  call.block_table = int32_of(block_table, op), call.seq_lens = int32_of(seq_lens, op);
  call.requests = seq_lens.size(0), call.table_stride = block_table.stride(0);
  call.kv_heads = key_cache.size(2), call.block_size = key_cache.size(1);
  call.scale = float(scale), call.sliding_window = sliding_window;
  call.type = type_of(query), call.cache_type = type_of(key_cache);
  call.splits = 1, call.out = out.mutable_data_ptr();
  return call;
}

Tensor paged_attention_v1(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table,
                          std::optional<Tensor> query_starts, Tensor seq_lens, double scale, int64_t sliding_window) {
  const DeviceGuard guard(query.get_device());
  Tensor out = torch::stable::new_empty(query, {query.size(0), query.size(1), query.size(2)});
  PagedAttention call = call_of(query, key_cache, value_cache, block_table, seq_lens, scale, sliding_window, out, "paged_attention_v1");
  if (query_starts) call.query_starts = int32_of(*query_starts, "paged_attention_v1");
  check(cuda::paged_attention_v1(call, stream_of(query)), "paged_attention_v1");
  return out;
}

Tensor paged_attention_v2(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, Tensor seq_lens,
                          int64_t max_seq_len, double scale, int64_t sliding_window) {
  const DeviceGuard guard(query.get_device());
  const int64_t tokens = query.size(0), heads = query.size(1), size = query.size(2);
  Tensor out = torch::stable::new_empty(query, {tokens, heads, size}), partials = out;
  PagedAttention call = call_of(query, key_cache, value_cache, block_table, seq_lens, scale, sliding_window, out, "paged_attention_v2");
  call.splits = paged_attention_splits(tokens, call.kv_heads, sliding_window ? std::min(max_seq_len, sliding_window) : max_seq_len);
  if (call.splits > 1) {
    partials = torch::stable::new_empty(query, {tokens * heads * call.splits * (size + 2) + 2}, torch::headeronly::ScalarType::Float);
    call.partials = static_cast<float*>(partials.mutable_data_ptr());
  }
  check(cuda::paged_attention_v2(call, stream_of(query)), "paged_attention_v2");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightvllm_cuda, m) {
  m.def("vector_add(Tensor a, Tensor b) -> Tensor");
  m.def("embedding(Tensor weight, Tensor token_ids) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor update, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def("rotary(Tensor x, Tensor cos, Tensor sin) -> Tensor");
  m.def("rotary_qkv(Tensor qkv, Tensor? query_weight, Tensor? key_weight, float eps, Tensor cos, Tensor sin, "
        "int num_heads, int num_kv_heads) -> Tensor");
  m.def("silu_and_mul(Tensor x) -> Tensor");
  m.def("write_kv(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slots) -> ()");
  m.def("paged_attention_v1(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, "
        "Tensor? query_starts, Tensor seq_lens, float scale, int sliding_window) -> Tensor");
  m.def("paged_attention_v2(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, Tensor seq_lens, "
        "int max_seq_len, float scale, int sliding_window) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightvllm_cuda, CUDA, m) {
  m.impl("vector_add", TORCH_BOX(&vector_add));
  m.impl("embedding", TORCH_BOX(&embedding));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("rotary", TORCH_BOX(&rotary));
  m.impl("rotary_qkv", TORCH_BOX(&rotary_qkv));
  m.impl("silu_and_mul", TORCH_BOX(&silu_and_mul));
  m.impl("write_kv", TORCH_BOX(&write_kv));
  m.impl("paged_attention_v1", TORCH_BOX(&paged_attention_v1));
  m.impl("paged_attention_v2", TORCH_BOX(&paged_attention_v2));
}

}  // namespace lightvllm::cuda::ops
