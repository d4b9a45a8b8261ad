// A fixed team of threads for short parallel regions: the caller is thread 0, the others spin for a while, then sleep.
// Not thread-safe: one owner runs regions one after the other.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

namespace still {

struct CpuTopology;  // base/topology.h

class ThreadPool {
 public:
  struct Options {
    int n_threads = 0;                      // 0: the physical cores this process may use
    bool pin = true;                        // one core per thread where the system allows it
    int spin_us = 200;                      // how long an idle thread spins before it sleeps
    const CpuTopology* topology = nullptr;  // null: this machine's
  };
  explicit ThreadPool(const Options& options);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;
  // NUMA nodes that the team lies on, and their threads [begin, end): a node's follow one another.
  int n_nodes() const;
  int node_of(int thread_idx) const;
  std::pair<int, int> node_threads(int node) const;
  // Of n things in a row those that the threads of a node take, so that who first touches memory and who reads it
  // later are near to it. With one node all.
  std::pair<std::int64_t, std::int64_t> node_share(std::int64_t n, int node) const {
    const auto [begin, end] = node_threads(node);
    return {n * begin / size(), n * end / size()};
  }

  // Runs body(thread_idx) on every thread, 0 <= thread_idx < size(), and returns when all are done.
  template <class Body>
  void run(Body&& body) {
    run_erased(
        [](void* context, int thread_idx) { (*static_cast<std::remove_reference_t<Body>*>(context))(thread_idx); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
  // Inside run(): waits until every thread has come here.
  void barrier();

  // Runs body(task_idx) for 0 <= task_idx < n_tasks, handed out one by one in order.
  template <class Body>
  void for_each(std::int64_t n_tasks, Body&& body) {
    reset_tasks();
    run([&](int) {
      for (std::int64_t task = next_task(); task < n_tasks; task = next_task()) body(task);
    });
  }

 private:
  using Function = void (*)(void* context, int thread_idx);
  void run_erased(Function function, void* context);
  void reset_tasks();
  std::int64_t next_task();

  struct State;
  std::unique_ptr<State> state_;
};

// The physical cores that this process may use (affinity and cgroup quota considered), at least 1.
int usable_cores();

}  // namespace still
