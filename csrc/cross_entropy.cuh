// Cross-entropy of rows of logits in fp16, and their gradient in place of them in bf16: logits take
// the bits that fp16 has more, and small gradients the exponents that bf16 has.
//
// `rows_kernel` reads a row once: a cluster of blocks holds it in shared memory. The statistics of
// its slices meet through distributed shared memory, and while a row is worked on, the copy engine
// brings the next. `statistics_kernel` and `gradient_kernel` are the same in two passes, for ranks
// that share a vocabulary and must exchange statistics between the two.
//
// Every sum is taken in a fixed order: a thread's vectors in steps of the block, lanes and warps
// and blocks by butterflies. Two runs are bit-equal.
#pragma once
#include "plan.cuh"
#include "softmax.cuh"

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

struct Rows {
  uint16_t* logits;  // fp16; then their gradient, bf16
  int64_t stride;    // from row to row, a multiple of kVector
  const int64_t* labels;
  int64_t rows;
  int64_t columns;

  HOST_DEVICE uint16_t* at(int64_t row, int64_t column) const {
    return logits + row * stride + column;
  }
  HOST_DEVICE bool is_column(int64_t label) const { return label >= 0 && label < columns; }
};

// Over groups of `width` lanes, a power of two; every lane gets its group's result.
DEVICE float sum_lanes(float value, int width) {
  for (int mask = width / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

DEVICE Statistics merge_lanes(const Statistics& mine, int width) {
  float max = mine.max;
  for (int mask = width / 2; mask > 0; mask /= 2) max = fmaxf(max, shuffle_xor(max, mask));
  return {max, sum_lanes(sum_below(mine, max), width)};
}

// Merge over the block; `warps` is shared memory for kWarps. The result is the first warp's alone.
DEVICE Statistics merge_block(const Statistics& mine, Statistics* warps) {
  const Statistics warp = merge_lanes(mine, 32);
  const int lane = thread_index() % 32;
  if (lane == 0) warps[thread_index() / 32] = warp;
  block_barrier();
  if (thread_index() >= 32) return {};
  return merge_lanes(warps[lane % kWarps], kWarps);
}

// What a block tells the others of its cluster about its slice of a row.
struct alignas(16) Message {
  float values[4];  // max, sum, target, nothing
};

struct RowsShared {
  Arrivals loaded[2];  // slices, by row parity
  Arrivals told[2];    // messages, by row parity
  Message messages[2][kMaxCluster];
  Statistics warps[kWarps];
};

constexpr int kRowsShared = (sizeof(RowsShared) + 127) / 128 * 128;  // then two slices of a row

HOST_DEVICE int rows_shared_bytes(const Plan& plan) {
  return kRowsShared + 2 * plan.slice * static_cast<int>(sizeof(uint16_t));
}

struct RowsOutputs {
  float* max;
  float* lse;
  float* target;
};

DEVICE Statistics statistics_of(const Vector* vectors, int columns) {
  Statistics statistics;
  for (int i = thread_index(); i * kVector < columns; i += kThreads)
    add(statistics, vectors[i], columns - i * kVector);
  return statistics;
}

// Ask for this block's slice of a row; one thread.
DEVICE void load_slice(const Rows& rows, int64_t row, const Slice& slice, Vector* to,
                       Arrivals* loaded) {
  const int bytes = slice.vectors() * static_cast<int>(sizeof(Vector));
  expect(loaded, bytes);
  if (bytes) start_copy(to, rows.at(row, slice.begin), bytes, loaded);
}

// Tell every block of the cluster about this one's slice; the first warp, which holds `mine`.
DEVICE void tell(RowsShared& shared, int stage, const Statistics& mine, float target) {
  const int size = cluster_size(), rank = cluster_rank();
  if (thread_index() == 0) expect(&shared.told[stage], size * static_cast<int>(sizeof(Message)));
  if (thread_index() < size)
    send(shared.messages[stage][rank].values, thread_index(), {mine.max, mine.sum, target, 0.0f},
         &shared.told[stage]);
}

__global__ void __launch_bounds__(kThreads, 2)
    rows_kernel(const __grid_constant__ Rows rows, const float* weights, float z_loss,
                const __grid_constant__ RowsOutputs outputs, int slice_columns) {
  RowsShared& shared = *reinterpret_cast<RowsShared*>(shared_memory());
  const int rank = cluster_rank(), size = cluster_size();
  const int64_t clusters = num_blocks() / size, first_row = block_index() / size;
  const Slice slice(rows.columns, slice_columns, rank);
  auto buffer = [&](int stage) {
    return reinterpret_cast<Vector*>(shared_memory() + kRowsShared) +
           stage * (slice_columns / kVector);
  };

  if (thread_index() == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      init_arrivals(&shared.loaded[stage]);
      init_arrivals(&shared.told[stage]);
    }
    publish_arrivals();
  }
  cluster_barrier();  // all blocks run, and may be written to
  for (int stage = 0; stage < 2; ++stage) {
    const int64_t row = first_row + stage * clusters;
    if (thread_index() == 0 && row < rows.rows)
      load_slice(rows, row, slice, buffer(stage), &shared.loaded[stage]);
  }

  int step = 0;
  for (int64_t row = first_row; row < rows.rows; row += clusters, ++step) {
    const int stage = step % 2, phase = step / 2 % 2;
    const int64_t label = rows.labels[row];
    const float weight = weights[row];
    const Vector* logits = buffer(stage);
    wait_for_copy(&shared.loaded[stage], phase);

    const Statistics mine = merge_block(statistics_of(logits, slice.count), shared.warps);
    if (thread_index() < 32) {
      const int64_t at = label - slice.begin;
      const bool here = at >= 0 && at < slice.count;
      const uint16_t* values = reinterpret_cast<const uint16_t*>(logits);
      tell(shared, stage, mine, here ? value_of_half(values[at]) : 0.0f);
    }
    // Two sets of messages are enough. A block sends those of row i + 2 when it has all of row
    // i + 1, and this block sent its own of row i + 1 after it had read those of row i.
    wait_for_messages(&shared.told[stage], phase);

    const float* message = shared.messages[stage][thread_index() & (size - 1)].values;
    const Statistics whole = merge_lanes({message[0], message[1]}, size);
    const float target = sum_lanes(message[2], size);
    const float lse = whole.max + logf(whole.sum);
    if (rank == 0 && thread_index() == 0) {
      outputs.max[row] = whole.max;
      outputs.lse[row] = lse;
      outputs.target[row] = target;
    }

    const Gradient gradient(lse, weight, z_loss, rows.is_column(label) ? label : -kVector);
    for (int i = thread_index(); i < slice.vectors(); i += kThreads) {
      const int64_t column = slice.begin + i * kVector;
      store_first(rows.at(row, column), gradient_of(logits[i], column, gradient),
                  slice.count - i * kVector);
    }
    block_barrier();  // nobody reads this buffer or these messages any more
    const int64_t next = row + 2 * clusters;
    if (thread_index() == 0 && next < rows.rows)
      load_slice(rows, next, slice, buffer(stage), &shared.loaded[stage]);
  }
}

constexpr int kUnroll = 4;  // loads of a thread that are under way together

// A block takes a row.
__global__ void __launch_bounds__(kThreads)
    statistics_kernel(const __grid_constant__ Rows rows, float* max, float* sumexp,
                      float* target) {
  Statistics* warps = reinterpret_cast<Statistics*>(shared_memory());
  const int64_t row = block_index();
  const Vector* logits = reinterpret_cast<const Vector*>(rows.at(row, 0));
  const int64_t vectors = ceil_div(rows.columns, kVector);

  Statistics statistics;
  for (int64_t first = thread_index(); first < vectors; first += kUnroll * kThreads) {
    Vector loaded[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k)
      if (first + k * kThreads < vectors) loaded[k] = logits[first + k * kThreads];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int64_t left = rows.columns - (first + k * kThreads) * kVector;
      if (left > 0) add(statistics, loaded[k], left < kVector ? static_cast<int>(left) : kVector);
    }
  }
  statistics = merge_block(statistics, warps);
  if (thread_index() != 0) return;
  const int64_t label = rows.labels[row];
  max[row] = statistics.max;
  sumexp[row] = statistics.sum;
  target[row] = rows.is_column(label) ? value_of_half(*rows.at(row, label)) : 0.0f;
}

HOST_DEVICE int64_t gradient_blocks_per_row(int64_t columns) {
  return ceil_div(columns, kUnroll * kThreads * kVector);
}

// A block takes kUnroll x kThreads vectors of a row.
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(const __grid_constant__ Rows rows, const float* weights, const float* lse,
                    float z_loss) {
  const int64_t blocks = gradient_blocks_per_row(rows.columns);
  const int64_t row = block_index() / blocks;
  const int64_t first = (block_index() % blocks) * kUnroll * kThreads + thread_index();
  const int64_t label = rows.labels[row];
  const Gradient gradient(lse[row], weights[row], z_loss,
                          rows.is_column(label) ? label : -kVector);
  Vector loaded[kUnroll];
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) {
    const int64_t column = (first + k * kThreads) * kVector;
    if (column < rows.columns)
      loaded[k] = *reinterpret_cast<const Vector*>(rows.at(row, column));
  }
#pragma unroll
  for (int k = 0; k < kUnroll; ++k) {
    const int64_t column = (first + k * kThreads) * kVector;
    const int64_t left = rows.columns - column;
    if (left > 0)
      store_first(rows.at(row, column), gradient_of(loaded[k], column, gradient),
                  left < kVector ? static_cast<int>(left) : kVector);
  }
}
