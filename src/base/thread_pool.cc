// Dispatch: the caller publishes a function and raises an epoch that the workers watch. A waiting thread first spins
// with pause, then with sched_yield (another thread may want the core), then sleeps in a futex. Who raises a value and
// who goes to sleep on it meet through `sleepers` in sequentially consistent order, so that no wake-up is lost.
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
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"

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

// Spins until done() holds or the time is over; true: done() holds.
template <class Done>
bool spin_until(Done&& done, std::chrono::microseconds limit) {
  constexpr int kPausesBeforeYield = 200;  // some microseconds
  for (int i = 0; i < kPausesBeforeYield; ++i) {
    if (done()) return true;
    pause_cpu();
  }
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!done()) {
    for (int i = 0; i < 20 && !done(); ++i) pause_cpu();
    ::sched_yield();
    if (std::chrono::steady_clock::now() > end) return done();
  }
  return true;
}

// Logical CPUs of this process, one of each physical core.
std::vector<int> usable_core_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  std::set<std::string> seen;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &set)) continue;
    std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = fmt::format("cpu {}", cpu);
    if (seen.insert(siblings).second) cpus.push_back(cpu);
  }
  return cpus;
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

void pin_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  ::sched_setaffinity(0, sizeof(set), &set);  // refused by the system: the thread stays where the scheduler puts it
}
}  // namespace

int usable_cores() {
  const int cores = std::max<int>(1, static_cast<int>(usable_core_cpus().size()));
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
  std::chrono::microseconds spin{200};
  alignas(64) std::atomic<std::uint32_t> barrier_round{0};
  alignas(64) std::atomic<int> barrier_arrived{0};
  alignas(64) std::atomic<std::int64_t> task{0};
  std::vector<std::thread> workers;

  void work(int thread_idx) {
    std::uint32_t seen = 0;
    for (;;) {
      const auto raised = [&] { return epoch.value.load(std::memory_order_acquire) != seen; };
      if (!spin_until(raised, spin)) epoch.sleep_while(seen);
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
    if (spin_until(done, spin)) return;
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
  state_->spin = std::chrono::microseconds(options.spin_us);
  // A team smaller than the machine is left to the scheduler: pinned, two processes could share cores beside idle ones.
  const std::vector<int> cpus = usable_core_cpus();
  const bool pin = options.pin && state_->n_threads > 1 && state_->n_threads == static_cast<int>(cpus.size());
  for (int i = 1; i < state_->n_threads; ++i) {
    state_->workers.emplace_back([state = state_.get(), i, cpu = pin ? cpus[static_cast<std::size_t>(i)] : -1] {
      if (cpu >= 0) pin_to(cpu);
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

void ThreadPool::run_erased(Function function, void* context) {
  if (state_->n_threads == 1) {
    function(context, 0);
    return;
  }
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
  while (!spin_until(passed, state_->spin)) {
  }
}

void ThreadPool::reset_tasks() {
  state_->task.store(0, std::memory_order_relaxed);
}
std::int64_t ThreadPool::next_task() {
  return state_->task.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace still
