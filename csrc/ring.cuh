// What a ring of context-parallel ranks does between its attention calls, for attention kernels
// that cannot do it themselves: merge a partial result, add up gradients, gather tokens.
#pragma once
#include "softmax.cuh"

constexpr int kRingThreads = 256;

// Four values in a row, of fp32 or of bf16.
struct Four {
  float values[4];
};

DEVICE Four load_four(const float* from) {
  const Vector vector = *reinterpret_cast<const Vector*>(from);
  Four four;
#pragma unroll
  for (int i = 0; i < 4; ++i) four.values[i] = float_of(vector.words[i]);
  return four;
}

DEVICE Four load_four(const uint16_t* from) {
  struct alignas(8) Half {
    uint32_t words[2];
  };
  const Half half = *reinterpret_cast<const Half*>(from);
  return {{low_bf16(half.words[0]), high_bf16(half.words[0]), low_bf16(half.words[1]),
           high_bf16(half.words[1])}};
}

DEVICE void store_four(float* to, const Four& four) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = bits_of(four.values[i]);
  store_16(to, words);
}

DEVICE float load_one(const float* from) { return *from; }
DEVICE float load_one(const uint16_t* from) { return low_bf16(*from); }

// out = keep x out + take x new_out; a weight of 0 takes nothing, not even NaN.
struct MergeWeights {
  float lse, keep, take;
};

HOST_DEVICE MergeWeights merge_weights(float lse, float new_lse) {
  if (new_lse == -INFINITY) return {lse, 1.0f, 0.0f};
  const float max = fmaxf(lse, new_lse);
  const float keep = exp2_fast((lse - max) * kLog2E), take = exp2_fast((new_lse - max) * kLog2E);
  const float sum = keep + take;
  return {max + logf(sum), keep / sum, take / sum};
}

constexpr int kMergeTokens = 32;  // of one head, that a block merges: lse is read side by side

HOST_DEVICE int64_t merge_blocks(int64_t tokens, int64_t heads) {
  return ceil_div(tokens, kMergeTokens) * heads;
}

template <class Value>
__global__ void __launch_bounds__(kRingThreads)
    merge_kernel(float* out, float* lse, int64_t lse_stride, const Value* new_out,
                 const float* new_lse, int64_t tokens, int64_t heads, int dim) {
  MergeWeights* weights = reinterpret_cast<MergeWeights*>(shared_memory());
  const int64_t head = block_index() % heads;
  const int64_t first = block_index() / heads * kMergeTokens;
  const int count = static_cast<int>(tokens - first < kMergeTokens ? tokens - first : kMergeTokens);
  if (thread_index() < count) {
    const int64_t token = first + thread_index();
    float* const running = lse + head * lse_stride + token;
    weights[thread_index()] = merge_weights(*running, new_lse[head * tokens + token]);
    *running = weights[thread_index()].lse;
  }
  block_barrier();
  const int fours = dim / 4;
  for (int i = thread_index(); i < count * fours; i += kRingThreads) {
    const int token = i / fours;
    const MergeWeights weight = weights[token];
    if (weight.take == 0.0f) continue;
    const int64_t at = ((first + token) * heads + head) * dim + i % fours * 4;
    const Four fresh = load_four(new_out + at);
    Four kept = load_four(out + at);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float old = weight.keep == 0.0f ? 0.0f : weight.keep * kept.values[k];
      kept.values[k] = fmaf(weight.take, fresh.values[k], old);
    }
    store_four(out + at, kept);
  }
}

constexpr int kFoursPerThread = 4;

HOST_DEVICE int64_t accumulate_blocks(int64_t count) {
  return ceil_div(ceil_div(count, 4), kFoursPerThread * kRingThreads);
}

template <class Value>
__global__ void __launch_bounds__(kRingThreads)
    accumulate_kernel(float* accumulator, const Value* gradient, int64_t count) {
  const int64_t first = block_index() * kFoursPerThread * kRingThreads + thread_index();
#pragma unroll
  for (int k = 0; k < kFoursPerThread; ++k) {
    const int64_t at = (first + k * kRingThreads) * 4;
    if (at + 4 <= count) {
      Four sum = load_four(accumulator + at);
      const Four more = load_four(gradient + at);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.values[i] += more.values[i];
      store_four(accumulator + at, sum);
    } else {
#pragma unroll 1
      for (int64_t i = at; i < count; ++i) accumulator[i] += load_one(gradient + i);
    }
  }
}

constexpr int kRowsPerBlock = 8;  // so that narrow rows, too, keep all threads at work

// The widest word, of 16 bytes at most, in which rows can be copied.
HOST_DEVICE int copy_width(uint64_t source, uint64_t destination, uint64_t row_bytes) {
  int width = 16;
  while ((source | destination | row_bytes) % width) width /= 2;
  return width;
}

// Rows of so many words; a row that the source lacks is a fault of the caller.
template <class Word>
__global__ void __launch_bounds__(kRingThreads)
    permute_kernel(const Word* source, const int64_t* index, Word* destination,
                   int64_t source_rows, int64_t rows, int words) {
  const int64_t first = block_index() * kRowsPerBlock;
  const int count = static_cast<int>(rows - first < kRowsPerBlock ? rows - first : kRowsPerBlock);
  for (int i = thread_index(); i < count * words; i += kRingThreads) {
    const int64_t row = first + i / words;
    const int64_t from = index[row];
    if (from < 0 || from >= source_rows) return stop_device();
    destination[row * words + i % words] = source[from * words + i % words];
  }
}
