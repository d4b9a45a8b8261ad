#include "engine/text_stream.h"

#include <algorithm>

namespace still {

void TextStream::append_characters(std::string_view bytes) {
  const std::size_t first = held_.size();
  characters_.add(bytes, held_);
  if (!is_skipping_newlines_ || held_.size() == first) return;
  const std::size_t text = held_.find_first_not_of('\n', first);
  held_.erase(first, text == std::string::npos ? text : text - first);
  is_skipping_newlines_ = text == std::string::npos;
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
    characters_ = {};
    return false;
  }
  const std::size_t certain = possible_stop();
  out.append(held_, 0, certain);
  held_.erase(0, certain);
  return true;
}

void TextStream::flush(std::string& out) {
  held_ += characters_.flush();
  out += held_;
  held_.clear();
}

}  // namespace still
