// still: parse the command line, run one command, tell what went wrong in one sentence.
#include <fmt/format.h>

#include <cerrno>
#include <clocale>
#include <csignal>
#include <cstring>

#include "cli/command.h"

namespace {

still::Status run(int argc, const char* const* argv) {
  STILL_TRY(still::Environment environment, still::read_environment());
  const bool no_colour = environment.no_colour;
  const still::Context context{std::move(environment), still::Terminal(stdout, no_colour),
                               still::Terminal(stderr, no_colour)};
  STILL_TRY_STATUS(still::run_command_line(argc, argv, context));
  // A full disk or a closed pipe shows up only here, when the last bytes leave.
  errno = 0;
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
    return still::error(still::Code::kResourceExhausted, "cannot write the output: {}",
                        std::strerror(errno != 0 ? errno : EIO));
  }
  return still::ok();
}

}  // namespace

int main(int argc, char** argv) {
  std::setlocale(LC_CTYPE, "");  // libedit reads characters, not bytes; numbers keep their points
  const still::Status status = run(argc, argv);
  if (status) return 0;
  std::fflush(stdout);
  fmt::print(stderr, "still: {}\n", status.error().message);
  return still::exit_code(status.error().code);
}
