// Read before every source file of the target xgrammar (cmake/xgrammar.cmake): its checks for debugging, which stand in
// all loops that matter, become checks of the time it may take (src/grammar/work_limit.h), and its thread pool is one
// whose threads have the limit of the thread that made it and give up together.
#pragma once

#include "../src/grammar/work_limit.h"
#include "support/logging.h"

#undef XGRAMMAR_DCHECK
#define XGRAMMAR_DCHECK(condition) \
  for (::still::check_work_limit(); false;) XGRAMMAR_ICHECK(condition)

#define XGRAMMAR_SUPPORT_THREAD_POOL_H_

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <queue>
#include <thread>
#include <vector>

namespace xgrammar {

class ThreadPool {
 public:
  explicit ThreadPool(std::size_t n_threads) : limit_(::still::current_work_limit) {
    for (std::size_t i = 0; i < n_threads; ++i) threads_.emplace_back([this] { Run(); });
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() { End(); }

  void Execute(std::function<void()> task) {
    // The caller goes on finding tasks while they are done.
    ::still::check_work_limit_now();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push(std::move(task));
    }
    changed_.notify_one();
  }

  // Waits until all is done; the first exception of a task is thrown here, and what had not begun by then is left out.
  void Join() {
    End();
    if (problem_) std::rethrow_exception(problem_);
  }

 private:
  void Run() {
    const ::still::WorkLimitScope scope(limit_);
    while (true) {
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return is_ended_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop();
        if (problem_) continue;
      }
      try {
        ::still::check_work_limit_now();
        task();
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!problem_) problem_ = std::current_exception();
      }
    }
  }

  void End() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_ended_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  const ::still::WorkLimit* limit_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::queue<std::function<void()>> tasks_;
  bool is_ended_ = false;
  std::exception_ptr problem_;
  std::vector<std::thread> threads_;
};

}  // namespace xgrammar
