#include "text/detokenizer.h"

#include <algorithm>

#include "text/unicode.h"

namespace still {

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

// Bytes at `pos` that begin a valid character: its length if whole, fewer where an invalid byte or the end cuts it off.
std::size_t valid_prefix(std::string_view text, std::size_t pos, std::size_t length) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[pos + i]); };
  std::size_t n = 1;
  for (; n < length && pos + n < text.size(); ++n) {
    unsigned char low = 0x80, high = 0xbf;
    if (n == 1) {
      if (byte(0) == 0xe0) low = 0xa0;
      if (byte(0) == 0xed) high = 0x9f;
      if (byte(0) == 0xf0) low = 0x90;
      if (byte(0) == 0xf4) high = 0x8f;
    }
    if (byte(n) < low || byte(n) > high) break;
  }
  return n;
}

}  // namespace

std::string Utf8Stream::add(std::string_view bytes) {
  std::string out;
  add(bytes, out);
  return out;
}

void Utf8Stream::add(std::string_view bytes, std::string& out) {
  pending_ += bytes;
  std::size_t pos = 0;
  while (pos < pending_.size()) {
    const auto length = static_cast<std::size_t>(utf8_length(static_cast<unsigned char>(pending_[pos])));
    const std::size_t n = length == 0 ? 1 : valid_prefix(pending_, pos, length);
    if (n == length) {
      out.append(pending_, pos, n);
    } else if (length != 0 && pos + n == pending_.size()) {
      break;  // may go on with the next token
    } else {
      out += kReplacement;
    }
    pos += n;
  }
  pending_.erase(0, pos);
}

std::string Utf8Stream::flush() {
  std::string out(pending_.empty() ? std::string_view() : kReplacement);
  pending_.clear();
  return out;
}

std::string Detokenizer::add(TokenId id) {
  if (skip_special_ && tokenizer_.is_special(id)) return {};
  return stream_.add(tokenizer_.token_bytes(id));
}

}  // namespace still
