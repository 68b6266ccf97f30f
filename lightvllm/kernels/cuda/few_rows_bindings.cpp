// `few_rows.cu` and `few_rows_attention.cu` as ops of PyTorch's, by its stable ABI.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "few_rows.h"
#include "few_rows_attention.h"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace lightvllm::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Number number_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Number::FLOAT;
    case ScalarType::Half: return Number::HALF;
    case ScalarType::BFloat16: return Number::BFLOAT16;
    default: STD_TORCH_CHECK(false, "kernels for few rows take float32, float16 and bfloat16");
  }
}

const void* pointer_to(const std::optional<Tensor>& tensor, const Tensor& x, int64_t numbers, const char* name) {
  if (!tensor.has_value()) return nullptr;
  STD_TORCH_CHECK(tensor->scalar_type() == x.scalar_type() && tensor->is_contiguous() && tensor->numel() == numbers,
                  "few_rows: ", name, " must be contiguous, of x's type, and of ", numbers, " numbers");
  return tensor->data_ptr();
}

cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor few_rows_linear_op(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> norm_weight,
                          double eps, std::optional<Tensor> residual, bool is_gated) {
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = weight.size(0);
  STD_TORCH_CHECK(rows <= MOST_ROWS, "few_rows_linear: x has ", rows, " rows, at most ", MOST_ROWS, " are few");
  STD_TORCH_CHECK(weight.size(1) == inputs && weight.scalar_type() == x.scalar_type(),
                  "few_rows_linear: weight must have x's type and inputs");
  STD_TORCH_CHECK(x.stride(1) == 1 && weight.stride(1) == 1, "few_rows_linear: rows must be contiguous");
  STD_TORCH_CHECK(!is_gated || outputs % 2 == 0, "few_rows_linear: gates need as many partners");
  const int64_t results = is_gated ? outputs / 2 : outputs;
  Tensor y = torch::stable::new_empty(x, {rows, results});
  FewRows product{};
  product.x = x.data_ptr(), product.weight = weight.data_ptr(), product.y = y.data_ptr();
  product.bias = pointer_to(bias, x, outputs, "bias");
  product.norm_weight = pointer_to(norm_weight, x, inputs, "norm_weight");
  product.residual = pointer_to(residual, x, rows * results, "residual");
  product.x_stride = x.stride(0), product.weight_stride = weight.stride(0);
  product.rows = rows, product.inputs = inputs, product.outputs = outputs;
  product.eps = static_cast<float>(eps);
  product.is_gated = is_gated;
  const cudaError_t error = few_rows_linear(product, number_of(x), stream_of(x));
  STD_TORCH_CHECK(error == cudaSuccess, "few_rows_linear: ", cudaGetErrorString(error));
  return y;
}

const float* angles(const Tensor& tensor, int64_t rows, int64_t head_dim) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() && tensor.numel() == rows * head_dim,
                  "few_rows_attention: cos and sin must be contiguous float32, [rows, 1, head_dim]");
  return static_cast<const float*>(tensor.data_ptr());
}

void check_caches(const Tensor& qkv, const Tensor& key_cache, const Tensor& value_cache) {
  for (const Tensor* cache : {&key_cache, &value_cache})
    STD_TORCH_CHECK(cache->scalar_type() == qkv.scalar_type() && cache->is_contiguous(),
                    "few_rows_attention: the caches must be contiguous and of the type of qkv");
}

Tensor few_rows_attention_op(Tensor qkv, std::optional<Tensor> query_weight, std::optional<Tensor> key_weight, double eps,
                             Tensor cos, Tensor sin, Tensor key_cache, Tensor value_cache, Tensor slots,
                             Tensor block_table, Tensor seq_lens, int64_t num_heads, int64_t num_kv_heads, double scale,
                             int64_t sliding_window) {
  const int64_t rows = qkv.size(0), head_dim = key_cache.size(3);
  STD_TORCH_CHECK(head_dim == 64 || head_dim == 128 || head_dim == 256,
                  "few_rows_attention: head_dim is ", head_dim, ", not 64, 128 or 256");
  STD_TORCH_CHECK(num_heads % num_kv_heads == 0 && num_heads / num_kv_heads <= 8,
                  "few_rows_attention: at most 8 heads can share keys");
  STD_TORCH_CHECK(qkv.scalar_type() != ScalarType::Float, "few_rows_attention: qkv must be of float16 or bfloat16");
  STD_TORCH_CHECK(qkv.stride(1) == 1 && qkv.size(1) == (num_heads + 2 * num_kv_heads) * head_dim &&
                      key_cache.size(2) == num_kv_heads,
                  "few_rows_attention: qkv must have the heads' numbers, row by row");
  STD_TORCH_CHECK(slots.scalar_type() == ScalarType::Long && block_table.scalar_type() == ScalarType::Int &&
                      seq_lens.scalar_type() == ScalarType::Int && block_table.stride(1) == 1,
                  "few_rows_attention: slots must be int64, block_table and seq_lens int32");
  check_caches(qkv, key_cache, value_cache);
  Tensor y = torch::stable::new_empty(qkv, {rows, num_heads * head_dim});
  FewRowsAttention p{};
  p.qkv = qkv.data_ptr(), p.y = y.data_ptr();
  p.query_weight = pointer_to(query_weight, qkv, head_dim, "query_weight");
  p.key_weight = pointer_to(key_weight, qkv, head_dim, "key_weight");
  p.cos = angles(cos, rows, head_dim), p.sin = angles(sin, rows, head_dim);
  p.key_cache = key_cache.data_ptr(), p.value_cache = value_cache.data_ptr();
  p.slots = static_cast<const int64_t*>(slots.data_ptr());
  p.block_table = static_cast<const int32_t*>(block_table.data_ptr());
  p.seq_lens = static_cast<const int32_t*>(seq_lens.data_ptr());
  p.qkv_stride = qkv.stride(0), p.table_stride = block_table.stride(0);
  p.rows = rows, p.num_heads = num_heads, p.num_kv_heads = num_kv_heads, p.head_dim = head_dim;
  p.block_size = key_cache.size(1), p.sliding_window = sliding_window;
  p.eps = static_cast<float>(eps), p.scale = static_cast<float>(scale);
  const cudaError_t error = few_rows_attention(p, number_of(qkv), stream_of(qkv));
  STD_TORCH_CHECK(error == cudaSuccess, "few_rows_attention: ", cudaGetErrorString(error));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lightvllm_cuda, m) {
  m.def(
      "few_rows_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, float eps, Tensor? residual, "
      "bool is_gated) -> Tensor");
  m.def(
      "few_rows_attention(Tensor qkv, Tensor? query_weight, Tensor? key_weight, float eps, Tensor cos, Tensor sin, "
      "Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slots, Tensor block_table, Tensor seq_lens, int num_heads, "
      "int num_kv_heads, float scale, int sliding_window) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lightvllm_cuda, CUDA, m) {
  m.impl("few_rows_linear", TORCH_BOX(&few_rows_linear_op));
  m.impl("few_rows_attention", TORCH_BOX(&few_rows_attention_op));
}

}  // namespace lightvllm::cuda
