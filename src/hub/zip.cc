// See zip.h. Numbers in comments are sections of APPNOTE.TXT.
#include "hub/zip.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>

namespace still {
namespace fs = std::filesystem;

namespace {

constexpr std::int64_t kChunkBytes = 256 << 10;
constexpr std::int64_t kMaxDirectoryBytes = 256 << 20;

// Little-endian number of n_bytes at `at`; the caller has checked the range.
std::uint64_t number(std::string_view bytes, std::size_t at, int n_bytes) {
  std::uint64_t value = 0;
  for (int i = n_bytes - 1; i >= 0; --i)
    value = value << 8 | static_cast<unsigned char>(bytes[at + static_cast<std::size_t>(i)]);
  return value;
}

// 4.5.3: replaces the fields that are all ones by their 64-bit values, in this order.
bool read_zip64_extra(std::string_view extra, std::uint64_t& size, std::uint64_t& packed, std::uint64_t& offset) {
  while (extra.size() >= 4) {
    const auto id = number(extra, 0, 2);
    const auto length = static_cast<std::size_t>(number(extra, 2, 2));
    if (extra.size() < 4 + length) return false;
    std::string_view data = extra.substr(4, length);
    extra = extra.substr(4 + length);
    if (id != 1) continue;
    for (std::uint64_t* field : {&size, &packed, &offset}) {
      if (*field != 0xffffffff) continue;
      if (data.size() < 8) return false;
      *field = number(data, 0, 8);
      data = data.substr(8);
    }
    return true;
  }
  return size != 0xffffffff && packed != 0xffffffff && offset != 0xffffffff;
}

// zlib's raw inflate; ended with the object.
class Inflater {
 public:
  Inflater() { ready_ = inflateInit2(&stream_, -MAX_WBITS) == Z_OK; }
  ~Inflater() {
    if (ready_) inflateEnd(&stream_);
  }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  bool is_ready() const { return ready_; }
  z_stream& stream() { return stream_; }

