// The machine of csrc/machine.cuh on a host: every CUDA thread is a coroutine, and all threads of
// a cluster take turns in an order drawn from a seed, warps sleeping now and then. Barriers,
// shuffles and copies block as they do on the chip, copies arrive late, shared memory starts as
// NaN. A kernel that lacks a barrier gives different results for different seeds; one that waits
// for what never comes fails.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#define HOST_DEVICE inline
#define DEVICE inline
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

namespace emulated {

struct Meeting {  // a barrier among a fixed number of threads
  int arrived = 0;
  int64_t generation = 0;
};

// As an mbarrier: a phase ends when it has begun and no bytes are awaited.
struct Arrivals {
  int32_t awaited;
  int16_t begun, phases;

  void settle() {
    if (begun && awaited == 0) begun = 0, ++phases;
  }
};

struct Transfer {
  char* to;
  std::vector<char> sent;  // a message's bytes; a copy reads its source when it is carried out
  const char* from;
  int bytes;
  Arrivals* arrivals;
};

struct Thread {
  ucontext_t start;
  jmp_buf here;
  int index, rank;
  bool started = false, done = false;
  std::function<bool()> ready;
};

struct Machine {
  std::vector<Thread> threads;
  std::vector<char> stacks;
  std::vector<std::vector<char>> shared;  // of each block of the cluster
  std::vector<Meeting> blocks, warps;
  Meeting cluster;
  std::vector<float> lanes;  // what each thread offers in a shuffle
  std::vector<Transfer> transfers;
  std::mt19937 random;
  jmp_buf scheduler;
  Thread* current = nullptr;
  const char* failure = nullptr;  // why the kernel was stopped
  std::function<void()> kernel;
  int threads_per_block, cluster_size;
  int64_t first_block, num_blocks;
};

inline Machine machine;

constexpr int kStack = 48 * 1024, kGuard = 256;
constexpr char kPoison = '\xff';  // bytes of NaN

inline void give_way() {
  if (_setjmp(machine.current->here) == 0) _longjmp(machine.scheduler, 1);
}

// The launch ends here.
inline void fail(const char* why) {
  machine.failure = why;
  if (machine.current) give_way();
}

inline void wait_until(std::function<bool()> ready) {
  machine.current->ready = std::move(ready);
  give_way();
}

inline void meet(Meeting& meeting, int size) {
  const int64_t generation = meeting.generation;
  if (++meeting.arrived == size) {
    meeting.arrived = 0;
    ++meeting.generation;
  }
  wait_until([&meeting, generation] { return meeting.generation != generation; });
}

inline void run_thread() {
  machine.kernel();
  machine.current->done = true;
  give_way();
}

inline void resume(Thread& thread) {
  machine.current = &thread;
  if (_setjmp(machine.scheduler) != 0) {
    machine.current = nullptr;
    return;
  }
  if (thread.started) _longjmp(thread.here, 1);
  thread.started = true;
  setcontext(&thread.start);
}

inline void finish_a_transfer() {
  const size_t chosen = machine.random() % machine.transfers.size();
  const Transfer transfer = machine.transfers[chosen];
  machine.transfers.erase(machine.transfers.begin() + chosen);
  memcpy(transfer.to, transfer.from ? transfer.from : transfer.sent.data(), transfer.bytes);
  transfer.arrivals->awaited -= transfer.bytes;
  transfer.arrivals->settle();
}

// Let every thread that can go on do so, but for warps that happen to sleep; false if none can.
inline bool take_turns(std::vector<int>& order) {
  bool possible = false;
  std::shuffle(order.begin(), order.end(), machine.random);
  std::vector<char> asleep(order.size() / 32 + 1);
  for (char& warp : asleep) warp = machine.random() % 2;
  for (int i : order) {
    Thread& thread = machine.threads[i];
    if (thread.done || (thread.ready && !thread.ready())) continue;
    possible = true;
    if (asleep[i / 32]) continue;
    thread.ready = nullptr;
    resume(thread);
    if (machine.failure) break;
    if (!machine.transfers.empty() && machine.random() % 64 == 0) finish_a_transfer();
  }
  return possible;
}

// Run the threads of one cluster to their end.
inline void run_cluster() {
  std::vector<int> order(machine.threads.size());
  std::iota(order.begin(), order.end(), 0);
  const auto is_done = [](const Thread& thread) { return thread.done; };
  while (!machine.failure) {
    if (take_turns(order)) continue;
    if (std::all_of(machine.threads.begin(), machine.threads.end(), is_done)) break;
    if (machine.transfers.empty()) return fail("deadlock");
    finish_a_transfer();
  }
  if (!machine.transfers.empty()) fail("a block ended before what was sent to it arrived");
}

inline void prepare_threads() {
  const int count = machine.threads_per_block * machine.cluster_size;
  machine.threads = std::vector<Thread>(count);
  machine.stacks.resize(size_t(count) * kStack);
  for (int i = 0; i < count; ++i) {
    Thread& thread = machine.threads[i];
    thread.index = i % machine.threads_per_block;
    thread.rank = i / machine.threads_per_block;
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = machine.stacks.data() + size_t(i) * kStack;
    thread.start.uc_stack.ss_size = kStack;
    makecontext(&thread.start, run_thread, 0);
  }
}

// Run a kernel over a grid, a cluster at a time.
inline void launch(std::function<void()> kernel, int64_t blocks, int threads, int cluster,
                   size_t shared_bytes, unsigned seed) {
  machine.random.seed(seed);
  machine.failure = nullptr;
  machine.transfers.clear();
  machine.kernel = std::move(kernel);
  machine.threads_per_block = threads;
  machine.cluster_size = cluster;
  machine.num_blocks = blocks;
  for (machine.first_block = 0; machine.first_block < blocks; machine.first_block += cluster) {
    const std::vector<char> fresh(shared_bytes + kGuard, kPoison);
    machine.shared.assign(cluster, fresh);
    machine.blocks.assign(cluster, {});
    machine.warps.assign(cluster * threads / 32, {});
    machine.lanes.assign(cluster * threads, 0.0f);
    machine.cluster = {};
    prepare_threads();
    run_cluster();
    if (machine.failure) return;
    for (const auto& memory : machine.shared) {
      if (!std::equal(memory.begin() + shared_bytes, memory.end(), fresh.begin()))
        return fail("a write past the end of shared memory");
    }
  }
}

}  // namespace emulated

