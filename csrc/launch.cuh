// Launches a kernel and returns CUDA's error.
#pragma once
#include <cuda_runtime_api.h>

template <class... Arguments>
int launch(void (*kernel)(Arguments...), int64_t blocks, int threads, int shared_bytes,
           void* stream, Arguments... arguments) {
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes,
           static_cast<cudaStream_t>(stream)>>>(arguments...);
  return cudaGetLastError();
}