 private:
  z_stream stream_{};
  bool ready_ = false;
};

}  // namespace

Result<ZipReader> ZipReader::open(const fs::path& path) {
  ZipReader reader;
  reader.path_ = path;
  STILL_TRY(reader.fd_, open_file(path, O_RDONLY));
  struct stat info{};
  if (::fstat(reader.fd_.get(), &info) != 0) return system_error(errno, "cannot read", path);
  reader.size_ = info.st_size;
  STILL_TRY_STATUS(reader.read_directory());
  return reader;
}

Result<std::string> ZipReader::read_exactly(std::int64_t offset, std::int64_t size, const char* what) const {
  if (offset < 0 || size < 0 || offset > size_ || size > size_ - offset) {
    return error(Code::kCorrupt, "{}: its {} lies outside the file of {} bytes", path_.string(), what, size_);
  }
  std::string bytes(static_cast<std::size_t>(size), '\0');
  STILL_TRY(const std::int64_t n, read_at(fd_.get(), bytes.data(), size, offset, path_));
  if (n != size) return error(Code::kCorrupt, "{}: its {} is cut short", path_.string(), what);
  return bytes;
}

Status ZipReader::read_directory() {
  // 4.3.16: the end record is the last 22 bytes, unless a comment of up to 65535 bytes follows.
  constexpr std::int64_t kEndBytes = 22;
  const std::int64_t tail_bytes = std::min<std::int64_t>(size_, kEndBytes + 65535);
  STILL_TRY(const std::string tail, read_exactly(size_ - tail_bytes, tail_bytes, "end"));
  const std::size_t end = tail.rfind(std::string_view("PK\5\6", 4));
  if (end == std::string::npos || tail.size() - end < kEndBytes) {
    return error(Code::kCorrupt, "{}: not a ZIP archive, or cut short (no end record)", path_.string());
  }
  std::uint64_t n_members = number(tail, end + 10, 2);
  std::uint64_t directory_bytes = number(tail, end + 12, 4);
  std::uint64_t directory_at = number(tail, end + 16, 4);
  if (n_members == 0xffff || directory_bytes == 0xffffffff || directory_at == 0xffffffff) {
    // 4.3.15, 4.3.14: a locator of 20 bytes stands before the end record and points to the 64-bit one.
    if (end < 20 || tail.compare(end - 20, 4, std::string_view("PK\6\7", 4)) != 0) {
      return error(Code::kCorrupt, "{}: ZIP64 archive without its locator", path_.string());
    }
    const auto at = static_cast<std::int64_t>(number(tail, end - 12, 8));
    STILL_TRY(const std::string end64, read_exactly(at, 56, "ZIP64 end record"));
    if (!end64.starts_with(std::string_view("PK\6\6", 4))) {
      return error(Code::kCorrupt, "{}: no ZIP64 end record where its locator points", path_.string());
    }
    n_members = number(end64, 32, 8);
    directory_bytes = number(end64, 40, 8);
    directory_at = number(end64, 48, 8);
  }
  if (directory_bytes > kMaxDirectoryBytes || n_members > directory_bytes / 46) {
    return error(Code::kCorrupt, "{}: {} members in a directory of {} bytes", path_.string(), n_members,
                 directory_bytes);
  }
  STILL_TRY(const std::string directory, read_exactly(static_cast<std::int64_t>(directory_at),
                                                      static_cast<std::int64_t>(directory_bytes), "directory"));
  std::string_view rest = directory;
  for (std::uint64_t i = 0; i < n_members; ++i) {  // 4.3.12
    if (rest.size() < 46 || !rest.starts_with(std::string_view("PK\1\2", 4))) {
      return error(Code::kCorrupt, "{}: its directory breaks off at member {} of {}", path_.string(), i, n_members);
    }
    const auto name_size = static_cast<std::size_t>(number(rest, 28, 2));
    const auto extra_size = static_cast<std::size_t>(number(rest, 30, 2));
    const auto record_size = 46 + name_size + extra_size + static_cast<std::size_t>(number(rest, 32, 2));
    if (rest.size() < record_size) return error(Code::kCorrupt, "{}: its directory is cut short", path_.string());
    std::uint64_t packed = number(rest, 20, 4), size = number(rest, 24, 4), offset = number(rest, 42, 4);
    const std::string_view extra = rest.substr(46 + name_size, extra_size);
    const auto limit = static_cast<std::uint64_t>(size_);
    if (!read_zip64_extra(extra, size, packed, offset) || packed > limit || offset > limit || size > 1ull << 50) {
      return error(Code::kCorrupt, "{}: member {} has an impossible size or place", path_.string(), i);
    }
    members_.push_back({.name = std::string(rest.substr(46, name_size)),
                        .size = static_cast<std::int64_t>(size),
                        .packed_size = static_cast<std::int64_t>(packed),
                        .header_offset = static_cast<std::int64_t>(offset),
                        .crc32 = static_cast<std::uint32_t>(number(rest, 16, 4)),
                        .method = static_cast<int>(number(rest, 10, 2)),
                        .encrypted = (number(rest, 8, 2) & 1) != 0});
    rest = rest.substr(record_size);
  }
  return ok();
}

Status ZipReader::extract(const ZipMember& member, const Sink& sink) const {
  if (member.encrypted || (member.method != 0 && member.method != 8)) {
    return error(Code::kUnsupported, "{}: {} is {}; only stored and deflated members can be read", path_.string(),
                 member.name, member.encrypted ? "encrypted" : fmt::format("packed by method {}", member.method));
  }
  // 4.3.7: name and extra of the local header may differ in length from the directory's.
  STILL_TRY(const std::string header, read_exactly(member.header_offset, 30, "local header"));
  if (!header.starts_with(std::string_view("PK\3\4", 4))) {
    return error(Code::kCorrupt, "{}: no local header of {} where the directory points", path_.string(), member.name);
  }
  std::int64_t offset =
      member.header_offset + 30 + static_cast<std::int64_t>(number(header, 26, 2) + number(header, 28, 2));
  if (member.packed_size > size_ - offset) {
    return error(Code::kCorrupt, "{}: {} is cut short", path_.string(), member.name);
  }
  const auto corrupt = [&](std::string_view why) {
    return error(Code::kCorrupt, "{}: {} {}; fetch the archive again", path_.string(), member.name, why);
  };

  Inflater inflater;
  if (!inflater.is_ready()) return error(Code::kResourceExhausted, "no memory to unpack {}", path_.string());
  z_stream& stream = inflater.stream();
  std::vector<unsigned char> packed(kChunkBytes), plain(kChunkBytes);
  std::int64_t n_packed = member.packed_size, n_plain = 0;
  uLong crc = ::crc32(0, nullptr, 0);
  const auto emit = [&](const unsigned char* data, std::int64_t n) -> Status {
    if (n > member.size - n_plain) return corrupt("is longer than the directory says");
    n_plain += n;
    crc = ::crc32(crc, data, static_cast<uInt>(n));
    return sink({reinterpret_cast<const std::byte*>(data), static_cast<std::size_t>(n)});
  };
  bool ended = false;
  while (n_packed > 0) {
    const std::int64_t want = std::min(kChunkBytes, n_packed);
    STILL_TRY(const std::int64_t n, read_at(fd_.get(), packed.data(), want, offset, path_));
    if (n != want) return corrupt("is cut short");
    offset += n;
    n_packed -= n;
    if (member.method == 0) {
      STILL_TRY_STATUS(emit(packed.data(), n));
      continue;
    }
    stream.next_in = packed.data();
    stream.avail_in = static_cast<uInt>(n);
    do {
      stream.next_out = plain.data();
      stream.avail_out = static_cast<uInt>(kChunkBytes);
      const int code = ::inflate(&stream, Z_NO_FLUSH);
      if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR) return corrupt("is damaged (deflate)");
      ended = code == Z_STREAM_END;
      STILL_TRY_STATUS(emit(plain.data(), kChunkBytes - stream.avail_out));
    } while (!ended && (stream.avail_in > 0 || stream.avail_out == 0));
    if (ended && (stream.avail_in > 0 || n_packed > 0)) return corrupt("has bytes after its end");
  }
  if (n_plain != member.size) return corrupt(fmt::format("has {} bytes, expected {}", n_plain, member.size));
  if (crc != member.crc32) return corrupt(fmt::format("has CRC-32 {:08x}, expected {:08x}", crc, member.crc32));
  return ok();
}

}  // namespace still
