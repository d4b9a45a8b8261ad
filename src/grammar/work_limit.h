// WorkLimit: how long the grammar engine may work on one thing. Its code knows no limits of its own, and a small
// grammar can ask for hours; cmake/xgrammar_hooks.h makes it look here every now and then. Standard library only, for
// it is compiled into both.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>

namespace still {

struct WorkLimit {
  std::chrono::steady_clock::time_point deadline;
  const std::atomic<bool>* is_stopped = nullptr;  // may be null
};

class WorkLimitReached : public std::exception {
 public:
  const char* what() const noexcept override { return "takes too long"; }
};

// Of this thread; null: none.
inline thread_local const WorkLimit* current_work_limit = nullptr;
inline thread_local unsigned n_work_checks = 0;

class WorkLimitScope {
 public:
  explicit WorkLimitScope(const WorkLimit* limit) : outer_(current_work_limit) { current_work_limit = limit; }
  WorkLimitScope(const WorkLimitScope&) = delete;
  WorkLimitScope& operator=(const WorkLimitScope&) = delete;
  ~WorkLimitScope() { current_work_limit = outer_; }

 private:
  const WorkLimit* outer_;
};

inline void check_work_limit_now() {
  const WorkLimit* limit = current_work_limit;
  if (limit == nullptr) return;
  const bool is_stopped = limit->is_stopped != nullptr && limit->is_stopped->load(std::memory_order_relaxed);
  if (is_stopped || std::chrono::steady_clock::now() > limit->deadline) throw WorkLimitReached();
}

// For inner loops: reads the clock at every 256th call.
inline void check_work_limit() {
  if (current_work_limit != nullptr && (++n_work_checks & 255) == 0) check_work_limit_now();
}

}  // namespace still
