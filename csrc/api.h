// The kernels as plain C: pointers to device memory, sizes in elements, a CUDA stream. Each call
// returns a cudaError_t, allocates nothing and does not wait for the device. What the arguments
// mean is written down once, in kernels/cuda.py, which also checks them.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef uint16_t emu3_half;  // the bits of an fp16; of a bf16 in its place, once it is a gradient

int emu3_cross_entropy_rows(emu3_half* logits, int64_t stride, const int64_t* labels,
                            const float* weights, float z_loss, float* max, float* lse,
                            float* target, int64_t rows, int64_t columns, void* stream);

int emu3_cross_entropy_statistics(const emu3_half* logits, int64_t stride, const int64_t* labels,
                                  float* max, float* sumexp, float* target, int64_t rows,
                                  int64_t columns, void* stream);

int emu3_cross_entropy_gradient(emu3_half* logits, int64_t stride, const int64_t* labels,
                                const float* weights, const float* lse, float z_loss, int64_t rows,
                                int64_t columns, void* stream);

// `half` says that new_out (gradient, below) is bf16 and not fp32.
int emu3_merge_attention(float* out, float* lse, int64_t lse_stride, const void* new_out,
                         const float* new_lse, int half, int64_t tokens, int64_t heads, int64_t dim,
                         void* stream);

int emu3_accumulate(float* accumulator, const void* gradient, int half, int64_t count,
                    void* stream);

int emu3_permute_tokens(const void* source, const int64_t* index, void* destination,
                        int64_t source_rows, int64_t rows, int64_t row_bytes, void* stream);

const char* emu3_error(int error);

#ifdef __cplusplus
}
#endif
