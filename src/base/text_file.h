// Small files of text: manifests, configurations, templates.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/result.h"

namespace still {

// All bytes of a regular file. kCorrupt where it holds more than max_bytes: what is read here is small by nature.
Result<std::string> read_text_file(const std::filesystem::path& path, std::int64_t max_bytes);

}  // namespace still
