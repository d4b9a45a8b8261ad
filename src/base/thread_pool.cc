// Dispatch: the caller publishes a function and raises an epoch that the workers watch. A waiting thread first spins
// with pause, after a while also with sched_yield (another thread may want the core), then sleeps in a futex. Who
// raises a value and who goes to sleep on it meet through `sleepers` in sequentially consistent order, so that no
// wake-up is lost.
#include "base/thread_pool.h"

#include <fmt/core.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/topology.h"

namespace still {

namespace {
void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A value that threads wait on.
struct alignas(64) Signal {
  std::atomic<std::uint32_t> value{0};
  std::atomic<std::uint32_t> sleepers{0};

  void raise(std::uint32_t next) {
    value.store(next, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst) > 0) wake();
  }
  void wake() { ::syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }
  void sleep_while(std::uint32_t seen) {
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    while (value.load(std::memory_order_seq_cst) == seen) {
      ::syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    }
    sleepers.fetch_sub(1, std::memory_order_relaxed);
  }
};

// How long a thread waits in each way: pausing, then also yielding, then asleep. Who yields to a busy machine's other
// work, of however low a priority, loses the core for milliseconds, hundreds of regions' worth; so the usual wait for a
// team's slower thread is shorter than the first part.
struct Patience {
  std::chrono::microseconds pausing, total;
};

// Spins until done() holds or the time is over; true: done() holds.
template <class Done>
bool spin_until(Done&& done, const Patience& patience) {
  constexpr int kPausesBeforeClock = 200;  // some microseconds
  for (int i = 0; i < kPausesBeforeClock; ++i) {
    if (done()) return true;
    pause_cpu();
  }
  const auto begin = std::chrono::steady_clock::now();
  while (!done()) {
    for (int i = 0; i < 20 && !done(); ++i) pause_cpu();
    const auto waited = std::chrono::steady_clock::now() - begin;
    if (waited > patience.total) return done();
    if (waited > patience.pausing) ::sched_yield();
  }
  return true;
}

// Cores' worth of time that a control group allows; a large number where none limits. Version 2 keeps "quota period" or
// "max period" in cpu.max of each level, version 1 two files.
double cgroup_quota() {
  double quota = 1e9;
  const auto read_v2 = [&](const std::string& folder) {
    std::ifstream file(folder + "/cpu.max");
    std::string amount;
    double period = 0;
    if (file >> amount >> period && amount != "max" && period > 0)
      quota = std::min(quota, std::atof(amount.c_str()) / period);
  };
  const auto read_v1 = [&](const std::string& folder) {
    double amount = 0, period = 0;
    if (std::ifstream(folder + "/cpu.cfs_quota_us") >> amount &&
        std::ifstream(folder + "/cpu.cfs_period_us") >> period && amount > 0 && period > 0) {
      quota = std::min(quota, amount / period);
    }
  };
  const auto each_level = [](const std::string& root, std::string path, const auto& read) {
    for (;;) {
      read(root + path);
      const std::size_t slash = path.rfind('/');
      if (path.empty() || slash == std::string::npos) return;
      path.resize(slash);
    }
  };
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    const std::string path = line.substr(second + 1) == "/" ? "" : line.substr(second + 1);
    if (controllers == ",,") each_level("/sys/fs/cgroup", path, read_v2);
    if (controllers.find(",cpu,") != std::string::npos) {
      each_level("/sys/fs/cgroup/cpu", path, read_v1);
      each_level("/sys/fs/cgroup/cpu,cpuacct", path, read_v1);
    }
  }
  return quota;
}
}  // namespace

int usable_cores() {
  const int cores = std::max(1, CpuTopology::machine().n_cores());
  const double quota = cgroup_quota();
  return quota >= cores ? cores : std::max(1, static_cast<int>(std::floor(quota + 0.01)));
}

struct ThreadPool::State {
  Signal epoch;    // raised for each region
  Signal running;  // workers still in the region
  alignas(64) Function function = nullptr;
  void* context = nullptr;
  bool stop = false;
  int n_threads = 1;
  Patience patience{};
  alignas(64) std::atomic<std::uint32_t> barrier_round{0};
  alignas(64) std::atomic<int> barrier_arrived{0};
  alignas(64) std::atomic<std::int64_t> task{0};
  std::vector<std::thread> workers;
  std::vector<ThreadPlace> places;         // by thread
  std::vector<std::pair<int, int>> nodes;  // threads of each node

  const ThreadPlace& place(int thread_idx) const { return places[static_cast<std::size_t>(thread_idx)]; }

