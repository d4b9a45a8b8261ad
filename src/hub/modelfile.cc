// See modelfile.h.
#include "hub/modelfile.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "hub/ascii.h"

namespace still {

namespace {

constexpr std::string_view kTriple = "\"\"\"";

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\r';
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {
    if (text_.starts_with("\xef\xbb\xbf")) text_.remove_prefix(3);
  }

  Result<Modelfile> run() {
    for (;;) {
      skip_space();
      if (pos_ >= text_.size()) break;
      if (text_[pos_] == '#') {
        skip_line();
        continue;
      }
      STILL_TRY_STATUS(read_instruction());
    }
    if (result_.from.empty()) return error(Code::kInvalidArgument, "the Modelfile has no FROM line");
    return std::move(result_);
  }

 private:
  void skip_space() {
    while (pos_ < text_.size() && (is_blank(text_[pos_]) || text_[pos_] == '\n')) advance();
  }
  void skip_blanks() {
    while (pos_ < text_.size() && is_blank(text_[pos_])) ++pos_;
  }
  void skip_line() {
    while (pos_ < text_.size() && text_[pos_] != '\n') ++pos_;
  }
  void advance() {
    if (text_[pos_++] == '\n') ++line_;
  }

  std::string read_word() {
    const std::size_t begin = pos_;
    while (pos_ < text_.size() && !is_blank(text_[pos_]) && text_[pos_] != '\n') ++pos_;
    return std::string(text_.substr(begin, pos_ - begin));
  }

  // The rest of the line, or a quoted value.
  Result<std::string> read_value(std::string_view keyword) {
    skip_blanks();
    const int line = line_;
    if (text_.substr(pos_).starts_with(kTriple)) {
      const std::size_t end = text_.find(kTriple, pos_ + kTriple.size());
      if (end == std::string_view::npos)
        return error(Code::kInvalidArgument, "line {}: {}: a value in \"\"\" does not end", line, keyword);
      std::string value(text_.substr(pos_ + kTriple.size(), end - pos_ - kTriple.size()));
      line_ += static_cast<int>(std::ranges::count(value, '\n'));
      pos_ = end + kTriple.size();
      STILL_TRY_STATUS(expect_line_end(keyword));
      return value;
    }
    if (pos_ < text_.size() && text_[pos_] == '"') {
      // A quoted value ends at the last quote of its line; what looks quoted but goes on is taken as it is.
      const std::size_t line_end = std::min(text_.find('\n', pos_), text_.size());
      const std::string_view rest = trim(text_.substr(pos_, line_end - pos_));
      if (rest.size() >= 2 && rest.ends_with('"')) {
        pos_ = line_end;
        return std::string(rest.substr(1, rest.size() - 2));
      }
      const std::size_t end = text_.find('"', pos_ + 1);
      if (end == std::string_view::npos || end < line_end)
        return error(Code::kInvalidArgument, "line {}: {}: a quoted value with text behind it, or without its end",
                     line, keyword);
      std::string value(text_.substr(pos_ + 1, end - pos_ - 1));
      line_ += static_cast<int>(std::ranges::count(value, '\n'));
      pos_ = end + 1;
      STILL_TRY_STATUS(expect_line_end(keyword));
      return value;
    }
    const std::size_t begin = pos_;
    skip_line();
    const std::string_view value = trim(text_.substr(begin, pos_ - begin));
    if (value.empty()) return error(Code::kInvalidArgument, "line {}: {} without a value", line, keyword);
    return std::string(value);
  }

  Status expect_line_end(std::string_view keyword) {
    skip_blanks();
    if (pos_ < text_.size() && text_[pos_] != '\n')
      return error(Code::kInvalidArgument, "line {}: {}: text behind the closing quotes", line_, keyword);
    return ok();
  }

  Status read_instruction() {
    const int line = line_;
    const std::string word = read_word();
    const std::string keyword = to_lower(word);
    constexpr std::array<std::string_view, 11> kKeywords = {"from",    "parameter", "template", "system",
                                                            "adapter", "license",   "message",  "requires",
                                                            "draft",   "renderer",  "parser"};
    if (std::ranges::find(kKeywords, keyword) == kKeywords.end())
      return error(
          Code::kInvalidArgument,
          "line {}: unknown instruction \"{}\": there are FROM, PARAMETER, TEMPLATE, SYSTEM, ADAPTER, LICENSE, "
          "MESSAGE, REQUIRES",
          line, word.substr(0, 40));
    if (keyword == "parameter" || keyword == "message") {
      skip_blanks();
      const std::string name = to_lower(read_word());
      if (name.empty()) return error(Code::kInvalidArgument, "line {}: {} without a name", line, word);
      STILL_TRY(const std::string value, read_value(word));
      if (keyword == "message") {
        if (name != "system" && name != "user" && name != "assistant")
          return error(Code::kInvalidArgument, "line {}: MESSAGE {}: the role must be system, user or assistant", line,
                       name);
        result_.messages.push_back(JsonObject{{"role", name}, {"content", value}});
      } else if (name == "stop") {
        Json& list = result_.parameters[name];
        if (!list.is_array()) list = JsonArray();
        list.get_array().emplace_back(value);
      } else {
        result_.parameters[name] = parse_parameter(name, value);
      }
      return ok();
    }
    STILL_TRY(std::string value, read_value(word));
    if (keyword == "from") {
      result_.from.push_back(std::move(value));
    } else if (keyword == "adapter") {
      result_.adapters.push_back(std::move(value));
    } else if (keyword == "template") {
      result_.template_text = std::move(value);
    } else if (keyword == "system") {
      result_.system = std::move(value);
    } else if (keyword == "license") {
      result_.licences.push_back(std::move(value));
    } else if (keyword == "requires") {
      result_.requires_version = std::move(value);
    } else {
      result_.other[keyword] = value;
    }
    return ok();
  }

