// Reads and writes sixteen bytes at a time: eight fp16 or bf16, or four fp32.
#pragma once
#include "machine.cuh"

struct alignas(16) Vector {
  uint32_t words[4];
};

constexpr int kVector = 8;  // 16-bit numbers in a Vector

union FloatBits {
  float value;
  uint32_t bits;
};

HOST_DEVICE float float_of(uint32_t bits) {
  FloatBits both;
  both.bits = bits;
  return both.value;
}

HOST_DEVICE uint32_t bits_of(float value) {
  FloatBits both;
  both.value = value;
  return both.bits;
}

// The two bf16 of a word as floats; bf16 is the upper half of an fp32.
HOST_DEVICE float low_bf16(uint32_t word) { return float_of(word << 16); }
HOST_DEVICE float high_bf16(uint32_t word) { return float_of(word & 0xffff0000u); }

// An fp16, from its bits.
HOST_DEVICE float value_of_half(uint16_t bits) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  const uint32_t sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
  if (rest >= 0x7c00u << 13) return float_of(sign | 0x7f800000u | rest);  // infinity or NaN
  // The exponent of fp32 counts from 127 and that of fp16 from 15; small numbers, too.
  return float_of(sign | bits_of(float_of(rest) * 0x1p112f));
#endif
}

HOST_DEVICE void unpack_half(const Vector& vector, float (&values)[kVector]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = value_of_half(static_cast<uint16_t>(vector.words[i]));
    values[2 * i + 1] = value_of_half(static_cast<uint16_t>(vector.words[i] >> 16));
  }
}

DEVICE Vector packed(const float (&values)[kVector]) {
  Vector vector;
#pragma unroll
  for (int i = 0; i < 4; ++i) vector.words[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
  return vector;
}

// Store the first `count` bf16 of a vector; the memory after them is somebody else's.
DEVICE void store_first(uint16_t* to, const Vector& vector, int count) {
  if (count >= kVector) {
    store_16(to, vector.words);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < count) to[i] = static_cast<uint16_t>(vector.words[i / 2] >> (i % 2 * 16));
  }
}

HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
HOST_DEVICE constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
