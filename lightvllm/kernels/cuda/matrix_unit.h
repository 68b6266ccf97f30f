// What the kernels for few rows share: small products on the matrix units, numbers in two bytes, sums over a warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace lightvllm::cuda {
namespace {

template <typename T>
__device__ T narrow(float value);
template <>
__device__ float narrow(float value) { return value; }
template <>
__device__ __half narrow(float value) { return __float2half_rn(value); }
template <>
__device__ __nv_bfloat16 narrow(float value) { return __float2bfloat16_rn(value); }

__device__ float warp_sum(float value) {
  for (int step = 16; step; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

__device__ float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// Two numbers in four bytes, the first in the lower two.
template <typename T>
__device__ uint32_t pack(float first, float second) {
  const T pair[2] = {narrow<T>(first), narrow<T>(second)};
  return *reinterpret_cast<const uint32_t*>(pair);
}

// Both are asked for once and kept: read again, as the compiler likes to, each costs more than a sum.
__device__ uint32_t shared_address(const void* pointer) {
  uint32_t address;
  asm volatile("{\n.reg .u64 full;\ncvta.to.shared.u64 full, %1;\ncvt.u32.u64 %0, full;\n}" : "=r"(address) : "l"(pointer));
  return address;
}

__device__ int thread_of_block() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Products of two pairs of numbers, each rounded.
__device__ uint32_t times(__nv_bfloat16, uint32_t a, uint32_t b) {
  const __nv_bfloat162 c = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&c);
}

__device__ uint32_t times(__half, uint32_t a, uint32_t b) {
  const __half2 c = __hmul2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&c);
}

// sum += a b for 16 x 16 and 16 x 8 numbers; which of them a lane holds: PTX ISA, mma.m16n8k16. Since sm_80.
__device__ void multiply(float (&sum)[4], __nv_bfloat16, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ void multiply(float (&sum)[4], __half, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace
}  // namespace lightvllm::cuda
