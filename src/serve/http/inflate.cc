#include "serve/http/inflate.h"

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <memory>

namespace still {
namespace {

constexpr std::size_t kStep = 64 << 10;
// A frame may ask for a window of memory; the largest body needs no more than itself.
constexpr int kMaxZstdWindowLog = 25;

tl::unexpected<Error> too_large(std::int64_t max_bytes) {
  return error(Code::kResourceExhausted, "the body is larger than {} bytes when it is unpacked", max_bytes);
}

}  // namespace

Result<std::string> inflate_body(std::string_view compressed, std::int64_t max_bytes) {
  z_stream stream{};
  constexpr int kGzipOrZlib = 15 + 32;  // zlib.h: the largest window, the header tells which
  if (inflateInit2(&stream, kGzipOrZlib) != Z_OK) return error(Code::kInternal, "zlib: no memory");
  const std::unique_ptr<z_stream, void (*)(z_stream*)> guard(&stream, [](z_stream* s) { inflateEnd(s); });
  // zlib takes a non-const pointer, but writes nothing there.
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(compressed.data()));
  stream.avail_in = static_cast<uInt>(compressed.size());
  std::string result;
  while (true) {
    const std::size_t had = result.size();
    result.resize(had + kStep);
    stream.next_out = reinterpret_cast<Bytef*>(result.data() + had);
    stream.avail_out = kStep;
    const int code = inflate(&stream, Z_NO_FLUSH);
    result.resize(had + kStep - stream.avail_out);
    if (static_cast<std::int64_t>(result.size()) > max_bytes) return too_large(max_bytes);
    if (code == Z_STREAM_END) return result;
    if (code != Z_OK) {
      return error(Code::kCorrupt, "the compressed body is broken or cut: {}", stream.msg ? stream.msg : "end of data");
    }
  }
}

Result<std::string> inflate_zstd_body(std::string_view compressed, std::int64_t max_bytes) {
  const std::unique_ptr<ZSTD_DCtx, std::size_t (*)(ZSTD_DCtx*)> stream(ZSTD_createDCtx(), ZSTD_freeDCtx);
  if (!stream) return error(Code::kInternal, "zstd: no memory");
  ZSTD_DCtx_setParameter(stream.get(), ZSTD_d_windowLogMax, kMaxZstdWindowLog);
  ZSTD_inBuffer in{compressed.data(), compressed.size(), 0};
  std::string result;
  std::size_t left = 1;  // of a frame: 0 at its end
  // Several frames may follow each other.
  while (in.pos < in.size || left != 0) {
    const std::size_t had = result.size();
    result.resize(had + kStep);
    ZSTD_outBuffer out{result.data() + had, kStep, 0};
    const std::size_t in_before = in.pos;
    left = ZSTD_decompressStream(stream.get(), &out, &in);
    result.resize(had + out.pos);
    if (ZSTD_getErrorCode(left) == ZSTD_error_frameParameter_windowTooLarge) return too_large(max_bytes);
    if (ZSTD_isError(left) != 0) {
      return error(Code::kCorrupt, "the compressed body is broken: {}", ZSTD_getErrorName(left));
    }
    if (static_cast<std::int64_t>(result.size()) > max_bytes) return too_large(max_bytes);
    if (left != 0 && out.pos == 0 && in.pos == in_before) {
      return error(Code::kCorrupt, "the compressed body is broken or cut: end of data");
    }
  }
  return result;
}

}  // namespace still
