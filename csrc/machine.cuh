// The few operations of the chip that the kernels are written in. Here they are PTX of sm_90; the
// tests put tests/csrc/emulated_machine.h in their place and run the same kernels on the host.
#pragma once
#include <stdint.h>

#ifndef __CUDACC__
#include "emulated_machine.h"
#else

#define HOST_DEVICE __host__ __device__ __forceinline__
#define DEVICE __device__ __forceinline__

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int64_t block_index() { return blockIdx.x; }
DEVICE int64_t num_blocks() { return gridDim.x; }

DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

DEVICE void block_barrier() { __syncthreads(); }
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
DEVICE void stop_device() { __trap(); }

// Clusters: thread blocks that run at the same time and write into each other's shared memory.

DEVICE int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

DEVICE int cluster_size() {
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// All threads of the cluster; what any of them wrote before it, all of them see after it. It also
// waits for stores to global memory, so it has no place in a loop.
DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The same place in the shared memory of block `rank` of the cluster.
DEVICE uint32_t remote_address(const void* local, int rank) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(remote)
      : "r"(shared_address(local)), "r"(rank));
  return remote;
}

// An mbarrier that counts bytes which arrive by themselves. A phase begins with `expect` (its bytes
// may come earlier) and ends when all are there; phases alternate between 0 and 1.

using Arrivals = uint64_t;

DEVICE void init_arrivals(Arrivals* arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrivals)) : "memory");
}

// After the last init: makes them known to the cluster and to the copy engine.
DEVICE void publish_arrivals() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

DEVICE void expect(Arrivals* arrivals, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(arrivals)),
               "r"(bytes)
               : "memory");
}

// Wait for bytes that the copy engine brings to this block.
DEVICE void wait_for_copy(Arrivals* arrivals, int phase) {
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{ .reg .pred done;\n"
        "  mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "  selp.u32 %0, 1, 0, done; }"
        : "=r"(done)
        : "r"(shared_address(arrivals)), "r"(phase)
        : "memory");
  }
}

// Wait for bytes that other blocks of the cluster send.
DEVICE void wait_for_messages(Arrivals* arrivals, int phase) {
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{ .reg .pred done;\n"
        "  mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
        "  selp.u32 %0, 1, 0, done; }"
        : "=r"(done)
        : "r"(shared_address(arrivals)), "r"(phase)
        : "memory");
  }
}

// Copy a multiple of 16 bytes, more than none, from global to this block's shared memory.
DEVICE void start_copy(void* shared, const void* global, int bytes, Arrivals* arrivals) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(arrivals))
      : "memory");
}

// Send 16 bytes to where `local` lies in block `rank`, and count them in that block's `arrivals`.
DEVICE void send(float* local, int rank, const float (&values)[4], Arrivals* arrivals) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];"
      ::"r"(remote_address(local, rank)),
      "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]),
      "r"(remote_address(arrivals, rank))
      : "memory");
}

// One store of 16 bytes to global memory; from C++ the compiler may make four.
DEVICE void store_16(void* to, const uint32_t (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// Arithmetic that host and device spell differently.

HOST_DEVICE float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// Two floats to bf16, round to nearest even; `low` comes first in memory.
DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

#endif
