// How a cluster of thread blocks shares the columns of a row.
#pragma once
#include "vector.cuh"

// Two rows' slices of two blocks fit the 228 KB of a multiprocessor.
constexpr int kMaxSlice = 28672;
constexpr int kMaxCluster = 16;

struct Plan {
  int cluster;  // blocks that share a row; 0 if no cluster can hold it
  int slice;    // columns that each of them holds, whole vectors
};

// The smallest cluster that holds rows of so many columns. It has two blocks at least: a launch of
// one block is no cluster to the chip's checks, which refuse its messages to itself.
HOST_DEVICE Plan plan_rows(int64_t columns) {
  for (int cluster = 2; cluster <= kMaxCluster; cluster *= 2) {
    const int64_t slice = round_up(ceil_div(columns, cluster), kVector);
    if (slice <= kMaxSlice) return {cluster, static_cast<int>(slice)};
  }
  return {0, 0};
}

// The columns of one block: from `begin`, `count` of them; the last blocks may have none.
struct Slice {
  int64_t begin;
  int count;

  HOST_DEVICE Slice(int64_t columns, int slice, int rank) : begin(int64_t(rank) * slice) {
    const int64_t left = columns - begin;
    count = static_cast<int>(left < 0 ? 0 : left < slice ? left : slice);
  }

  HOST_DEVICE int vectors() const { return static_cast<int>(ceil_div(count, kVector)); }
};
