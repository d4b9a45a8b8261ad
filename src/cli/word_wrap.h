// WordWrap: text that arrives in pieces, broken between words at a terminal's right edge. A word that turns out not to
// fit is taken back with escape sequences and goes on in the next line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace still {

class WordWrap {
 public:
  // Columns of the terminal; the last one stays empty, where terminals differ in what a character there does. Below 20:
  // nothing is wrapped.
  explicit WordWrap(int width) : limit_(width < 20 ? 0 : width - 1) {}

  // What to write for the next piece of valid UTF-8. Wide characters (CJK) may be parted anywhere.
  std::string wrap(std::string_view text);

 private:
  int limit_;
  int column_ = 0;
  std::string word_;  // of the current line's end, already written
  int word_width_ = 0;
};

}  // namespace still
