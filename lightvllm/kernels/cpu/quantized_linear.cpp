// Matrix products with 8- and 4-bit weights: inputs are rounded to 8 bits, a scale for each group of a row's, products and
// sums are of integers, and each group is scaled back on its own.
// Reference twin: lightvllm/kernels/reference.py:quantized_linear; test: tests/kernels/test_quantized_linear.py.
//
// Weights are unsigned integers q with a zero point z and a scale s for each output and group of inputs: w = s (q - z).
// So sum(w x) = s t (sum(q p) - z sum(p)) with the inputs x = t p: the zero point costs one product a group, and the dot
// products of unsigned by signed bytes that processors have are exact. Values of 4 bits may be indices of the q in a
// codebook. As in linear.cpp nothing depends on the batch.
//
// Layout: panels of 64 outputs; four neighbouring inputs (a quad) of all its outputs lie together, as one byte each, or
// as two quads in the low and high half of the bytes.
#include <memory>
#include <vector>

#include "quantized_panels.h"

namespace lightvllm {
namespace {

typedef int8_t i8x16 __attribute__((vector_size(16)));

// op(.., op(x[0], x[1])) of all lanes, in some order.
template <class Op>
LIGHTVLLM_INLINE int32_t fold(i32x16 x, const Op& op) {
  const auto a = op(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7), __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
  const auto b = op(__builtin_shufflevector(a, a, 0, 1, 2, 3), __builtin_shufflevector(a, a, 4, 5, 6, 7));
  return op(op(b[0], b[2]), op(b[1], b[3]));
}

// `count` inputs that share a scale -> their values; a NaN or infinity makes the scale one.
template <class T>
LIGHTVLLM_INLINE void round_group(const T* x, int64_t count, int8_t* values, float* scale, int32_t* sum) {
  const int64_t whole = count / LANES * LANES, rest = count - whole;
  T last[LANES] = {};
  if (rest) std::memcpy(last, x + whole, rest * sizeof(T));
  auto larger = [](auto a, auto b) LIGHTVLLM_BODY { return a > b ? a : b; };
  i32x16 largest = (i32x16)load(last) & 0x7fffffff;  // of positive numbers the bits are in order, and a NaN's above all
  for (int64_t i = 0; i < whole; i += LANES) largest = larger(largest, (i32x16)load(x + i) & 0x7fffffff);
  const float peak = __builtin_bit_cast(float, fold(largest, larger));
  const float inverse = peak > 1e-36f ? 127 / peak : 0;  // below, it would be infinite: such inputs count as zeros
  *scale = peak / 127;
  i32x16 total = {};
  auto round = [&](f32x16 v) LIGHTVLLM_BODY {
    // 1.5 * 2^23: adding it rounds, ties to even, and leaves the integer's bits
    const i32x16 rounded = (i32x16)(v * inverse + splat(12582912.0f)) << 24 >> 24;
    total += rounded;
    return __builtin_convertvector(rounded, i8x16);
  };
  for (int64_t i = 0; i < whole; i += LANES) {
    const i8x16 bytes = round(load(x + i));
    std::memcpy(values + i, &bytes, sizeof(bytes));
  }
  if (rest) {
    const i8x16 bytes = round(load(last));
    std::memcpy(values + whole, &bytes, rest);
  }
  *sum = fold(total, [](auto a, auto b) LIGHTVLLM_BODY { return a + b; });
}

// The input of a product, rounded.
struct RoundedInput {
  int64_t padded, groups;
  std::unique_ptr<int8_t[]> values;  // [rows, padded]
  std::unique_ptr<float[]> scales;   // [rows, groups]
  std::unique_ptr<int32_t[]> sums;   // [rows, groups]

  RoundedRows from_row(int64_t row) const { return {&values[row * padded], padded, &scales[row * groups], &sums[row * groups]}; }
};

template <class T>
RoundedInput round_input(const Tensor& x, int64_t padded, int64_t groups, int64_t group_size) {
  const int64_t rows = x.size(0), inputs = x.size(1), stride = x.stride(0);
  RoundedInput rounded = {padded, groups, std::unique_ptr<int8_t[]>(new int8_t[rows * padded]),
                          std::unique_ptr<float[]>(new float[rows * groups]), std::unique_ptr<int32_t[]>(new int32_t[rows * groups])};
  parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
    vectorized([&]() LIGHTVLLM_BODY {
      for (int64_t r = begin; r < end; r++) {
        const T* from = data<T>(x) + r * stride;
        int8_t* values = &rounded.values[r * padded];
        for (int64_t start = 0, g = r * groups; start < inputs; start += group_size, g++)
          round_group(from + start, std::min(group_size, inputs - start), values + start, &rounded.scales[g], &rounded.sums[g]);
        std::memset(values + inputs, 0, padded - inputs);
      }
    });
  });
  return rounded;
}

// ---- the ops

