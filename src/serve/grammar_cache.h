// GrammarCache: one grammar compiler for each loaded model's vocabulary, made at its first constrained request, and the
// thread on which grammars are compiled: that may take seconds, and requests without a grammar do not wait for it.
// Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "grammar/compiler.h"
#include "models/model.h"

namespace still {

class GrammarCache {
 public:
  GrammarCache() = default;
  GrammarCache(const GrammarCache&) = delete;
  GrammarCache& operator=(const GrammarCache&) = delete;
  ~GrammarCache() { stop(); }

  // kUnsupported where the program was built without grammars.
  Result<std::shared_ptr<GrammarCompiler>> compiler_of(const std::shared_ptr<const Model>& model);

  // Runs the task on the thread for compilations, one after the other. False: too many wait, and it does not run.
  bool post(std::function<void()> task);
  // A compilation under way gives up, then the tasks that wait are run. For the end of the server.
  void stop();

 private:
  struct Entry {
    std::weak_ptr<const Model> model;  // unloaded: the entry goes
    std::shared_ptr<GrammarCompiler> compiler;
  };
  void run();

  const std::shared_ptr<std::atomic<bool>> is_stopped_ = std::make_shared<std::atomic<bool>>(false);
  std::mutex mutex_;
  std::map<const Model*, Entry> entries_;

  std::mutex tasks_mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::thread thread_;
};

}  // namespace still
