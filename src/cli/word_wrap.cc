#include "cli/word_wrap.h"

#include <fmt/format.h>
#include <utf8proc.h>

namespace still {

std::string WordWrap::wrap(std::string_view text) {
  if (limit_ == 0) return std::string(text);
  constexpr int kTabWidth = 8;
  std::string out;
  const auto end_word = [&] {
    word_.clear();
    word_width_ = 0;
  };
  const auto new_line = [&] {
    out += '\n';
    column_ = 0;
  };
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (std::size_t i = 0; i < text.size();) {
    utf8proc_int32_t code_point = -1;
    const utf8proc_ssize_t n = utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code_point);
    const std::string_view character = text.substr(i, n > 0 ? static_cast<std::size_t>(n) : 1);
    i += character.size();
    if (character == "\n") {
      new_line();
      end_word();
      continue;
    }
    if (character == " " || character == "\t") {
      const int next = character == " " ? column_ + 1 : (column_ / kTabWidth + 1) * kTabWidth;
      end_word();
      if (next > limit_) {
        new_line();  // the space at the edge is the line's end
      } else {
        out += character;
        column_ = next;
      }
      continue;
    }
    const int width = n > 0 ? utf8proc_charwidth(code_point) : 1;
    const bool is_wide = width > 1;
    if (is_wide) end_word();
    if (column_ + width > limit_) {
      if (word_width_ > 0 && word_width_ < column_) {
        out += fmt::format("\033[{}D\033[K", word_width_);
        new_line();
        out += word_;
        column_ = word_width_;
      } else {
        new_line();
        end_word();
      }
    }
    out += character;
    column_ += width;
    if (!is_wide) {
      word_ += character;
      word_width_ += width;
    }
  }
  return out;
}

}  // namespace still
