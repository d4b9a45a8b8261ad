// Runs another program (pip) without a shell: arguments go to it as they are. Its output goes to a file, it gets no
// input, it is stopped with its children when the object goes, and by the system when this process dies.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace still {

class ChildProcess {
 public:
  struct Options {
    std::vector<std::string> command;                              // command[0] is looked up in PATH
    std::vector<std::pair<std::string, std::string>> environment;  // added to this process's own
    std::filesystem::path output;                                  // stdout and stderr together
  };
  // kNotFound if there is no such program.
  static Result<ChildProcess> start(const Options& options);

  ChildProcess(ChildProcess&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess() { stop(); }

  // The exit status once it has ended (128 + signal number if a signal ended it); nothing while it runs.
  Result<std::optional<int>> poll();
  void stop();  // SIGTERM to its process group, SIGKILL after two seconds

 private:
  explicit ChildProcess(pid_t pid) : pid_(pid) {}
  pid_t pid_ = -1;
};

}  // namespace still
