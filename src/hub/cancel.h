// CancelToken: how a caller (Ctrl-C, a server request that went away) asks a long transfer to stop.
// Copies share one flag; cancel() only stores to a lock-free atomic, so a signal handler may call it.
#pragma once

#include <atomic>
#include <memory>

namespace still {

class CancelToken {
 public:
  CancelToken() : flag_(std::make_shared<std::atomic<bool>>(false)) {}
  void cancel() const { flag_->store(true, std::memory_order_relaxed); }
  bool is_cancelled() const { return flag_->load(std::memory_order_relaxed); }

 private:
  static_assert(std::atomic<bool>::is_always_lock_free);
  std::shared_ptr<std::atomic<bool>> flag_;
};

}  // namespace still
