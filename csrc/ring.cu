// The kernels of ring.cuh behind the C interface of api.h: launches.

#include "ring.cuh"

#include "api.h"
#include "launch.cuh"

namespace {

template <class Value>
int merge(float* out, float* lse, int64_t lse_stride, const void* new_out, const float* new_lse,
          int64_t tokens, int64_t heads, int64_t dim, void* stream) {
  return launch(merge_kernel<Value>, merge_blocks(tokens, heads), kRingThreads,
                kMergeTokens * sizeof(MergeWeights), stream, out, lse, lse_stride,
                static_cast<const Value*>(new_out), new_lse, tokens, heads,
                static_cast<int>(dim));
}

template <class Value>
int accumulate(float* accumulator, const void* gradient, int64_t count, void* stream) {
  return launch(accumulate_kernel<Value>, accumulate_blocks(count), kRingThreads, 0, stream,
                accumulator, static_cast<const Value*>(gradient), count);
}

template <class Word>
int permute(const void* source, const int64_t* index, void* destination, int64_t source_rows,
            int64_t rows, int64_t row_bytes, void* stream) {
  return launch(permute_kernel<Word>, ceil_div(rows, kRowsPerBlock), kRingThreads, 0, stream,
                static_cast<const Word*>(source), index, static_cast<Word*>(destination),
                source_rows, rows, static_cast<int>(row_bytes / static_cast<int64_t>(sizeof(Word))));
}

}  // namespace

extern "C" int emu3_merge_attention(float* out, float* lse, int64_t lse_stride,
                                    const void* new_out, const float* new_lse, int half,
                                    int64_t tokens, int64_t heads, int64_t dim, void* stream) {
  if (tokens == 0 || heads == 0) return cudaSuccess;
  return (half ? merge<uint16_t> : merge<float>)(out, lse, lse_stride, new_out, new_lse, tokens,
                                                 heads, dim, stream);
}

extern "C" int emu3_accumulate(float* accumulator, const void* gradient, int half, int64_t count,
                               void* stream) {
  if (count == 0) return cudaSuccess;
  return (half ? accumulate<uint16_t> : accumulate<float>)(accumulator, gradient, count, stream);
}

extern "C" int emu3_permute_tokens(const void* source, const int64_t* index, void* destination,
                                   int64_t source_rows, int64_t rows, int64_t row_bytes,
                                   void* stream) {
  if (rows == 0 || row_bytes == 0) return cudaSuccess;
  if (row_bytes * kRowsPerBlock > INT32_MAX) return cudaErrorInvalidValue;
  const int width = copy_width(reinterpret_cast<uint64_t>(source),
                               reinterpret_cast<uint64_t>(destination),
                               static_cast<uint64_t>(row_bytes));
  const auto copy = width == 16  ? permute<Vector>
                    : width == 8 ? permute<uint64_t>
                    : width == 4 ? permute<uint32_t>
                    : width == 2 ? permute<uint16_t>
                                 : permute<uint8_t>;
  return copy(source, index, destination, source_rows, rows, row_bytes, stream);
}
