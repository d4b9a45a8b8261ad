#include "serve/http/inflate.h"

#include <zlib.h>

#include <algorithm>
#include <memory>

namespace still {

Result<std::string> inflate_body(std::string_view compressed, std::int64_t max_bytes) {
  z_stream stream{};
  constexpr int kGzipOrZlib = 15 + 32;  // zlib.h: the largest window, the header tells which
  if (inflateInit2(&stream, kGzipOrZlib) != Z_OK) return error(Code::kInternal, "zlib: no memory");
  const std::unique_ptr<z_stream, void (*)(z_stream*)> guard(&stream, [](z_stream* s) { inflateEnd(s); });
  // zlib takes a non-const pointer, but writes nothing there.
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(compressed.data()));
  stream.avail_in = static_cast<uInt>(compressed.size());
  std::string result;
  constexpr std::size_t kStep = 64 << 10;
  while (true) {
    const std::size_t had = result.size();
    result.resize(had + kStep);
    stream.next_out = reinterpret_cast<Bytef*>(result.data() + had);
    stream.avail_out = kStep;
    const int code = inflate(&stream, Z_NO_FLUSH);
    result.resize(had + kStep - stream.avail_out);
    if (static_cast<std::int64_t>(result.size()) > max_bytes) {
      return error(Code::kResourceExhausted, "the body is larger than {} bytes when it is unpacked", max_bytes);
    }
    if (code == Z_STREAM_END) return result;
    if (code != Z_OK) {
      return error(Code::kCorrupt, "the compressed body is broken or cut: {}", stream.msg ? stream.msg : "end of data");
    }
  }
}

}  // namespace still
