// The cross-entropy kernels behind the C interface of api.h: launch shapes and launches.

#include "api.h"
#include "cross_entropy.cuh"
#include "launch.cuh"

namespace {

// Up to 16 blocks in a cluster, and as much shared memory as the plan needs.
cudaError_t allow(const Plan& plan) {
  const cudaError_t error = cudaFuncSetAttribute(
      rows_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, rows_shared_bytes(plan));
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(rows_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

}  // namespace

extern "C" int emu3_cross_entropy_rows(emu3_half* logits, int64_t stride, const int64_t* labels,
                                       const float* weights, float z_loss, float* max, float* lse,
                                       float* target, int64_t rows, int64_t columns,
                                       void* stream) {
  if (rows == 0) return cudaSuccess;
  const Plan plan = plan_rows(columns);
  if (plan.cluster == 0) return cudaErrorInvalidValue;
  cudaError_t error = allow(plan);
  if (error != cudaSuccess) return error;

  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = {static_cast<unsigned>(plan.cluster), 1, 1};
  config.blockDim = {kThreads, 1, 1};
  config.dynamicSmemBytes = rows_shared_bytes(plan);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = 1;

  // As many clusters as the device runs at once; each goes on to further rows.
  int clusters = 0;
  error = cudaOccupancyMaxActiveClusters(&clusters, rows_kernel, &config);
  if (error != cudaSuccess) return error;
  if (clusters == 0) return cudaErrorInvalidConfiguration;
  config.gridDim.x *= static_cast<unsigned>(rows < clusters ? rows : clusters);
  return cudaLaunchKernelEx(&config, rows_kernel, Rows{logits, stride, labels, rows, columns},
                            weights, z_loss, RowsOutputs{max, lse, target}, plan.slice);
}

extern "C" int emu3_cross_entropy_statistics(const emu3_half* logits, int64_t stride,
                                             const int64_t* labels, float* max, float* sumexp,
                                             float* target, int64_t rows, int64_t columns,
                                             void* stream) {
  if (rows == 0) return cudaSuccess;
  const Rows all{const_cast<emu3_half*>(logits), stride, labels, rows, columns};
  return launch(statistics_kernel, rows, kThreads, kWarps * sizeof(Statistics), stream, all, max,
                sumexp, target);
}

extern "C" int emu3_cross_entropy_gradient(emu3_half* logits, int64_t stride,
                                           const int64_t* labels, const float* weights,
                                           const float* lse, float z_loss, int64_t rows,
                                           int64_t columns, void* stream) {
  if (rows == 0 || columns == 0) return cudaSuccess;
  const Rows all{logits, stride, labels, rows, columns};
  return launch(gradient_kernel, rows * gradient_blocks_per_row(columns), kThreads, 0, stream, all,
                weights, lse, z_loss);
}

extern "C" const char* emu3_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
