// /api/pull: transfers in threads of their own, each shared by all clients that want the same name. When the last of
// them leaves, the transfer stops and its part stays for the next one.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "hub/pull.h"

namespace still {

// A client of a transfer: lines are called on the transfer's thread, in order, and then `end` once.
struct PullListener {
  std::function<void(const JsonObject& line)> line;
  std::function<void(const Status& status)> end;
};

// Thread-safe. Destroying it stops all transfers and waits for them.
class OllamaPulls {
 public:
  using Work = std::function<Result<PullReport>(const ProgressFn&, const CancelToken&)>;
  OllamaPulls() = default;
  ~OllamaPulls();
  OllamaPulls(const OllamaPulls&) = delete;
  OllamaPulls& operator=(const OllamaPulls&) = delete;

  // Joins the transfer of that key, or begins it with `work`. Returns the client's number, for leave().
  std::uint64_t join(const std::string& key, PullListener listener, Work work);
  void leave(const std::string& key, std::uint64_t listener);
  std::size_t n_transfers() const;

 private:
  struct Transfer;
  void run(const std::shared_ptr<Transfer>& transfer);

  mutable std::mutex mutex_;
  std::uint64_t next_ = 1;
  std::map<std::string, std::shared_ptr<Transfer>> transfers_;
  std::vector<std::thread> threads_;
  bool closing_ = false;
};

// The lines of Ollama's stream for what a pull tells: {"status": "pulling manifest"}, {"status": "pulling 0f3a...",
// "digest": ..., "total": ..., "completed": ...}, ...
JsonObject pull_line(const Progress& progress);
std::vector<JsonObject> pull_last_lines(const PullReport& report);

}  // namespace still
