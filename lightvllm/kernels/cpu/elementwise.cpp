// The ops of a decoder layer that are neither product nor attention: token embedding, RMSNorm, alone and with the addition
// before it, rotary embedding, alone and with the head norms before it, SiLU-and-multiply, and the write into the KV cache.
// Reference twins: lightvllm/kernels/reference.py; test: tests/kernels/test_ops.py.
#include <algorithm>
#include <cmath>
#include <limits>

#include "common.h"

namespace lightvllm {
namespace {

// Calls f(row) for each row of `size` numbers; f is a lambda marked LIGHTVLLM_BODY.
template <class F>
void for_rows(int64_t rows, int64_t size, const F& f) {
  parallel_for(0, rows, 1 + 16384 / size, [&](int64_t begin, int64_t end) {
    vectorized([&]() LIGHTVLLM_BODY {
      for (int64_t row = begin; row < end; row++) f(row);
    });
  });
}

// ---- embedding ------------------------------------------------------------------------------------------------------

Tensor embedding(Tensor weight, Tensor token_ids) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && token_ids.dim() == 1 && token_ids.is_contiguous(),
                  "embedding: expected a contiguous [vocabulary, size] and [tokens]");
  STD_TORCH_CHECK(token_ids.scalar_type() == torch::headeronly::ScalarType::Long, "embedding: token ids must be int64");
  const int64_t tokens = token_ids.size(0), bytes = weight.size(1) * weight.element_size();
  const int64_t* ids = data<int64_t>(token_ids);
  for (int64_t i = 0; i < tokens; i++)
    STD_TORCH_CHECK(0 <= ids[i] && ids[i] < weight.size(0), "embedding: a token id is outside the vocabulary");
  Tensor out = torch::stable::new_empty(weight, {tokens, weight.size(1)});
  parallel_for(0, tokens, 1 + 65536 / std::max<int64_t>(bytes, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) std::memcpy(data<char>(out) + i * bytes, data<char>(weight) + ids[i] * bytes, bytes);
  });
  return out;
}

// ---- rms_norm -------------------------------------------------------------------------------------------------------

template <class T>
LIGHTVLLM_INLINE void rms_norm_row(T* out, const T* x, const T* weight, int64_t size, float eps) {
  f32x16 squares = {};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    f32x16 v = load(x + i);
    squares += v * v;
  }
  float total = sum(squares);
  for (int64_t j = i; j < size; j++) total += to_float(x[j]) * to_float(x[j]);
  float scale = 1.0f / __builtin_sqrtf(total / size + eps);
  for (i = 0; i + LANES <= size; i += LANES) store(out + i, load(x + i) * scale * load(weight + i));
  for (; i < size; i++) store_one(out + i, to_float(x[i]) * scale * to_float(weight[i]));
}

Tensor rms_norm(Tensor x, Tensor weight, double eps) {
  int64_t dims = x.dim(), size = x.size(dims - 1);
  STD_TORCH_CHECK(dims == 2 || dims == 3, "rms_norm: expected [tokens, size] or [tokens, heads, size]");
  STD_TORCH_CHECK(x.stride(dims - 1) == 1 && weight.is_contiguous(), "rms_norm: the last dimension must be contiguous");
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "rms_norm: x and weight must have one type");
  int64_t heads = dims == 3 ? x.size(1) : 1, head_stride = dims == 3 ? x.stride(1) : 0;
  Tensor out = torch::stable::new_empty(x, x.sizes());
  for_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *from = data<T>(x), *by = data<T>(weight);
    T* to = data<T>(out);
    const int64_t token_stride = x.stride(0);
    for_rows(x.size(0) * heads, size, [&](int64_t row) LIGHTVLLM_BODY {
      rms_norm_row(to + row * size, from + row / heads * token_stride + row % heads * head_stride, by, size, float(eps));
    });
  });
  return out;
}

// ---- add_rms_norm ---------------------------------------------------------------------------------------------------

template <class T>
LIGHTVLLM_INLINE void add_row(T* total, const T* x, const T* update, int64_t size) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) store(total + i, load(x + i) + load(update + i));
  for (; i < size; i++) store_one(total + i, to_float(x[i]) + to_float(update[i]));
}

std::tuple<Tensor, Tensor> add_rms_norm(Tensor x, Tensor update, Tensor weight, double eps) {
  STD_TORCH_CHECK(x.dim() == 2 && update.dim() == 2 && x.size(0) == update.size(0) && x.size(1) == update.size(1),
                  "add_rms_norm: expected [tokens, size] twice");
  STD_TORCH_CHECK(x.is_contiguous() && update.is_contiguous() && weight.is_contiguous(), "add_rms_norm: must be contiguous");
  STD_TORCH_CHECK(x.scalar_type() == update.scalar_type() && x.scalar_type() == weight.scalar_type() &&
                      weight.numel() == x.size(1),
                  "add_rms_norm: x, update and weight must have one type and size");
  Tensor total = torch::stable::new_empty(x, x.sizes()), out = torch::stable::new_empty(x, x.sizes());
  for_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *from = data<T>(x), *more = data<T>(update), *by = data<T>(weight);
    T *sums = data<T>(total), *to = data<T>(out);
    const int64_t size = x.size(1);
    for_rows(x.size(0), size, [&](int64_t row) LIGHTVLLM_BODY {
      const int64_t at = row * size;
      add_row(sums + at, from + at, more + at, size);
      rms_norm_row(to + at, sums + at, by, size, float(eps));
    });
  });
  return {total, out};
}

