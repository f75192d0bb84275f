// The kernels of csrc/ on the emulated machine, with the arguments of csrc/api.h on host memory.
// In place of the stream comes the seed of the threads' order.
#include "cross_entropy.cuh"
#include "ring.cuh"

using emulated::launch;

extern "C" {

// `cluster` of 0 takes the plan's; `clusters` run, each for every so many rows.
void rows(uint16_t* logits, int64_t stride, const int64_t* labels, const float* weights,
          float z_loss, float* max, float* lse, float* target, int64_t count, int64_t columns,
          int cluster, int clusters, unsigned seed) {
  Plan plan = plan_rows(columns);
  if (cluster) plan = {cluster, static_cast<int>(round_up(ceil_div(columns, cluster), kVector))};
  const Rows all{logits, stride, labels, count, columns};
  launch([&] { rows_kernel(all, weights, z_loss, {max, lse, target}, plan.slice); },
         int64_t(clusters) * plan.cluster, kThreads, plan.cluster, rows_shared_bytes(plan), seed);
}

void statistics(uint16_t* logits, int64_t stride, const int64_t* labels, float* max, float* sumexp,
                float* target, int64_t count, int64_t columns, unsigned seed) {
  const Rows all{logits, stride, labels, count, columns};
  launch([&] { statistics_kernel(all, max, sumexp, target); }, count, kThreads, 1,
         kWarps * sizeof(Statistics), seed);
}

void gradient(uint16_t* logits, int64_t stride, const int64_t* labels, const float* weights,
              const float* lse, float z_loss, int64_t count, int64_t columns, unsigned seed) {
  const Rows all{logits, stride, labels, count, columns};
  launch([&] { gradient_kernel(all, weights, lse, z_loss); },
         count * gradient_blocks_per_row(columns), kThreads, 1, 0, seed);
}

void merge(float* out, float* lse, int64_t lse_stride, const void* new_out, const float* new_lse,
           int half, int64_t tokens, int64_t heads, int64_t dim, unsigned seed) {
  const auto run = [&](auto* fresh) {
    launch([=] { merge_kernel(out, lse, lse_stride, fresh, new_lse, tokens, heads,
                              static_cast<int>(dim)); },
           merge_blocks(tokens, heads), kRingThreads, 1, kMergeTokens * sizeof(MergeWeights), seed);
  };
  half ? run(static_cast<const uint16_t*>(new_out)) : run(static_cast<const float*>(new_out));
}

void accumulate(float* accumulator, const void* gradient, int half, int64_t count, unsigned seed) {
  const auto run = [&](auto* values) {
    launch([=] { accumulate_kernel(accumulator, values, count); }, accumulate_blocks(count),
           kRingThreads, 1, 0, seed);
  };
  half ? run(static_cast<const uint16_t*>(gradient)) : run(static_cast<const float*>(gradient));
}

void permute(const void* source, const int64_t* index, void* destination, int64_t source_rows,
             int64_t rows, int64_t row_bytes, unsigned seed) {
  launch([=] { permute_kernel(static_cast<const uint16_t*>(source), index,
                              static_cast<uint16_t*>(destination), source_rows, rows,
                              static_cast<int>(row_bytes / 2)); },
         ceil_div(rows, kRowsPerBlock), kRingThreads, 1, 0, seed);
}

// Why the last kernel was stopped, or null.
const char* failure() { return emulated::machine.failure; }

int plan(int64_t columns, int* slice, int* shared_bytes) {
  const Plan plan = plan_rows(columns);
  *slice = plan.slice;
  *shared_bytes = rows_shared_bytes(plan);
  return plan.cluster;
}

int width(uint64_t source, uint64_t destination, uint64_t row_bytes) {
  return copy_width(source, destination, row_bytes);
}

}
