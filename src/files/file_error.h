// error() for messages that quote names out of foreign files: control characters become \xNN (a name must not move a
// terminal's cursor or fake a second line), and what is too long to read is cut.
#pragma once

#include <string>

#include "base/result.h"

namespace still {

inline std::string make_printable(std::string text) {
  std::string out;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(c));
    else
      out += c;
  }
  constexpr std::size_t kMaxBytes = 1000;
  if (out.size() > kMaxBytes) out = out.substr(0, kMaxBytes / 2) + " ... " + out.substr(out.size() - kMaxBytes / 2);
  return out;
}

template <class... Args>
tl::unexpected<Error> file_error(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return tl::unexpected<Error>(Error{code, make_printable(fmt::format(format, std::forward<Args>(args)...))});
}

}  // namespace still