// ---- rotary ---------------------------------------------------------------------------------------------------------

template <class T>
LIGHTVLLM_INLINE void rotate(T* out, const T* x, const float* cos, const float* sin, int64_t half) {
  int64_t i = 0;
  for (; i + LANES <= half; i += LANES) {
    f32x16 a = load(x + i), b = load(x + half + i);
    store(out + i, a * load(cos + i) - b * load(sin + i));
    store(out + half + i, b * load(cos + half + i) + a * load(sin + half + i));
  }
  for (; i < half; i++) {
    float a = to_float(x[i]), b = to_float(x[half + i]);
    store_one(out + i, a * cos[i] - b * sin[i]);
    store_one(out + half + i, b * cos[half + i] + a * sin[half + i]);
  }
}

Tensor rotary(Tensor x, Tensor cos, Tensor sin) {
  STD_TORCH_CHECK(x.dim() == 3 && x.stride(2) == 1, "rotary: expected [tokens, heads, head_dim], the last contiguous");
  STD_TORCH_CHECK(cos.is_contiguous() && sin.is_contiguous(), "rotary: cos and sin must be contiguous");
  int64_t heads = x.size(1), size = x.size(2);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  for_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = data<T>(x);
    const float *cosines = data<float>(cos), *sines = data<float>(sin);
    T* to = data<T>(out);
    const int64_t token_stride = x.stride(0), head_stride = x.stride(1);
    for_rows(x.size(0) * heads, size, [&](int64_t row) LIGHTVLLM_BODY {
      const int64_t token = row / heads;
      rotate(to + row * size, from + token * token_stride + row % heads * head_stride, cosines + token * size,
             sines + token * size, size / 2);
    });
  });
  return out;
}

// ---- rotary_qkv -----------------------------------------------------------------------------------------------------

Tensor rotary_qkv(Tensor qkv, std::optional<Tensor> query_weight, std::optional<Tensor> key_weight, double eps, Tensor cos,
                  Tensor sin, int64_t heads, int64_t kv_heads) {
  const int64_t rows = heads + 2 * kv_heads, size = qkv.size(1) / rows;
  STD_TORCH_CHECK(qkv.dim() == 2 && qkv.is_contiguous() && size * rows == qkv.size(1) && size % 2 == 0,
                  "rotary_qkv: expected a contiguous [tokens, heads * head_dim]");
  STD_TORCH_CHECK(cos.is_contiguous() && sin.is_contiguous() && cos.numel() == qkv.size(0) * size && sin.numel() == cos.numel(),
                  "rotary_qkv: cos and sin must be contiguous [tokens, 1, head_dim]");
  STD_TORCH_CHECK(query_weight.has_value() == key_weight.has_value(), "rotary_qkv: weights for both norms, or for none");
  for (const auto& weight : {query_weight, key_weight})
    STD_TORCH_CHECK(!weight || (weight->is_contiguous() && weight->numel() == size && weight->scalar_type() == qkv.scalar_type()),
                    "rotary_qkv: a norm's weight must be contiguous, of the size of a head and of the product's type");
  Tensor out = torch::stable::new_empty(qkv, {qkv.size(0), rows, size});
  for_type(qkv, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *from = data<T>(qkv), *query_by = query_weight ? data<T>(*query_weight) : nullptr,
            *key_by = key_weight ? data<T>(*key_weight) : nullptr;
    const float *cosines = data<float>(cos), *sines = data<float>(sin);
    T* to = data<T>(out);
    for_rows(qkv.size(0) * rows, size, [&](int64_t row) LIGHTVLLM_BODY {
      const int64_t token = row / rows, head = row % rows, at = row * size;  // query heads first, then keys and values
      if (head >= heads + kv_heads) {
        std::memcpy(to + at, from + at, size * sizeof(T));
        return;
      }
      const T* x = from + at;
      if (query_by) {
        rms_norm_row(to + at, x, head < heads ? query_by : key_by, size, float(eps));
        x = to + at;
      }
      rotate(to + at, x, cosines + token * size, sines + token * size, size / 2);
    });
  });
  return out;
}

// ---- silu_and_mul ---------------------------------------------------------------------------------------------------

template <class T>
LIGHTVLLM_INLINE void silu_and_mul_row(T* out, const T* x, int64_t size) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    f32x16 gate = load(x + i);
    store(out + i, gate / (1.0f + exp(-gate)) * load(x + size + i));
  }
  for (; i < size; i++) {
    float gate = to_float(x[i]);
    store_one(out + i, gate / (1.0f + exp(splat(-gate))[0]) * to_float(x[size + i]));
  }
}

