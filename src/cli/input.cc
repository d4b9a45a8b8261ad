#include "cli/input.h"

#include <unistd.h>
#include <utf8proc.h>

#include <cerrno>
#include <cstring>

#include "hub/file_io.h"

namespace still {
namespace {

// Far more text than any context holds, far less than memory.
constexpr std::int64_t kMaxInputBytes = std::int64_t{1} << 30;

}  // namespace

Result<std::string> read_stdin() {
  std::string text;
  char buffer[1 << 16];
  while (true) {
    const ssize_t n = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (n == 0) return text;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return error(Code::kInternal, "cannot read stdin: {}", std::strerror(errno));
    text.append(buffer, static_cast<std::size_t>(n));
    if (static_cast<std::int64_t>(text.size()) > kMaxInputBytes) {
      return error(Code::kResourceExhausted, "stdin holds more than {}", format_bytes(kMaxInputBytes));
    }
  }
}

Result<std::string> read_text_argument(const std::string& path) {
  if (path == "-") return read_stdin();
  return read_text_file(path, kMaxInputBytes);
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
