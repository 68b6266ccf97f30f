// Weights rounded to 8 or 4 bits while a checkpoint is loaded.
// Reference twin: lightvllm/kernels/reference.py:round_weight; test: tests/kernels/test_quantized_linear.py.
#include <algorithm>
#include <cmath>

#include "common.h"

namespace lightvllm {
namespace {

// `count` weights that share a scale -> their values.
template <class T>
LIGHTVLLM_INLINE void round_group(const T* weight, int64_t count, int64_t bits, uint8_t* values, float* scale) {
  typedef uint8_t u8x16 __attribute__((vector_size(16)));
  const int32_t zero = 1 << (bits - 1);
  f32x16 largest = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const f32x16 v = load(weight + i);
    largest = maximum(largest, maximum(v, -v));
  }
  float peak = 0;
  for (int64_t lane = 0; lane < LANES; lane++) peak = std::max(peak, largest[lane]);
  for (int64_t j = i; j < count; j++) peak = std::max(peak, std::abs(to_float(weight[j])));
  *scale = peak / float(zero - 1);
  const float divisor = std::max(*scale, 1e-38f);
  const f32x16 shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  for (i = 0; i + LANES <= count; i += LANES) {
    const f32x16 rounded = (load(weight + i) / divisor + shift) - shift;
    const u8x16 bytes = __builtin_convertvector(__builtin_convertvector(rounded, i32x16) + zero, u8x16);
    std::memcpy(values + i, &bytes, sizeof(bytes));
  }
  for (; i < count; i++) values[i] = uint8_t(std::nearbyint(to_float(weight[i]) / divisor) + float(zero));
}

// weight: [outputs, inputs] -> values [outputs, inputs], scales [outputs, groups]
std::tuple<Tensor, Tensor> round_weight(Tensor weight, int64_t bits, int64_t group_size) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous(), "round_weight: weight must be a contiguous matrix");
  STD_TORCH_CHECK((bits == 8 || bits == 4) && group_size > 0, "round_weight: 4 or 8 bits, and groups");
  const int64_t outputs = weight.size(0), inputs = weight.size(1), groups = (inputs + group_size - 1) / group_size;
  Tensor values = torch::stable::new_empty(weight, {outputs, inputs}, ScalarType::Byte);
  Tensor scales = torch::stable::new_empty(weight, {outputs, groups}, ScalarType::Float);
  for_type(weight, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = data<T>(weight);
    uint8_t* to = data<uint8_t>(values);
    float* by = data<float>(scales);
    parallel_for(0, outputs, 1 + 16384 / inputs, [&](int64_t begin, int64_t end) {
      vectorized([&]() LIGHTVLLM_BODY {
        for (int64_t n = begin; n < end; n++)
          for (int64_t g = 0; g < groups; g++) {
            const int64_t at = n * inputs + g * group_size;
            round_group(from + at, std::min(group_size, inputs - g * group_size), bits, to + at, by + n * groups + g);
          }
      });
    });
  });
  return {values, scales};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvllm, CPU, m) { m.impl("round_weight", TORCH_BOX(&round_weight)); }

}  // namespace lightvllm
