// Message: a sentence or a label of a plan in English and in Chinese. The English format is written where it is used;
// the Chinese one is looked up by it in data/plan/zh.json, so that code stays ASCII and translators read one file.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace still {

// The Chinese format of an English one; the English one itself where the catalogue has none.
std::string_view chinese_format(std::string_view english);

struct Message {
  std::string english, chinese;
  bool empty() const { return english.empty(); }
  const std::string& in(bool is_chinese) const { return is_chinese ? chinese : english; }
};

// A Chinese format that does not take these arguments (a wrong catalogue; message_test.cc finds it) gives the English
// text.
template <class... Args>
Message message(fmt::format_string<Args...> format, Args&&... args) {
  const fmt::string_view english = format;
  Message result{.english = fmt::vformat(english, fmt::make_format_args(args...))};
  try {
    result.chinese = fmt::vformat(chinese_format({english.data(), english.size()}), fmt::make_format_args(args...));
  } catch (const fmt::format_error&) {
    result.chinese = result.english;
  }
  return result;
}
// A finished text, the same in both languages: a name, or an error of another module.
inline Message plain_message(std::string text) {
  return {.english = text, .chinese = text};
}

}  // namespace still