  // On several nodes the caller, too, must be where its share of the memory is. On one it stays free.
  void bind_caller() const {
    if (nodes.size() < 2 || places[0].cpus.empty()) return;
    thread_local std::vector<int> bound;
    if (bound == places[0].cpus) return;
    bound = places[0].cpus;
    bind_thread(bound);
  }

  void work(int thread_idx) {
    std::uint32_t seen = 0;
    for (;;) {
      const auto raised = [&] { return epoch.value.load(std::memory_order_acquire) != seen; };
      if (!spin_until(raised, patience)) epoch.sleep_while(seen);
      ++seen;
      if (stop) return;
      function(context, thread_idx);
      if (running.value.fetch_sub(1, std::memory_order_seq_cst) == 1 &&
          running.sleepers.load(std::memory_order_seq_cst) > 0) {
        running.wake();
      }
    }
  }

  void wait_for_workers() {
    const auto done = [&] { return running.value.load(std::memory_order_acquire) == 0; };
    if (spin_until(done, patience)) return;
    running.sleepers.fetch_add(1, std::memory_order_seq_cst);
    for (std::uint32_t left = running.value.load(std::memory_order_seq_cst); left != 0;
         left = running.value.load(std::memory_order_seq_cst)) {
      ::syscall(SYS_futex, &running.value, FUTEX_WAIT_PRIVATE, left, nullptr, nullptr, 0);
    }
    running.sleepers.fetch_sub(1, std::memory_order_relaxed);
  }
};

ThreadPool::ThreadPool(const Options& options) : state_(std::make_unique<State>()) {
  const int cores = usable_cores();
  state_->n_threads = options.n_threads > 0 ? options.n_threads : cores;
  // A team larger than the machine waits for threads that wait for its cores.
  state_->patience.pausing = std::chrono::microseconds(state_->n_threads <= cores ? 50 : 0);
  state_->patience.total = std::chrono::microseconds(options.spin_us);
  state_->places =
      place_threads(options.topology != nullptr ? *options.topology : CpuTopology::machine(), state_->n_threads);
  for (int i = 0; i < state_->n_threads; ++i) {
    const bool is_first = i == 0 || state_->place(i).node != state_->place(i - 1).node;
    if (is_first) state_->nodes.emplace_back(i, i);
    state_->nodes.back().second = i + 1;
  }
  if (!options.pin)
    for (ThreadPlace& place : state_->places) place.cpus.clear();
  for (int i = 1; i < state_->n_threads; ++i) {
    state_->workers.emplace_back([state = state_.get(), i] {
      bind_thread(state->place(i).cpus);
      state->work(i);
    });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop = true;
  state_->epoch.raise(state_->epoch.value.load(std::memory_order_relaxed) + 1);
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::size() const {
  return state_->n_threads;
}

int ThreadPool::n_nodes() const {
  return static_cast<int>(state_->nodes.size());
}
int ThreadPool::node_of(int thread_idx) const {
  int node = 0;
  while (thread_idx >= state_->nodes[static_cast<std::size_t>(node)].second) ++node;
  return node;
}
std::pair<int, int> ThreadPool::node_threads(int node) const {
  return state_->nodes[static_cast<std::size_t>(node)];
}

void ThreadPool::run_erased(Function function, void* context) {
  if (state_->n_threads == 1) {
    function(context, 0);
    return;
  }
  state_->bind_caller();
  state_->function = function;
  state_->context = context;
  state_->running.value.store(static_cast<std::uint32_t>(state_->n_threads - 1), std::memory_order_relaxed);
  state_->epoch.raise(state_->epoch.value.load(std::memory_order_relaxed) + 1);
  function(context, 0);
  state_->wait_for_workers();
}

void ThreadPool::barrier() {
  if (state_->n_threads == 1) return;
  const std::uint32_t round = state_->barrier_round.load(std::memory_order_acquire);
  if (state_->barrier_arrived.fetch_add(1, std::memory_order_acq_rel) == state_->n_threads - 1) {
    state_->barrier_arrived.store(0, std::memory_order_relaxed);
    state_->barrier_round.store(round + 1, std::memory_order_release);
    return;
  }
  const auto passed = [&] { return state_->barrier_round.load(std::memory_order_acquire) != round; };
  while (!spin_until(passed, state_->patience)) {
  }
}

void ThreadPool::reset_tasks() {
  state_->task.store(0, std::memory_order_relaxed);
}
std::int64_t ThreadPool::next_task() {
  return state_->task.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace still
