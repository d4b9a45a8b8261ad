#include "base/text_file.h"

#include "base/mapped_file.h"

namespace still {

Result<std::string> read_text_file(const std::filesystem::path& path, std::int64_t max_bytes) {
  STILL_TRY(const MappedFile file, MappedFile::open(path));
  if (file.size() > max_bytes) {
    return error(Code::kCorrupt, "{}: {} bytes, expected at most {}", path.string(), file.size(), max_bytes);
  }
  return std::string(reinterpret_cast<const char*>(file.data()), static_cast<std::size_t>(file.size()));
}

}  // namespace still
