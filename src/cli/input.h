// Input from files and stdin.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "base/result.h"

namespace still {

// All of stdin, byte for byte.
Result<std::string> read_stdin();
// All of a file, which may be a pipe; "-" is stdin.
Result<std::string> read_text_argument(const std::string& path);
// kInvalidArgument with the place of the first byte that is not UTF-8. `what` begins the message.
Status check_utf8(std::string_view text, std::string_view what);

}  // namespace still
