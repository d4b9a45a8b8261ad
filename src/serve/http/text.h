// Small texts of HTTP: percent-encoding, queries, header words, dates. Pure functions over bytes that nobody vouches
// for.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace still {

bool equals_without_case(std::string_view a, std::string_view b);
std::string to_lower(std::string_view text);
std::string_view trim_spaces(std::string_view text);  // blanks and tabs
// Whether `word` is one of the comma-separated words of a header's value, without case.
bool has_word(std::string_view value, std::string_view word);

// %xx undone; nothing where a '%' is not followed by two hex digits, or a control character (NUL too) comes out.
std::optional<std::string> decode_percent(std::string_view text, bool plus_is_space);

struct HttpTarget {
  std::string path;  // begins with '/', or is "*"
  std::vector<std::pair<std::string, std::string>> query;
};
// A request target: "/path?a=b&c", "http://host/path", or "*". Nothing if it is none, or its encoding is broken.
std::optional<HttpTarget> parse_target(std::string_view target);

// "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110, section 5.6.7).
std::string http_date(std::chrono::system_clock::time_point time);
std::string_view reason_phrase(int status);  // "Not Found"; empty for an unknown status

// Without what would end a header line: CR, LF, NUL become blanks.
std::string header_safe(std::string_view text);

}  // namespace still
