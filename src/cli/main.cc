// still: parse the command line, run one command, tell what went wrong in one sentence.
#include <fmt/format.h>

#include <cerrno>
#include <clocale>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>

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

// Exceptions that libraries throw from anywhere: fmt where a stream cannot be written, the allocator.
still::Status run_caught(int argc, const char* const* argv) {
  try {
    return run(argc, argv);
  } catch (const std::system_error& problem) {
    const bool is_full = problem.code() == std::errc::no_space_on_device;
    return still::error(is_full ? still::Code::kResourceExhausted : still::Code::kInternal,
                        "cannot write the output: {}", problem.code().message());
  } catch (const std::bad_alloc&) {
    return still::error(still::Code::kResourceExhausted, "out of memory");
  }
}

}  // namespace

int main(int argc, char** argv) {
  // libedit reads characters, not bytes; numbers keep their points. Where no locale is set up, text is UTF-8 all the
  // same.
  std::setlocale(LC_CTYPE, "");
  if (MB_CUR_MAX == 1) std::setlocale(LC_CTYPE, "C.UTF-8");
  const still::Status status = run_caught(argc, argv);
  if (status) return 0;
  std::fflush(stdout);
  std::fprintf(stderr, "still: %s\n", status.error().message.c_str());
  return still::exit_code(status.error().code);
}
