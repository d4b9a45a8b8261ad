#include "engine/text_stream.h"

#include <algorithm>

#include "text/unicode.h"

namespace still {

namespace {
constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

// `bytes` begins a character whose end has not come yet: nothing in it is wrong, it is only short.
bool is_unfinished(std::string_view bytes) {
  const int length = utf8_length(static_cast<unsigned char>(bytes[0]));
  if (length <= static_cast<int>(bytes.size())) return false;
  for (std::size_t i = 1; i < bytes.size(); ++i)
    if ((static_cast<unsigned char>(bytes[i]) & 0xc0) != 0x80) return false;
  // The second byte alone may already show an overlong form, a surrogate or a value above U+10FFFF.
  if (bytes.size() < 2) return true;
  const auto first = static_cast<unsigned char>(bytes[0]), second = static_cast<unsigned char>(bytes[1]);
  return !(first == 0xe0 && second < 0xa0) && !(first == 0xed && second > 0x9f) && !(first == 0xf0 && second < 0x90) &&
         !(first == 0xf4 && second > 0x8f);
}
}  // namespace

void TextStream::append_characters(std::string_view bytes) {
  partial_ += bytes;
  std::size_t pos = 0;
  while (pos < partial_.size()) {
    const DecodedChar decoded = decode_char(partial_, pos);
    const std::string_view rest = std::string_view(partial_).substr(pos);
    if (decoded.code == kInvalidChar && is_unfinished(rest)) break;
    const auto size = static_cast<std::size_t>(std::max(decoded.size, 1));
    if (is_skipping_newlines_ && partial_[pos] != '\n') is_skipping_newlines_ = false;
    if (!is_skipping_newlines_) held_ += decoded.code == kInvalidChar ? kReplacement : rest.substr(0, size);
    pos += size;
  }
  partial_.erase(0, pos);
}

// The stop string whose end comes first ends the text; of several that end there, the longest.
std::size_t TextStream::find_stop(std::size_t& length) const {
  std::size_t best_end = std::string::npos, best = std::string::npos;
  for (const std::string& stop : stops_) {
    const std::size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const std::size_t end = at + stop.size();
    if (end > best_end || (end == best_end && at >= best)) continue;
    best = at;
    best_end = end;
    length = stop.size();
  }
  return best;
}

std::size_t TextStream::possible_stop() const {
  std::size_t start = held_.size();
  for (const std::string& stop : stops_) {
    const std::size_t longest = std::min(stop.size() - 1, held_.size());
    for (std::size_t n = longest; n > held_.size() - start; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) != 0) continue;
      start = held_.size() - n;
      break;
    }
  }
  return start;
}

bool TextStream::push(std::string_view bytes, bool with_stops, std::string& out) {
  append_characters(bytes);
  if (!with_stops || stops_.empty()) {
    out += held_;
    held_.clear();
    return true;
  }
  std::size_t length = 0;
  const std::size_t at = find_stop(length);
  if (at != std::string::npos) {
    out.append(held_, 0, at);
    matched_.assign(held_, at, length);
    held_.clear();
    partial_.clear();
    return false;
  }
  const std::size_t certain = possible_stop();
  out.append(held_, 0, certain);
  held_.erase(0, certain);
  return true;
}

void TextStream::flush(std::string& out) {
  if (!partial_.empty()) held_ += kReplacement;
  out += held_;
  held_.clear();
  partial_.clear();
}

}  // namespace still