// weight: [outputs, inputs] uint8, of 4 bits below 16 -> [panels, quads or pairs of quads, PANEL, QUAD] uint8.
// Inputs are filled up with zeros to a multiple of QUAD, of 4 bits of two.
Tensor pack_quantized(Tensor weight, int64_t bits) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous(), "pack_quantized: weight must be a contiguous matrix");
  STD_TORCH_CHECK(bits == 8 || bits == 4, "pack_quantized: 4 or 8 bits");
  const int64_t outputs = weight.size(0), inputs = weight.size(1), panels = (outputs + PANEL - 1) / PANEL;
  const int64_t per_row = bits == 8 ? QUAD : 2 * QUAD, steps = (inputs + per_row - 1) / per_row;
  Tensor packed = empty_weight(weight, {panels, steps, PANEL, QUAD});
  const uint8_t* from = data<uint8_t>(weight);
  parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      uint8_t* to = data<uint8_t>(packed) + p * steps * PANEL * QUAD;
      std::memset(to, 0, steps * PANEL * QUAD);
      const int64_t count = std::min(PANEL, outputs - p * PANEL);
      for (int64_t s0 = 0; s0 < steps; s0 += 16) {
        const int64_t s1 = std::min(s0 + 16, steps);
        for (int64_t n = 0; n < count; n++) {
          const uint8_t* row = from + (p * PANEL + n) * inputs;
          int64_t s = s0;
          for (; s < s1 && (s + 1) * per_row <= inputs; s++) {
            uint32_t quads[2] = {};
            std::memcpy(quads, row + s * per_row, per_row);
            quads[0] |= quads[1] << 4;
            std::memcpy(to + (s * PANEL + n) * QUAD, quads, QUAD);
          }
          for (; s < s1; s++) {  // not a whole one
            uint8_t* quad = to + (s * PANEL + n) * QUAD;
            const int64_t start = s * per_row, present = std::min(per_row, inputs - start);
            for (int64_t i = 0; i < std::min(present, QUAD); i++) quad[i] = row[start + i];
            for (int64_t i = QUAD; i < present; i++) quad[i - QUAD] |= row[start + i] << 4;
          }
        }
      }
    }
  });
  return packed;
}

// groups: [outputs, groups] of four-byte numbers -> [panels, groups, PANEL], filled up with zeros
Tensor pack_groups(Tensor groups) {
  STD_TORCH_CHECK(groups.dim() == 2 && groups.is_contiguous() && groups.element_size() == 4, "pack_groups: float32 or int32");
  const int64_t outputs = groups.size(0), count = groups.size(1), panels = (outputs + PANEL - 1) / PANEL;
  Tensor packed = empty_weight(groups, {panels, count, PANEL});
  std::memset(packed.data_ptr(), 0, panels * count * PANEL * 4);
  for (int64_t n = 0; n < outputs; n++)
    for (int64_t g = 0; g < count; g++)
      data<uint32_t>(packed)[(n / PANEL * count + g) * PANEL + n % PANEL] = data<uint32_t>(groups)[n * count + g];
  return packed;
}

// x: [rows, inputs]; packed: see pack_quantized; scales: see pack_groups, float32; zeros: the same, int32, or none for
// 2^(bits - 1); codebook: [16] uint8, what 4-bit values stand for, or none; group_size: inputs that share a scale, a
// multiple of 8; bias: [outputs] -> [rows, outputs]
Tensor quantized_linear(Tensor x, Tensor packed, Tensor scales, std::optional<Tensor> zeros, std::optional<Tensor> codebook,
                        std::optional<Tensor> bias, int64_t bits, int64_t group_size, int64_t outputs) {
  const int64_t rows = x.size(0), inputs = x.size(1), panels = packed.size(0), steps = packed.size(1);
  const int64_t per_step = bits == 8 ? QUAD : 2 * QUAD, padded = steps * per_step, groups = scales.size(1);
  if (groups == 1) group_size = padded;
  STD_TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1, "quantized_linear: the inputs of a row must be neighbours");
  STD_TORCH_CHECK((inputs + per_step - 1) / per_step == steps, "quantized_linear: input and weight do not fit");
  STD_TORCH_CHECK(groups == 1 || (group_size % (2 * QUAD) == 0 && groups == (inputs + group_size - 1) / group_size),
                  "quantized_linear: groups and scales do not fit");
  STD_TORCH_CHECK(!codebook || (bits == 4 && codebook->is_contiguous() && codebook->numel() * codebook->element_size() == 16),
                  "quantized_linear: a codebook has 16 bytes, for 4 bits");
  Tensor y = torch::stable::new_empty(x, {rows, outputs});
  const QuantizedKernel kernel = quantized_kernel(rows, bits, codebook.has_value());
  const Panel first = {data<uint8_t>(packed), data<float>(scales), zeros ? data<int32_t>(*zeros) : nullptr,
                       bits == 8 || codebook ? 128 : 8, codebook ? data<uint8_t>(*codebook) : nullptr,
                       padded / QUAD, groups, group_size / QUAD};
  const int64_t panel_bytes = steps * PANEL * QUAD;
  for_type(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const RoundedInput rounded = round_input<T>(x, padded, groups, group_size);
    const T* offsets = bias ? data<T>(*bias) : nullptr;
    expect_next_of(packed.data_ptr(), panels, panel_bytes);
    parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      alignas(64) float sums[LONGEST_PASS * PANEL];
      static thread_local std::vector<uint8_t> wide;  // kept: a share comes in many stretches
      if (kernel.widen) wide.resize(padded * PANEL);
      for (int64_t p = begin; p < end; p++) {
        Panel panel = first;
        panel.values += p * panel_bytes;
        panel.scales += p * groups * PANEL;
        if (zeros) panel.zeros += p * groups * PANEL;
        const uint8_t* read = panel.values;
        if (kernel.widen) {
          kernel.widen(panel, wide.data());
          panel.values = wide.data();
        }
        for_row_blocks(rows, kernel.max_rows, read, panel_bytes, kernel.widen ? panel.quads : steps, [&](int64_t row, int64_t count, const Prefetch& ahead) {
          fetch_outputs(count, p, outputs, data<T>(y) + row * outputs);
          kernel.pass(count, rounded.from_row(row), panel, ahead, sums);
          store_sums(sums, count, p, outputs, offsets, data<T>(y) + row * outputs);
        });
      }
    });
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvllm, CPU, m) {
  m.impl("pack_quantized", TORCH_BOX(&pack_quantized));
  m.impl("pack_groups", TORCH_BOX(&pack_groups));
  m.impl("quantized_linear", TORCH_BOX(&quantized_linear));
}

}  // namespace lightvllm
