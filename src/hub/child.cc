// See child.h.
#include "hub/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "hub/file_io.h"

namespace still {

namespace {

// Between fork and exec only async-signal-safe calls are allowed (other threads may hold locks), so everything that
// allocates is prepared before the fork.
[[noreturn]] void exec_child(char* const* argv, char* const* envp, int output_fd, int report_fd, pid_t parent) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);  // the parent died before prctl
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int number : {SIGINT, SIGTERM, SIGPIPE}) ::signal(number, SIG_DFL);
  const int null_fd = ::open("/dev/null", O_RDONLY);
  if (null_fd >= 0) ::dup2(null_fd, STDIN_FILENO);
  ::dup2(output_fd, STDOUT_FILENO);
  ::dup2(output_fd, STDERR_FILENO);
  ::execvpe(argv[0], argv, envp);
  const int failure = errno;
  [[maybe_unused]] const ssize_t n = ::write(report_fd, &failure, sizeof failure);
  ::_exit(127);
}

std::vector<std::string> merged_environment(const std::vector<std::pair<std::string, std::string>>& added) {
  std::vector<std::string> merged;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view key = text.substr(0, text.find('='));
    bool replaced = false;
    for (const auto& [name, value] : added) replaced = replaced || name == key;
    if (!replaced) merged.emplace_back(text);
  }
  for (const auto& [name, value] : added) merged.push_back(name + "=" + value);
  return merged;
}

std::vector<char*> pointers_of(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (std::string& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

Result<ChildProcess> ChildProcess::start(const Options& options) {
  if (options.command.empty()) return error(Code::kInvalidArgument, "no command to run");
  std::vector<std::string> arguments = options.command;
  std::vector<std::string> environment = merged_environment(options.environment);
  const std::vector<char*> argv = pointers_of(arguments), envp = pointers_of(environment);
  STILL_TRY(const UniqueFd output, open_file(options.output, O_WRONLY | O_CREAT | O_TRUNC));
  int report[2];
  if (::pipe2(report, O_CLOEXEC) != 0) return system_error(errno, "cannot make a pipe for", options.command[0]);
  const UniqueFd report_read(report[0]);
  UniqueFd report_write(report[1]);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return system_error(errno, "cannot start", options.command[0]);
  if (pid == 0) exec_child(argv.data(), envp.data(), output.get(), report_write.get(), parent);
  report_write.reset();
  // The pipe closes unread when exec succeeds, and brings errno when it does not.
  int failure = 0;
  ssize_t n = 0;
  do n = ::read(report_read.get(), &failure, sizeof failure);
  while (n < 0 && errno == EINTR);
  if (n == sizeof failure) {
    ::waitpid(pid, nullptr, 0);
    return error(failure == ENOENT ? Code::kNotFound : Code::kPermissionDenied, "cannot run {}: {}", options.command[0],
                 std::strerror(failure));
  }
  return ChildProcess(pid);
}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this != &other) {
    stop();
    pid_ = std::exchange(other.pid_, -1);
  }
  return *this;
}

Result<std::optional<int>> ChildProcess::poll() {
  if (pid_ < 0) return error(Code::kInternal, "a process that ended before was asked again");
  int status = 0;
  const pid_t done = ::waitpid(pid_, &status, WNOHANG);
  if (done == 0 || (done < 0 && errno == EINTR)) return std::optional<int>();
  const pid_t pid = std::exchange(pid_, -1);
  if (done < 0) return error(Code::kInternal, "cannot wait for process {}: {}", pid, std::strerror(errno));
  return std::optional<int>(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

void ChildProcess::stop() {
  if (pid_ < 0) return;
  const pid_t pid = std::exchange(pid_, -1);
  ::kill(-pid, SIGTERM);
  for (int i = 0; i < 100; ++i) {
    if (::waitpid(pid, nullptr, WNOHANG) != 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  ::kill(-pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

}  // namespace still
