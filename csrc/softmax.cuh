// The arithmetic of a softmax in pieces: statistics of some columns of a row, merged in any
// grouping, and the gradient of a row whose log-sum-exp is known. Logits are fp16. Exponentials are
// powers of two.
#pragma once
#include <math.h>

#include "vector.cuh"

constexpr float kLog2E = 1.4426950408889634f;

// Of some columns: the largest logit, and the sum of exp(logit - largest). Of none: -inf and 0.
struct Statistics {
  float max = -INFINITY;
  float sum = 0.0f;
};

// The sum of exp(logit - max) if `max` is at least the statistics' own.
HOST_DEVICE float sum_below(const Statistics& statistics, float max) {
  if (max == -INFINITY) return 0.0f;
  return statistics.sum * exp2_fast((statistics.max - max) * kLog2E);
}

// Take in the first `count` logits of a vector.
HOST_DEVICE void add(Statistics& statistics, const Vector& vector, int count) {
  float x[kVector];
  unpack_half(vector, x);
  if (count < kVector) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] = i < count ? x[i] : -INFINITY;
  }
  float max = statistics.max;
#pragma unroll
  for (int i = 0; i < kVector; ++i) max = fmaxf(max, x[i]);
  if (max > statistics.max) statistics = {max, sum_below(statistics, max)};
  const float shift = max == -INFINITY ? 0.0f : max * kLog2E;
#pragma unroll
  for (int i = 0; i < kVector; ++i) x[i] = exp2_fast(fmaf(x[i], kLog2E, -shift));
  statistics.sum += ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

// The gradient of weight x (lse - target + z_loss x lse^2) by the logits of a row.
struct Gradient {
  float lse_log2;  // lse in powers of two
  float softmax;   // the factor of the softmax: weight x (1 + 2 z_loss lse)
  float target;    // what the label's column has less: weight
  int64_t label;   // a column, or anything outside the row

  HOST_DEVICE Gradient(float lse, float weight, float z_loss, int64_t label)
      : lse_log2(lse * kLog2E),
        softmax(weight * (1.0f + 2.0f * z_loss * lse)),
        target(weight),
        label(label) {}
};

// Of the eight logits from `column` on, in bf16.
DEVICE Vector gradient_of(const Vector& logits, int64_t column, const Gradient& row) {
  float x[kVector];
  unpack_half(logits, x);
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    x[i] = row.softmax * exp2_fast(fmaf(x[i], kLog2E, -row.lse_log2));
  if (row.label >= column && row.label < column + kVector) {
    const int at = static_cast<int>(row.label - column);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] -= i == at ? row.target : 0.0f;
  }
  return packed(x);
}
