// What the kernels share: number types, vectors of 16 bytes, and sums over neighbouring threads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels.h"
#include "launch.h"

namespace lightvllm::cuda {

// As many neighbouring numbers as one load or store moves. Read and written whole, through a pointer.
template <class T, int WIDTH>
struct alignas(WIDTH * sizeof(T)) Vector {
  T at[WIDTH];
};

constexpr int VECTOR_BYTES = 16;  // the most that one instruction of a thread moves

template <class T>
constexpr int VECTOR_WIDTH = VECTOR_BYTES / int(sizeof(T));

template <int WIDTH, class T>
__device__ inline Vector<T, WIDTH> load(const T* from) { return *reinterpret_cast<const Vector<T, WIDTH>*>(from); }

// The same for what is read once: it takes no room in the first cache from what is read again.
template <int WIDTH, class T>
__device__ inline Vector<T, WIDTH> load_once(const T* from) {
  if constexpr (WIDTH * sizeof(T) == VECTOR_BYTES) {
    uint4 x;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from));
    return *reinterpret_cast<const Vector<T, WIDTH>*>(&x);
  }
  return load<WIDTH>(from);
}

template <class T, int WIDTH>
__device__ inline void store(T* to, const Vector<T, WIDTH>& vector) { *reinterpret_cast<Vector<T, WIDTH>*>(to) = vector; }

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(int8_t x) { return float(x); }

// To the nearest number of the type, ties to even.
template <class T>
__device__ inline T narrow(float x);
template <>
__device__ inline float narrow(float x) { return x; }
template <>
__device__ inline __half narrow(float x) { return __float2half_rn(x); }
template <>
__device__ inline __nv_bfloat16 narrow(float x) { return __float2bfloat16_rn(x); }

// The sum over `threads` neighbours, a power of two up to 32, in each of them. All 32 threads of the warp take part.
__device__ inline float sum_of_neighbours(float x, int threads) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2)
    if (offset < threads) x += __shfl_xor_sync(0xffffffff, x, offset);
  return x;
}

// The smallest power of two that is not below x.
inline int power_of_two(int64_t x) {
  int power = 1;
  while (power < x) power *= 2;
  return power;
}

template <class Number>
__host__ __device__ constexpr Number ceil_div(Number a, Number b) { return (a + b - 1) / b; }

// Whether 16-byte vectors start wherever these byte offsets or addresses do.
inline bool are_aligned(std::initializer_list<int64_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](int64_t offset) { return offset % VECTOR_BYTES == 0; });
}

inline int64_t address(const void* pointer) { return int64_t(reinterpret_cast<uintptr_t>(pointer)); }

inline bool are_aligned(const Heads& x, int64_t element_size) {
  return are_aligned({address(x.data), x.size * element_size, x.token_stride * element_size, x.head_stride * element_size});
}

// Calls body with a zero of the type.
template <class Body>
cudaError_t for_type(Type type, Body&& body) {
  switch (type) {
    case Type::FLOAT: return body(float{});
    case Type::HALF: return body(__half{});
    case Type::BFLOAT16: return body(__nv_bfloat16{});
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace lightvllm::cuda
