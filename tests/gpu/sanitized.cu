// Calls every kernel at awkward sizes on allocations that end where they must, for
// compute-sanitizer. Without torch, so that nothing else is watched. What the kernels compute is
// the concern of test_cuda_kernels.py.
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "api.h"

namespace {

void must(int error, const char* what) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "%s: %s\n", what, emu3_error(error));
  exit(1);
}

// Device memory with something in it; it is never freed.
template <class Value>
Value* on_device(const std::vector<Value>& values) {
  void* memory = nullptr;
  const size_t bytes = values.size() * sizeof(Value);
  must(cudaMalloc(&memory, bytes), "cudaMalloc");
  must(cudaMemcpy(memory, values.data(), bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  return static_cast<Value*>(memory);
}

float* floats(int64_t count) { return on_device(std::vector<float>(count, 0.5f)); }

void done(const char* what) {
  must(cudaDeviceSynchronize(), what);
  printf("%s\n", what);
}

void cross_entropy(int64_t rows, int64_t columns) {
  const int64_t stride = (columns + 127) / 128 * 128, last = (columns + 7) / 8 * 8;
  std::vector<emu3_half> values((rows - 1) * stride + last);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0x3c00 + i * 7 % 2048;  // 1 to 4
  std::vector<int64_t> labels(rows);
  for (int64_t i = 0; i < rows; ++i) labels[i] = i % 5 ? columns - 1 - i % columns : -100;

  emu3_half* logits = on_device(values);
  const int64_t* label = on_device(labels);
  float *weights = floats(rows), *max = floats(rows), *lse = floats(rows), *target = floats(rows);
  must(emu3_cross_entropy_statistics(logits, stride, label, max, lse, target, rows, columns,
                                     nullptr), "statistics");
  must(emu3_cross_entropy_rows(logits, stride, label, weights, 1e-3f, max, lse, target, rows,
                               columns, nullptr), "rows");
  must(emu3_cross_entropy_gradient(logits, stride, label, weights, lse, 1e-3f, rows, columns,
                                   nullptr), "gradient");
  done("cross entropy");
}

void ring(int64_t tokens, int64_t heads, int64_t dim, int half) {
  const int64_t count = tokens * heads * dim;
  float* fp32 = floats(count);
  const void* fresh =
      half ? static_cast<void*>(on_device(std::vector<uint16_t>(count, 0x3f80))) : floats(count);
  must(emu3_merge_attention(fp32, floats(heads * tokens), tokens, fresh, floats(heads * tokens),
                            half, tokens, heads, dim, nullptr), "merge");
  must(emu3_accumulate(fp32, fresh, half, count, nullptr), "accumulate");
  std::vector<int64_t> index(tokens);
  for (int64_t i = 0; i < tokens; ++i) index[i] = tokens - 1 - i;
  must(emu3_permute_tokens(fresh, on_device(index), floats(count), tokens, tokens,
                           heads * dim * (half ? 2 : 4), nullptr), "permute");
  done("ring");
}

}  // namespace

int main() {
  cross_entropy(1, 1);
  cross_entropy(7, 17);
  cross_entropy(300, 1000);    // clusters of one block, several rows each
  cross_entropy(150, 30001);   // of two
  cross_entropy(70, 184622);   // of eight
  cross_entropy(20, 250001);   // of sixteen
  ring(1, 1, 4, 0);
  ring(33, 3, 20, 1);
  ring(301, 2, 128, 0);
  ring(301, 2, 128, 1);
}
