#include "cli/input.h"

#include <fcntl.h>
#include <unistd.h>
#include <utf8proc.h>

#include <cerrno>

#include "hub/file_io.h"

namespace still {
namespace {

// Far more text than any context holds, far less than memory.
constexpr std::int64_t kMaxInputBytes = std::int64_t{1} << 30;

Result<std::string> read_all(int fd, const std::string& what) {
  std::string text;
  char buffer[1 << 16];
  while (true) {
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n == 0) return text;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error(errno, "cannot read", what);
    text.append(buffer, static_cast<std::size_t>(n));
    if (static_cast<std::int64_t>(text.size()) > kMaxInputBytes) {
      return error(Code::kResourceExhausted, "{} holds more than {}", what, format_bytes(kMaxInputBytes));
    }
  }
}

}  // namespace

Result<std::string> read_stdin() {
  return read_all(STDIN_FILENO, "stdin");
}

Result<std::string> read_text_argument(const std::string& path) {
  if (path == "-") return read_stdin();
  STILL_TRY(const UniqueFd fd, open_file(path, O_RDONLY));
  return read_all(fd.get(), path);
}

Status check_utf8(std::string_view text, std::string_view what) {
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (std::size_t i = 0; i < text.size();) {
    utf8proc_int32_t code_point = -1;
    const utf8proc_ssize_t n = utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code_point);
    if (n <= 0) {
      return error(Code::kInvalidArgument,
                   "{}: byte {} (0x{:02x}) is not valid UTF-8; convert the text, as with `iconv -t UTF-8`", what, i,
                   bytes[i]);
    }
    i += static_cast<std::size_t>(n);
  }
  return ok();
}

}  // namespace still
