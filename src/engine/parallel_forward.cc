#include "engine/parallel_forward.h"

#include <atomic>
#include <chrono>
#include <thread>

namespace still {

namespace {
// A decode step comes every few milliseconds: a rank that slept would be late for it by the time it takes to wake.
constexpr std::chrono::milliseconds kSpin{20};

class ParallelForward : public ForwardPass {
 public:
  ParallelForward(std::vector<std::unique_ptr<ForwardPass>> ranks, std::unique_ptr<CudaGroup> group)
      : group_(std::move(group)), ranks_(std::move(ranks)) {
    for (std::size_t i = 1; i < ranks_.size(); ++i) workers_.push_back(std::make_unique<Worker>());
    for (std::size_t i = 1; i < ranks_.size(); ++i)
      workers_[i - 1]->thread = std::thread([this, i] { follow(*workers_[i - 1], *ranks_[i]); });
  }
  ~ParallelForward() override {
    is_stopping_ = true;
    raise();
    for (const auto& worker : workers_) worker->thread.join();
  }

  Result<float*> run(const RaggedBatch&) override { return error(Code::kInternal, "the logits are on GPUs"); }
  bool is_on_device() const override { return true; }

  // Ranks wait for one another on their devices, so after a failure of one of them nothing goes on.
  Status launch(const RaggedBatch& batch, std::span<const CudaSampleRow> draws) override {
    if (!lost_) return lost_;
    batch_ = &batch;
    draws_ = draws;
    const std::uint64_t step = raise();
    lost_ = ranks_[0]->launch(batch, draws);
    for (const auto& worker : workers_) {
      while (worker->done.load(std::memory_order_acquire) != step) std::this_thread::yield();
      if (lost_ && !worker->status) lost_ = worker->status;
    }
    if (lost_ && group_ != nullptr) lost_ = group_->status();
    return lost_;
  }
  // All ranks draw the same tokens from the same logits.
  Result<std::span<const TokenId>> collect() override {
    if (!lost_) return tl::unexpected(lost_.error());
    Result<std::span<const TokenId>> ids = ranks_[0]->collect();
    if (lost_ && !ids) lost_ = tl::unexpected(ids.error());
    for (std::size_t i = 1; i < ranks_.size(); ++i) {
      const Result<std::span<const TokenId>> others = ranks_[i]->collect();
      if (lost_ && !others) lost_ = tl::unexpected(others.error());
    }
    if (!lost_) return tl::unexpected(lost_.error());
    return ids;
  }
  void abandon() override {
    for (const auto& rank : ranks_) rank->abandon();
  }
  DeviceTimes device_times() const override { return ranks_[0]->device_times(); }
  Result<float*> fetch_row(std::int64_t row) override { return ranks_[0]->fetch_row(row); }

 private:
  struct Worker {
    std::thread thread;
    std::atomic<std::uint64_t> done{0};
    Status status;
  };

  std::uint64_t raise() {
    const std::uint64_t step = step_.load(std::memory_order_relaxed) + 1;
    step_.store(step, std::memory_order_release);
    step_.notify_all();
    return step;
  }

  void follow(Worker& worker, ForwardPass& rank) {
    std::uint64_t seen = 0;
    for (;;) {
      const auto asleep_at = std::chrono::steady_clock::now() + kSpin;
      while (step_.load(std::memory_order_acquire) == seen) {
        if (std::chrono::steady_clock::now() > asleep_at) step_.wait(seen, std::memory_order_acquire);
      }
      seen = step_.load(std::memory_order_acquire);
      if (is_stopping_) return;
      worker.status = rank.launch(*batch_, draws_);
      worker.done.store(seen, std::memory_order_release);
    }
  }

  std::unique_ptr<CudaGroup> group_;  // outlives the ranks
  std::vector<std::unique_ptr<ForwardPass>> ranks_;
  std::vector<std::unique_ptr<Worker>> workers_;
  const RaggedBatch* batch_ = nullptr;
  std::span<const CudaSampleRow> draws_;
  std::atomic<std::uint64_t> step_{0};
  std::atomic<bool> is_stopping_{false};
  Status lost_;
};
}  // namespace

std::unique_ptr<ForwardPass> make_parallel_forward(std::vector<std::unique_ptr<ForwardPass>> ranks,
                                                   std::unique_ptr<CudaGroup> group) {
  return std::make_unique<ParallelForward>(std::move(ranks), std::move(group));
}

}  // namespace still
