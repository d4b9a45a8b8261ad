// Reader of ZIP archives (APPNOTE.TXT 6.3.9), as much as Python wheels need: stored and deflated members, ZIP64, CRC-32
// checked while streaming. Encrypted members, other methods and archives in several files are refused. The bytes are
// not trusted: every offset and size is checked against the file, and a member never yields more than its directory
// says.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "hub/file_io.h"

namespace still {

struct ZipMember {
  std::string name;
  std::int64_t size = 0;  // extracted
  std::int64_t packed_size = 0;
  std::int64_t header_offset = 0;  // of the local header
  std::uint32_t crc32 = 0;
  int method = 0;  // 0 stored, 8 deflated
  bool encrypted = false;
};

class ZipReader {
 public:
  using Sink = std::function<Status(std::span<const std::byte>)>;

  static Result<ZipReader> open(const std::filesystem::path& path);
  const std::vector<ZipMember>& members() const { return members_; }
  // Gives the member's bytes to `sink` in order, in pieces of at most 256 KiB. kCorrupt if the CRC or the size differs,
  // after the sink has seen the bytes.
  Status extract(const ZipMember& member, const Sink& sink) const;

 private:
  Status read_directory();
  Result<std::string> read_exactly(std::int64_t offset, std::int64_t size, const char* what) const;

  std::filesystem::path path_;
  UniqueFd fd_;
  std::int64_t size_ = 0;
  std::vector<ZipMember> members_;
};

}  // namespace still
