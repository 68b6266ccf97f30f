// What the CPU kernels share: sixteen-lane vectors, number types, and the choice of instruction set at run time.
//
// A kernel is written once, over vectors of sixteen floats that the compiler lowers to whatever registers there are;
// `vectorized` compiles it once per instruction set and runs the one in use. Every sum runs in an order fixed by the
// data's own position, so a result depends neither on the batch, nor on the number of threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "team.h"

#define LIGHTVLLM_INLINE __attribute__((always_inline)) inline
#define LIGHTVLLM_BODY __attribute__((always_inline))  // of a lambda

namespace lightvllm {

using torch::stable::Tensor;

constexpr int64_t LANES = 16;
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

// The instruction sets that kernels are compiled for, each with all before it; ISAS in kernels/isa.py.
// AVX512VNNI is AVX-512 with BF16 and VNNI: the processors that have one of the two have both, but for Cascade Lake, Ice
// Lake and their like, which run as AVX512. AMX is that with the tiles of BF16 and int8.
enum class Isa : int64_t { PLAIN, AVX2, AVX512, AVX512VNNI, AMX };

// Whether the processor has AMX and the system lets this process use it: tiles' 8 KiB of state are to be asked for.
inline bool may_use_amx() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr int REQUEST_STATE = 0x1023, TILES = 18;  // ARCH_REQ_XCOMP_PERM of <asm/prctl.h>, the state's number
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-int8") &&
         syscall(SYS_arch_prctl, REQUEST_STATE, TILES) == 0;
#else
  return false;
#endif
}

// The best that the processor has.
inline Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) {
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return Isa::AVX512;
    return may_use_amx() ? Isa::AMX : Isa::AVX512VNNI;
  }
  if (__builtin_cpu_supports("x86-64-v3")) return Isa::AVX2;
#endif
  return Isa::PLAIN;
}

// What all kernels of the process use; see isa.cpp.
inline std::atomic<Isa> isa_in_use{best_isa()};

inline Isa isa() { return isa_in_use.load(std::memory_order_relaxed); }

#if defined(__x86_64__)
template <class F>
__attribute__((target("arch=x86-64-v4"))) void run_avx512(const F& f) { f(); }

template <class F>
__attribute__((target("arch=x86-64-v3"))) void run_avx2(const F& f) { f(); }
#endif

// Runs f(), a lambda marked LIGHTVLLM_BODY, compiled for the instruction set in use. (GCC's target_clones, in its place,
// knows only the best one, and takes comparisons of vectors apart into single numbers.)
template <class F>
void vectorized(const F& f) {
#if defined(__x86_64__)
  if (isa() >= Isa::AVX512) return run_avx512(f);
  if (isa() >= Isa::AVX2) return run_avx2(f);
#endif
  f();
}

// The same for a lambda that takes the number of floats in a register: f.template operator()<SIZE>().
template <class F>
void vectorized_by_size(const F& f) {
#if defined(__x86_64__)
  if (isa() >= Isa::AVX512) return run_avx512([&]() LIGHTVLLM_BODY { f.template operator()<16>(); });
  if (isa() >= Isa::AVX2) return run_avx2([&]() LIGHTVLLM_BODY { f.template operator()<8>(); });
#endif
  f.template operator()<4>();
}

struct bf16 {
  uint16_t bits;
};

LIGHTVLLM_INLINE float to_float(float x) { return x; }

LIGHTVLLM_INLINE float to_float(bf16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }

LIGHTVLLM_INLINE void store_one(float* to, float x) { *to = x; }

LIGHTVLLM_INLINE void store_one(bf16* to, float x) {
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  to->bits = uint16_t(x != x ? 0x7fc0 : rounded);
}

LIGHTVLLM_INLINE f32x16 load(const float* from) {
  f32x16 x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

LIGHTVLLM_INLINE f32x16 load(const bf16* from) {
  u16x16 x;
  std::memcpy(&x, from, sizeof(x));
  return (f32x16)(__builtin_convertvector(x, u32x16) << 16);
}

LIGHTVLLM_INLINE void store(float* to, f32x16 x) { std::memcpy(to, &x, sizeof(x)); }

LIGHTVLLM_INLINE void store(bf16* to, f32x16 x) {
  u32x16 bits = (u32x16)x;
  u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  u16x16 result = __builtin_convertvector(x != x ? u32x16{} + 0x7fc0 : rounded, u16x16);
  std::memcpy(to, &result, sizeof(result));
}

LIGHTVLLM_INLINE f32x16 splat(float x) { return f32x16{} + x; }

LIGHTVLLM_INLINE float sum(f32x16 x) {
  typedef float f32x8 __attribute__((vector_size(32)));
  typedef float f32x4 __attribute__((vector_size(16)));
  f32x8 a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  f32x4 b = __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}

LIGHTVLLM_INLINE f32x16 maximum(f32x16 a, f32x16 b) { return a > b ? a : b; }

// exp(x) to about 2 units in the last place; exact at 0; below -87 it stays at the smallest normal number.
// Cody and Waite's reduction to |r| <= ln(2) / 2, then a polynomial (Cephes' coefficients for expf).
LIGHTVLLM_INLINE f32x16 exp(f32x16 x) {
  x = x < splat(-87.0f) ? splat(-87.0f) : x;
  x = x > splat(88.0f) ? splat(88.0f) : x;
  const f32x16 shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  f32x16 n = (x * 1.44269504f + shift) - shift;
  f32x16 r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  f32x16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  i32x16 exponent = __builtin_convertvector(n, i32x16);
  return p * (f32x16)((exponent + 127) << 23);
}

// Calls f with a null pointer of the tensor's element type.
template <class F>
void for_type(const Tensor& tensor, const F& f) {
  using torch::headeronly::ScalarType;
  if (tensor.scalar_type() == ScalarType::Float) {
    f(static_cast<float*>(nullptr));
  } else {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::BFloat16, "expected float32 or bfloat16");
    f(static_cast<bf16*>(nullptr));
  }
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

}  // namespace lightvllm
