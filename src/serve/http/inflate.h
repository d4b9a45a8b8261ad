// Compressed request bodies: gzip and zlib (RFC 1952, RFC 1950), by zlib; zstd (RFC 8878), by libzstd.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace still {

// kResourceExhausted beyond max_bytes (a small body may claim to be huge), kCorrupt for broken or cut data.
Result<std::string> inflate_body(std::string_view compressed, std::int64_t max_bytes);
Result<std::string> inflate_zstd_body(std::string_view compressed, std::int64_t max_bytes);

}  // namespace still
