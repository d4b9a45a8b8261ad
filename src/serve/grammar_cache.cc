#include "serve/grammar_cache.h"

#include <sys/resource.h>
#include <unistd.h>

namespace still {
namespace {

constexpr std::size_t kMaxTasks = 256;
// Compiling is less urgent than the tokens of running answers. Threads that the compiler makes are as nice.
constexpr int kNiceness = 5;

}  // namespace

Result<std::shared_ptr<GrammarCompiler>> GrammarCache::compiler_of(const std::shared_ptr<const Model>& model) {
  const std::lock_guard lock(mutex_);
  std::erase_if(entries_, [](const auto& entry) { return entry.second.model.expired(); });
  const auto found = entries_.find(model.get());
  if (found != entries_.end()) return found->second.compiler;
  STILL_TRY(std::shared_ptr<GrammarCompiler> compiler,
            GrammarCompiler::make(model->tokenizer(), {.is_stopped = is_stopped_}));
  entries_.emplace(model.get(), Entry{model, compiler});
  return compiler;
}

bool GrammarCache::post(std::function<void()> task) {
  const std::lock_guard lock(tasks_mutex_);
  if (*is_stopped_ || tasks_.size() >= kMaxTasks) return false;
  tasks_.push_back(std::move(task));
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  changed_.notify_one();
  return true;
}

void GrammarCache::run() {
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNiceness);
  std::unique_lock lock(tasks_mutex_);
  while (true) {
    changed_.wait(lock, [this] { return *is_stopped_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;
    lock.lock();
  }
}

void GrammarCache::stop() {
  {
    const std::lock_guard lock(tasks_mutex_);
    *is_stopped_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

}  // namespace still