Tensor silu_and_mul(Tensor x) {
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "silu_and_mul: expected a contiguous [tokens, 2 * size]");
  int64_t size = x.size(1) / 2;
  Tensor out = torch::stable::new_empty(x, {x.size(0), size});
  for_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = data<T>(x);
    T* to = data<T>(out);
    for_rows(x.size(0), size, [&](int64_t row) LIGHTVLLM_BODY { silu_and_mul_row(to + row * size, from + row * 2 * size, size); });
  });
  return out;
}

// ---- write_kv -------------------------------------------------------------------------------------------------------

// A head in int8, to nearest, ties to even, and behind it its scale, a float32. What is too small for a normal scale becomes
// zero. A head that is not finite becomes NaN, all of it, by its scale.
template <class T>
LIGHTVLLM_INLINE void round_head(const T* x, int64_t size, int8_t* to) {
  typedef int8_t i8x16 __attribute__((vector_size(16)));
  typedef int16_t i16x16 __attribute__((vector_size(32)));
  f32x16 largest = {}, poison = {};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    const f32x16 v = load(x + i);
    largest = maximum(largest, maximum(v, -v));
    poison += v * 0.0f;  // NaN, if it is not finite
  }
  float peak = 0, not_finite = sum(poison);
  for (int64_t lane = 0; lane < LANES; lane++) peak = std::max(peak, largest[lane]);
  for (; i < size; i++) {
    peak = std::max(peak, std::abs(to_float(x[i])));
    not_finite += to_float(x[i]) * 0.0f;
  }
  float scale = peak / 127;
  const bool is_finite = not_finite == 0, is_normal = is_finite && scale >= std::numeric_limits<float>::min();
  if (!is_normal) {
    scale = is_finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    std::memset(to, 0, size);
  }
  std::memcpy(to + size, &scale, sizeof(scale));
  const f32x16 shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  for (i = 0; is_normal && i + LANES <= size; i += LANES) {
    const f32x16 rounded = (load(x + i) / scale + shift) - shift;
    const i16x16 halfway = __builtin_convertvector(__builtin_convertvector(rounded, i32x16), i16x16);  // GCC needs it
    const i8x16 bytes = __builtin_convertvector(halfway, i8x16);
    std::memcpy(to + i, &bytes, sizeof(bytes));
  }
  for (; is_normal && i < size; i++) to[i] = int8_t(std::nearbyint(to_float(x[i]) / scale));
}

void write_rounded(const Tensor& key, const Tensor& value, const Tensor& key_cache, const Tensor& value_cache,
                   const int64_t* slots) {
  const int64_t heads = key.size(1), size = key.size(2), row = size + sizeof(float);
  STD_TORCH_CHECK(key_cache.size(3) == row && value_cache.size(3) == row,
                  "write_kv: a head of an int8 cache has four bytes more, its scale");
  for_type(key, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T *keys = data<T>(key), *values = data<T>(value);
    int8_t *to_keys = data<int8_t>(key_cache), *to_values = data<int8_t>(value_cache);
    const int64_t key_stride = key.stride(0), value_stride = value.stride(0);
    for_rows(key.size(0) * heads, size, [&](int64_t i) LIGHTVLLM_BODY {
      const int64_t token = i / heads, head = i % heads, to = (slots[token] * heads + head) * row;
      round_head(keys + token * key_stride + head * size, size, to_keys + to);
      round_head(values + token * value_stride + head * size, size, to_values + to);
    });
  });
}

void write_kv(Tensor key, Tensor value, Tensor key_cache, Tensor value_cache, Tensor slots) {
  int64_t bytes = key.size(1) * key.size(2) * key.element_size();
  STD_TORCH_CHECK(key.stride(2) == 1 && key.stride(1) == key.size(2), "write_kv: a token's heads must be contiguous");
  STD_TORCH_CHECK(value.stride(2) == 1 && value.stride(1) == value.size(2), "write_kv: a token's heads must be contiguous");
  STD_TORCH_CHECK(key_cache.is_contiguous() && value_cache.is_contiguous(), "write_kv: the cache must be contiguous");
  const int64_t* slot = data<int64_t>(slots);
  if (key_cache.scalar_type() == torch::headeronly::ScalarType::Char)
    return write_rounded(key, value, key_cache, value_cache, slot);
  STD_TORCH_CHECK(key.scalar_type() == key_cache.scalar_type(),
                  "write_kv: keys and cache must have one type, if the cache is not of int8");
  int64_t key_stride = key.stride(0) * key.element_size(), value_stride = value.stride(0) * value.element_size();
  parallel_for(0, key.size(0), 1 + 65536 / bytes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      std::memcpy(data<char>(key_cache) + slot[i] * bytes, data<char>(key) + i * key_stride, bytes);
      std::memcpy(data<char>(value_cache) + slot[i] * bytes, data<char>(value) + i * value_stride, bytes);
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvllm, CPU, m) {
  m.impl("embedding", TORCH_BOX(&embedding));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("rotary", TORCH_BOX(&rotary));
  m.impl("rotary_qkv", TORCH_BOX(&rotary_qkv));
  m.impl("silu_and_mul", TORCH_BOX(&silu_and_mul));
  m.impl("write_kv", TORCH_BOX(&write_kv));
}

}  // namespace lightvllm
