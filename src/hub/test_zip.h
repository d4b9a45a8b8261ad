// For tests: writes ZIP archives (wheels), stored or deflated, optionally with ZIP64 records.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"

namespace still::test {

struct ZipEntry {
  std::string name;
  std::string bytes;
  bool is_deflated = true;
};

inline std::string little(std::uint64_t value, int n_bytes) {
  std::string out;
  for (int i = 0; i < n_bytes; ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}

inline std::string deflate_raw(const std::string& bytes) {
  z_stream stream{};
  STILL_CHECK(deflateInit2(&stream, 6, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string out(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  STILL_CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

inline std::string make_zip(const std::vector<ZipEntry>& entries, bool is_zip64) {
  std::string out, directory;
  for (const ZipEntry& entry : entries) {
    const std::string packed = entry.is_deflated ? deflate_raw(entry.bytes) : entry.bytes;
    const auto crc =
        ::crc32(0, reinterpret_cast<const Bytef*>(entry.bytes.data()), static_cast<uInt>(entry.bytes.size()));
    const std::string middle = little(0, 2) + little(entry.is_deflated ? 8 : 0, 2) + little(0, 4) + little(crc, 4);
    const std::size_t offset = out.size();
    out += "PK\3\4" + little(20, 2) + middle + little(packed.size(), 4) + little(entry.bytes.size(), 4) +
           little(entry.name.size(), 2) + little(0, 2) + entry.name + packed;
    const std::string extra = is_zip64 ? little(1, 2) + little(24, 2) + little(entry.bytes.size(), 8) +
                                             little(packed.size(), 8) + little(offset, 8)
                                       : "";
    const std::uint64_t ones = 0xffffffff;
    directory += "PK\1\2" + little(20, 2) + little(20, 2) + middle + little(is_zip64 ? ones : packed.size(), 4) +
                 little(is_zip64 ? ones : entry.bytes.size(), 4) + little(entry.name.size(), 2) +
                 little(extra.size(), 2) + little(0, 2) + little(0, 4) + little(0, 4) +
                 little(is_zip64 ? ones : offset, 4) + entry.name + extra;
  }
  const std::size_t at = out.size(), n = entries.size();
  out += directory;
  if (is_zip64) {
    const std::size_t record = out.size();
    out += "PK\6\6" + little(44, 8) + little(45, 2) + little(45, 2) + little(0, 4) + little(0, 4) + little(n, 8) +
           little(n, 8) + little(directory.size(), 8) + little(at, 8);
    out += "PK\6\7" + little(0, 4) + little(record, 8) + little(1, 4);
  }
  out += "PK\5\6" + little(0, 4) + little(is_zip64 ? 0xffff : n, 2) + little(is_zip64 ? 0xffff : n, 2) +
         little(is_zip64 ? 0xffffffff : directory.size(), 4) + little(is_zip64 ? 0xffffffff : at, 4) + little(0, 2);
  return out;
}

}  // namespace still::test