  std::string_view text_;
  std::size_t pos_ = 0;
  int line_ = 1;
  Modelfile result_;
};

std::string number_text(const Json& value) {
  if (value.is_string()) return std::string(value.get_string());
  if (value.is_double()) return fmt::format("{}", value.get_double());
  return to_json(value);
}

}  // namespace

Result<Modelfile> parse_modelfile(std::string_view text) {
  return Parser(text).run();
}

Json parse_parameter(std::string_view name, std::string_view value) {
  if (name == "stop") return Json(value);
  if (value == "true") return true;
  if (value == "false") return false;
  std::int64_t integer = 0;
  const char* end = value.data() + value.size();
  if (const auto [stop, problem] = std::from_chars(value.data(), end, integer); problem == std::errc() && stop == end)
    return integer;
  double number = 0;
  if (const auto [stop, problem] = std::from_chars(value.data(), end, number);
      problem == std::errc() && stop == end && std::isfinite(number))
    return number;
  return Json(value);
}

std::string write_modelfile(const Modelfile& modelfile) {
  std::string out;
  const auto put = [&](std::string_view keyword, std::string_view value) {
    // A value that ends in a quote would lend it to the three that close it.
    if (value.find(kTriple) != std::string_view::npos || value.ends_with('"')) {
      out += fmt::format("# {}: left out, it holds quotes that cannot be written\n", keyword);
    } else {
      out += fmt::format("{} \"\"\"{}\"\"\"\n", keyword, value);
    }
  };
  // One line where that reads back to the same.
  const auto put_short = [&](std::string_view keyword, std::string_view value) {
    const bool is_plain =
        !value.empty() && trim(value) == value && value.find('\n') == std::string_view::npos && value.front() != '"';
    if (is_plain) {
      out += fmt::format("{} {}\n", keyword, value);
    } else {
      put(keyword, value);
    }
  };
  for (const std::string& from : modelfile.from) put_short("FROM", from);
  for (const std::string& adapter : modelfile.adapters) put_short("ADAPTER", adapter);
  if (!modelfile.template_text.empty()) put("TEMPLATE", modelfile.template_text);
  if (!modelfile.system.empty()) put("SYSTEM", modelfile.system);
  for (const auto& [name, value] : modelfile.parameters) {
    const std::string keyword = fmt::format("PARAMETER {}", std::string_view(name));
    if (const JsonArray* list = value.if_array()) {
      for (const Json& one : *list) put_short(keyword, number_text(one));
    } else {
      put_short(keyword, number_text(value));
    }
  }
  for (const auto& [name, value] : modelfile.other) {
    std::string keyword(name);
    std::ranges::transform(keyword, keyword.begin(),
                           [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    put_short(keyword, number_text(value));
  }
  if (!modelfile.requires_version.empty()) put_short("REQUIRES", modelfile.requires_version);
  for (const Json& message : modelfile.messages) {
    const JsonObject* object = message.if_object();
    const Json* role = object != nullptr ? object->if_contains("role") : nullptr;
    const Json* content = object != nullptr ? object->if_contains("content") : nullptr;
    if (role == nullptr || content == nullptr || !role->is_string() || !content->is_string()) continue;
    put_short(fmt::format("MESSAGE {}", std::string_view(role->get_string())), content->get_string());
  }
  for (const std::string& licence : modelfile.licences) put("LICENSE", licence);
  return out;
}

std::string format_parameters(const JsonObject& parameters) {
  std::string out;
  const auto put = [&](std::string_view name, const Json& value) {
    const std::string text = value.is_string() ? to_json(value) : number_text(value);
    out += fmt::format("{}{:<30} {}", out.empty() ? "" : "\n", name, text);
  };
  for (const auto& [name, value] : parameters) {
    if (const JsonArray* list = value.if_array()) {
      for (const Json& one : *list) put(name, one);
    } else {
      put(name, value);
    }
  }
  return out;
}

}  // namespace still