inline int thread_index() { return emulated::machine.current->index; }
inline int cluster_rank() { return emulated::machine.current->rank; }
inline int cluster_size() { return emulated::machine.cluster_size; }
inline int64_t block_index() { return emulated::machine.first_block + cluster_rank(); }
inline int64_t num_blocks() { return emulated::machine.num_blocks; }
inline char* shared_memory() {
  // Aligned as on the chip; the allocator gives 16 bytes, and nothing here needs more.
  return emulated::machine.shared[cluster_rank()].data();
}
inline void stop_device() { emulated::fail("the kernel stopped the device"); }

inline void block_barrier() {
  emulated::meet(emulated::machine.blocks[cluster_rank()], emulated::machine.threads_per_block);
}

inline void cluster_barrier() {
  emulated::meet(emulated::machine.cluster, emulated::machine.threads.size());
}

inline float shuffle_xor(float value, int mask) {
  auto& machine = emulated::machine;
  const int thread = cluster_rank() * machine.threads_per_block + thread_index();
  auto& warp = machine.warps[thread / 32];
  machine.lanes[thread] = value;
  emulated::meet(warp, 32);
  const float other = machine.lanes[thread ^ mask];
  emulated::meet(warp, 32);
  return other;
}

using emulated::Arrivals;

inline void init_arrivals(Arrivals* arrivals) { *arrivals = {}; }
inline void publish_arrivals() {}
inline void expect(Arrivals* arrivals, int bytes) {
  if (arrivals->begun) emulated::fail("a phase that has begun begins again");
  arrivals->begun = 1;
  arrivals->awaited += bytes;
  arrivals->settle();
}
inline void wait_for_copy(Arrivals* arrivals, int phase) {
  emulated::wait_until([=] { return arrivals->phases % 2 != phase; });
}
inline void wait_for_messages(Arrivals* arrivals, int phase) { wait_for_copy(arrivals, phase); }

inline void start_copy(void* shared, const void* global, int bytes, Arrivals* arrivals) {
  if (bytes <= 0 || bytes % 16 || reinterpret_cast<uint64_t>(shared) % 16 ||
      reinterpret_cast<uint64_t>(global) % 16)
    emulated::fail("a bulk copy that is not of whole 16 bytes");
  emulated::machine.transfers.push_back(
      {static_cast<char*>(shared), {}, static_cast<const char*>(global), bytes, arrivals});
}

template <class Value>
Value* remote(Value* local, int rank) {
  const int64_t offset = reinterpret_cast<char*>(local) - shared_memory();
  return reinterpret_cast<Value*>(emulated::machine.shared[rank].data() + offset);
}

inline void send(float* local, int rank, const float (&values)[4], Arrivals* arrivals) {
  const char* bytes = reinterpret_cast<const char*>(values);
  emulated::machine.transfers.push_back({reinterpret_cast<char*>(remote(local, rank)),
                                         {bytes, bytes + 16}, nullptr, 16,
                                         remote(arrivals, rank)});
}

inline void store_16(void* to, const uint32_t (&words)[4]) {
  if (reinterpret_cast<uint64_t>(to) % 16) emulated::fail("a store that is not aligned");
  memcpy(to, words, 16);
}

inline float exp2_fast(float x) { return exp2f(x); }

inline uint32_t round_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack_bf16(float low, float high) {
  return round_to_bf16(low) | round_to_bf16(high) << 16;
}
