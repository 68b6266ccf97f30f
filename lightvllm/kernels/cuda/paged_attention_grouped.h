// 16 keys and values as tensor cores take them: what each thread of a warp loads, and how that becomes operands.
//
// In a product the order of what is summed is free, and so is that of a result's rows. Numbers are therefore taken as
// wide loads happen to leave them in registers. Thread (g, t) = (lane / 4, lane % 4) of a warp has
// - of keys g and g + 8, and of query head g, every fourth piece, beginning with piece t;
// - of values 2t, 2t + 1, 2t + 8 and 2t + 9 every eighth piece, beginning with piece g.
// A piece is 16 bytes, eight numbers, or in int8, where heads are no multiple of 16 bytes apart, four numbers.
#pragma once

#include "numbers.h"

namespace lightvllm::cuda {

constexpr uint32_t LOW_HALVES = 0x5410, HIGH_HALVES = 0x7632;  // which bytes of two registers __byte_perm takes

// The slots of a tile's keys are spread over the warp: lane i has that of key i % 16.
struct Slots {
  int slot;
  int64_t stride;  // elements from one slot's head to the next one's

  __device__ int64_t offset(int key) const { return __shfl_sync(0xffffffff, slot, key) * stride; }
};

// The cache has the queries' type T, or is int8; see the other below.
template <class T, class C, int SIZE>
struct Cached {
  static constexpr int KEY_PIECES = SIZE / 32, VALUE_PIECES = SIZE / 64;
  Vector<uint32_t, 4> keys[2][KEY_PIECES], values[4][VALUE_PIECES];

  __device__ void load_keys(const T* heads, const Slots& slots, int g, int t) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const T* head = heads + slots.offset(g + 8 * i) + 8 * t;
#pragma unroll
      for (int p = 0; p < KEY_PIECES; p++) keys[i][p] = load_once<4>(reinterpret_cast<const uint32_t*>(head + 32 * p));
    }
  }

  __device__ void load_values(const T* heads, const Slots& slots, int g, int t) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const T* head = heads + slots.offset(2 * t + i % 2 + i / 2 * 8) + 8 * g;
#pragma unroll
      for (int p = 0; p < VALUE_PIECES; p++) values[i][p] = load_once<4>(reinterpret_cast<const uint32_t*>(head + 64 * p));
    }
  }

  // Where the four numbers of a head begin that this thread brings to product `step` of queries and keys.
  static __device__ int key_place(int step, int t) { return 32 * (step / 2) + 8 * t + 4 * (step % 2); }
  // The first of the two numbers of a head that it gets of product `step` of weights and values.
  static __device__ int value_place(int step, int g) { return 64 * (step / 4) + 8 * g + 2 * (step % 4); }

  __device__ void key_operand(int step, uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = keys[i % 2][step / 2].at[2 * (step % 2) + i / 2];
  }

  __device__ void value_operand(int step, uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const uint32_t first = values[i][step / 4].at[step % 4], second = values[i + 1][step / 4].at[step % 4];
      a[i] = __byte_perm(first, second, LOW_HALVES), a[i + 1] = __byte_perm(first, second, HIGH_HALVES);
    }
  }

  // Of keys g and g + 8.
  __device__ float key_scale(int) const { return 1; }
  __device__ float value_scale(int) const { return 1; }
};

// Byte i of a word of int8, in a float whose upper half is the number in bfloat16: 2^23 + 128 + x, less 2^23 + 128.
__device__ inline uint32_t widened(uint32_t word, int i) {
  return __float_as_uint(__uint_as_float(__byte_perm(word ^ 0x80808080, 0x4b000000, 0x7540 + i)) - 8388736.0f);
}

// Bytes i and j of two words of int8 as two numbers of type T. In float16 likewise: 1024 + 128 + x, less 1024 + 128.
template <class T>
__device__ inline uint32_t widened_pair(uint32_t first, int i, uint32_t second, int j) {
  if constexpr (std::is_same_v<T, __half>) {
    const uint32_t bytes = __byte_perm(first ^ 0x80808080, second ^ 0x80808080, i | (4 + j) << 8);
    uint32_t pair = (bytes & 0x00ff00ff) | 0x64006400;
    const uint32_t offset = 0x64806480;
    asm("sub.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(offset));
    return pair;
  }
  return __byte_perm(widened(first, i), widened(second, j), HIGH_HALVES);
}

// An int8 cache: see round_heads of the reference.
template <class T, int SIZE>
struct Cached<T, int8_t, SIZE> {
  static constexpr int KEY_PIECES = SIZE / 16, VALUE_PIECES = SIZE / 32;
  uint32_t keys[2][KEY_PIECES], values[4][VALUE_PIECES];
  float key_scales[2], value_scales[2];

  __device__ void load_keys(const int8_t* heads, const Slots& slots, int g, int t) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int8_t* head = heads + slots.offset(g + 8 * i);
      key_scales[i] = *reinterpret_cast<const float*>(head + SIZE);
#pragma unroll
      for (int p = 0; p < KEY_PIECES; p++) keys[i][p] = *reinterpret_cast<const uint32_t*>(head + 16 * p + 4 * t);
    }
  }

  __device__ void load_values(const int8_t* heads, const Slots& slots, int g, int t) {
#pragma unroll
    for (int i = 0; i < 2; i++) value_scales[i] = *reinterpret_cast<const float*>(heads + slots.offset(g + 8 * i) + SIZE);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int8_t* head = heads + slots.offset(2 * t + i % 2 + i / 2 * 8);
#pragma unroll
      for (int p = 0; p < VALUE_PIECES; p++) values[i][p] = *reinterpret_cast<const uint32_t*>(head + 32 * p + 4 * g);
    }
  }

  static __device__ int key_place(int step, int t) { return 16 * step + 4 * t; }
  static __device__ int value_place(int step, int g) { return 32 * (step / 2) + 4 * g + 2 * (step % 2); }

  __device__ void key_operand(int step, uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t word = keys[i % 2][step];
      a[i] = widened_pair<T>(word, i / 2 * 2, word, i / 2 * 2 + 1);
    }
  }

  __device__ void value_operand(int step, uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int byte = step % 2 * 2 + i % 2;
      a[i] = widened_pair<T>(values[i / 2 * 2][step / 2], byte, values[i / 2 * 2 + 1][step / 2], byte);
    }
  }

  __device__ float key_scale(int i) const { return key_scales[i]; }
  __device__ float value_scale(int i) const { return value_scales[i]; }
};

}  // namespace lightvllm::cuda
