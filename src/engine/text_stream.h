// TextStream: the bytes of one answer's tokens to text that may be shown: whole UTF-8 characters only, without the
// newlines that follow a thinking tag, and not beyond a stop string. What may still turn out to be the beginning of a
// character or of a stop string is held back.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/detokenizer.h"

namespace still {

class TextStream {
 public:
  TextStream() = default;
  explicit TextStream(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Appends to `out` what became certain. with_stops: these bytes are looked through for stop strings. False: a stop
  // string is complete; `out` ends before it, and nothing may be pushed any more.
  bool push(std::string_view bytes, bool with_stops, std::string& out);
  // The end of a channel or of the answer: appends what was held back; half a character becomes U+FFFD.
  void flush(std::string& out);
  // The next newlines are not text.
  void skip_newlines() { is_skipping_newlines_ = true; }
  const std::string& matched_stop() const { return matched_; }

 private:
  void append_characters(std::string_view bytes);  // to held_
  std::size_t find_stop(std::size_t& length) const;
  std::size_t possible_stop() const;  // where the longest suffix of held_ starts that begins a stop string

  std::vector<std::string> stops_;
  Utf8Stream characters_;
  std::string held_;
  std::string matched_;
  bool is_skipping_newlines_ = false;
};

}  // namespace still
