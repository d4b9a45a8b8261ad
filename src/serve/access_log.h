// AccessLog: one JSON object a line for each request, written by a thread of its own, so that a full pipe or disk never
// holds up the server. Never holds a prompt or an answer, unless prompts are asked for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "serve/http/server.h"

namespace still {

class AccessLog {
 public:
  // Appends to the file; an empty path is standard error.
  static Result<std::unique_ptr<AccessLog>> open(const std::filesystem::path& path, bool with_prompts);
  ~AccessLog();  // writes what waits
  AccessLog(const AccessLog&) = delete;
  AccessLog& operator=(const AccessLog&) = delete;

  void request(const HttpRecord& record);          // any thread; never waits
  void event(const std::string& sentence);         // the server's own: a model was loaded, ...
  std::int64_t n_lost() const { return n_lost_; }  // lines dropped, since they came faster than they could be written

 private:
  AccessLog(std::FILE* file, bool is_owned, bool with_prompts);
  void add(std::string line);
  void run();

  std::FILE* file_;
  const bool is_owned_, with_prompts_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<std::string> lines_;
  bool is_stopped_ = false;
  std::atomic<std::int64_t> n_lost_{0};
  std::thread thread_;
};

// The line of a request, with its line end. For tests.
std::string access_line(const HttpRecord& record, bool with_prompts);

}  // namespace still
