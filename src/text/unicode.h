// UTF-8 and character classes for the pre-tokenisers, templates and the detokeniser.
// Invalid bytes decode, one at a time, as kInvalidChar of no class: nothing here fails on foreign bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace still {

// Bits of a code point's class. White space is Unicode's White_Space property, as \s in the published patterns.
enum CharClass : std::uint8_t {
  kClassLetter = 1,       // \p{L}
  kClassMark = 2,         // \p{M}
  kClassNumber = 4,       // \p{N}
  kClassPunctuation = 8,  // \p{P}
  kClassSymbol = 16,      // \p{S}
  kClassSpace = 32,       // \s
  kClassNewline = 64,     // \r or \n (always with kClassSpace)
};

inline constexpr char32_t kInvalidChar = 0xffffffff;

struct DecodedChar {
  char32_t code = kInvalidChar;
  int size = 0;  // bytes; 0 only at the end of the text
};

// The character that starts at `pos`. Overlong forms, surrogates and values above U+10FFFF are invalid (one byte each).
DecodedChar decode_char(std::string_view text, std::size_t pos);

// Bytes that a sequence with this first byte has (1 to 4); 0 for a byte that cannot start one.
int utf8_length(unsigned char first);

std::uint8_t char_class(char32_t code);
bool is_word_char(char32_t code);  // \w: letters, marks, decimal digits, connector punctuation

void append_utf8(std::string& out, char32_t code);

bool is_valid_utf8(std::string_view text);

// Unicode normalisation form C. Text that is not valid UTF-8 comes back unchanged.
std::string normalize_nfc(std::string_view text);

}  // namespace still
