// See tool_call_parser.h. held_ is cut at the first place where a call may begin; from there a reader per format says
// whether it is one, is none, or needs more text.
#include "text/tool_call_parser.h"

#include <algorithm>
#include <optional>

#include "base/json.h"

namespace still {
namespace {

#define STILL_MARK(text) "<\xef\xbd\x9c" text "\xef\xbd\x9c>"
#define STILL_JOIN "\xe2\x96\x81"
constexpr std::string_view kCallsBegin = STILL_MARK("tool" STILL_JOIN "calls" STILL_JOIN "begin");
constexpr std::string_view kCallsEnd = STILL_MARK("tool" STILL_JOIN "calls" STILL_JOIN "end");
constexpr std::string_view kCallBegin = STILL_MARK("tool" STILL_JOIN "call" STILL_JOIN "begin");
constexpr std::string_view kCallEnd = STILL_MARK("tool" STILL_JOIN "call" STILL_JOIN "end");
constexpr std::string_view kSeparator = STILL_MARK("tool" STILL_JOIN "sep");
constexpr std::string_view kHermesBegin = "<tool_call>", kHermesEnd = "</tool_call>";
constexpr std::string_view kPythonTag = "<|python_tag|>";
constexpr std::string_view kToolCalls = "[TOOL_CALLS]", kArgs = "[ARGS]", kCallId = "[CALL_ID]";
constexpr std::string_view kFence = "```", kJson = "json";
constexpr std::string_view kBlanks = " \t\r\n";
constexpr std::size_t kMaxName = 256;

std::size_t skip_spaces(std::string_view text, std::size_t pos) {
  return std::min(text.find_first_not_of(kBlanks, pos), text.size());
}

// The text has `word` at `pos`; or ends before that is known.
enum class Match : std::uint8_t { kYes, kNo, kUnknown };
Match match(std::string_view text, std::size_t pos, std::string_view word) {
  const std::string_view rest = text.substr(std::min(pos, text.size()), word.size());
  if (!word.starts_with(rest)) return Match::kNo;
  return rest.size() == word.size() ? Match::kYes : Match::kUnknown;
}

// Behind the JSON string that begins at `pos`; npos where it does not end.
std::size_t string_end(std::string_view text, std::size_t pos) {
  for (++pos; pos < text.size(); ++pos) {
    if (text[pos] == '\\')
      ++pos;
    else if (text[pos] == '"')
      return pos + 1;
  }
  return std::string_view::npos;
}

// Members of a JSON object's text that is known to be valid, each value as it is written.
struct RawMember {
  std::string key;
  std::string_view value;
};
std::vector<RawMember> raw_members(std::string_view text) {
  std::vector<RawMember> members;
  std::size_t pos = skip_spaces(text, 0) + 1;
  while (true) {
    pos = skip_spaces(text, pos);
    if (pos >= text.size() || text[pos] != '"') return members;
    const std::size_t key_end = string_end(text, pos);
    const auto key = parse_json(text.substr(pos, key_end - pos), "key");
    pos = skip_spaces(text, skip_spaces(text, key_end) + 1);
    const std::size_t begin = pos;
    int depth = 0;
    for (; pos < text.size(); ++pos) {
      const char c = text[pos];
      if (c == '"') {
        pos = string_end(text, pos) - 1;
      } else if (c == '{' || c == '[') {
        ++depth;
      } else if (c == '}' || c == ']') {
        if (--depth < 0) break;
      } else if (c == ',' && depth == 0) {
        break;
      }
    }
    std::string_view value = text.substr(begin, pos - begin);
    value = value.substr(0, value.find_last_not_of(kBlanks) + 1);
    members.push_back({key && key->is_string() ? std::string(key->get_string()) : std::string(), value});
    ++pos;  // the comma
  }
}

bool is_json_object(std::string_view text) {
  const auto value = parse_json(text, "arguments");
  return value && value->is_object();
}

std::string_view trim(std::string_view text) {
  const std::size_t begin = skip_spaces(text, 0);
  return text.substr(begin, text.find_last_not_of(kBlanks) + 1 - std::min(begin, text.find_last_not_of(kBlanks) + 1));
}

struct RawCall {
  std::string id, name, arguments;
};

// {"name": ..., "arguments" or "parameters": {...}}, perhaps inside "function".
std::optional<RawCall> read_call_object(std::string_view json, int depth = 0) {
  if (depth == 0 && !is_json_object(json)) return std::nullopt;
  RawCall call;
  std::string_view arguments;
  for (const RawMember& member : raw_members(json)) {
    const auto as_text = [&]() -> std::string {
      const auto value = parse_json(member.value, "name");
      return value && value->is_string() ? std::string(value->get_string()) : std::string();
    };
    if (member.key == "name") {
      call.name = as_text();
    } else if (member.key == "id") {
      call.id = as_text();
    } else if (member.key == "arguments" || member.key == "parameters") {
      arguments = member.value;
    } else if (member.key == "function" && member.value.starts_with('{') && depth == 0) {
      std::optional<RawCall> inner = read_call_object(member.value, 1);
      if (inner && inner->id.empty()) inner->id = call.id;
      return inner;
    } else if (member.key == "function" && member.value.starts_with('"')) {
      call.name = as_text();
    }
  }
  if (call.name.empty()) return std::nullopt;
  if (arguments.empty() || arguments == "null") {
    call.arguments = "{}";
  } else if (arguments.starts_with('{')) {
    call.arguments = std::string(arguments);
  } else if (arguments.starts_with('"')) {  // written as a string
    const auto text = parse_json(arguments, "arguments");
    if (!text || !is_json_object(text->as_string())) return std::nullopt;
    call.arguments = std::string(text->as_string());
  } else {
    return std::nullopt;
  }
  return call;
}

}  // namespace

ToolCallFormat detect_tool_call_format(const ChatTemplate& chat_template) {
  const auto says = [&](std::string_view word) { return chat_template.mentions(word); };
  if (says(kCallsBegin) || says(kCallBegin))
    return says("```json") ? ToolCallFormat::kDeepSeek : ToolCallFormat::kDeepSeek31;
  if (says(kHermesBegin)) return ToolCallFormat::kHermes;
  if (says("[TOOL_CALLS]")) return ToolCallFormat::kMistral;
  if (says("<|python_tag|>") || (says("ipython") && says("parameters"))) return ToolCallFormat::kLlama3;
  return ToolCallFormat::kNone;
}

std::vector<std::string_view> tool_call_marks(ToolCallFormat format) {
  switch (format) {
    case ToolCallFormat::kHermes:
      return {kHermesBegin, kHermesEnd};
    case ToolCallFormat::kLlama3:
      return {kPythonTag};
    case ToolCallFormat::kDeepSeek:
    case ToolCallFormat::kDeepSeek31:
      return {kCallsBegin, kCallsEnd, kCallBegin, kCallEnd, kSeparator};
    case ToolCallFormat::kMistral:
      return {kToolCalls, kArgs, kCallId};
    default:
      return {};
  }
}

bool ToolCallParser::JsonScan::find_end(std::string_view text) {
  for (; pos < text.size(); ++pos) {
    const char c = text[pos];
    if (in_string) {
      if (is_escaped)
        is_escaped = false;
      else if (c == '\\')
        is_escaped = true;
      else if (c == '"')
        in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if ((c == '}' || c == ']') && --depth <= 0) {
      ++pos;
      return true;
    }
  }
  return false;
}

std::vector<ToolCallEvent> ToolCallParser::feed(std::string_view text) {
  Events events;
  held_ += text;
  run(events, false);
  return events;
}

std::vector<ToolCallEvent> ToolCallParser::finish() {
  Events events;
  run(events, true);
  put_content(events, held_.size());
  return events;
}

void ToolCallParser::drop(std::size_t n_bytes) {
  held_.erase(0, n_bytes);
}

void ToolCallParser::put_content(Events& events, std::size_t n_bytes) {
  if (n_bytes == 0) return;
  has_content_ |= std::string_view(held_).substr(0, n_bytes).find_first_not_of(kBlanks) != std::string_view::npos;
  if (!events.empty() && events.back().kind == ToolCallEvent::Kind::kContent) {
    events.back().text.append(held_, 0, n_bytes);
  } else {
    ToolCallEvent event;
    event.text = held_.substr(0, n_bytes);
    events.push_back(std::move(event));
  }
  drop(n_bytes);
}

bool ToolCallParser::put_named_call(Events& events, std::string_view name, std::string_view arguments,
                                    std::string_view id) {
  if (name.empty() || name.size() > kMaxName) return false;
  ToolCallEvent event;
  event.kind = ToolCallEvent::Kind::kCall;
  event.index = n_calls_++;
  event.id = std::string(id);
  event.name = std::string(name);
  event.arguments = std::string(arguments);
  events.push_back(std::move(event));
  return true;
}

bool ToolCallParser::put_call(Events& events, std::string_view json) {
  const std::optional<RawCall> call = read_call_object(json);
  return call && put_named_call(events, call->name, call->arguments, call->id);
}

// Where held_ may begin a call, or its size; `held`: bytes at the end that may be the beginning of an opener.
std::size_t ToolCallParser::find_opener(std::size_t& held) const {
  held = 0;
  const auto find_mark = [&](std::initializer_list<std::string_view> marks) {
    std::size_t first = held_.size();
    for (const std::string_view mark : marks) {
      first = std::min(first, held_.find(mark));
      for (std::size_t n = std::min(mark.size() - 1, held_.size()); n > held; --n)
        if (held_.ends_with(mark.substr(0, n))) {
          held = n;
          break;
        }
    }
    return std::min(first, held_.size());
  };
  // JSON counts only as the beginning of the answer, or behind another call.
  const std::size_t word = skip_spaces(held_, 0);
  const bool may_be_bare = is_at_beginning() && word < held_.size();
  switch (format_) {
    case ToolCallFormat::kHermes:
      if (may_be_bare && !names_.empty() && (held_[word] == '{' || match(held_, word, kFence) != Match::kNo))
        return word;
      return find_mark({kHermesBegin});
    case ToolCallFormat::kLlama3:
      if (may_be_bare && held_[word] == '{') return word;
      return find_mark({kPythonTag});
    case ToolCallFormat::kMistral:
      if (may_be_bare && held_[word] == '[' && match(held_, word, kToolCalls) == Match::kNo) return word;
      return find_mark({kToolCalls});
    case ToolCallFormat::kDeepSeek:
    case ToolCallFormat::kDeepSeek31:
      return find_mark({kCallsBegin, kCallBegin});
    default:
      return held_.size();
  }
}

void ToolCallParser::run(Events& events, bool is_last) {
  while (!held_.empty()) {
    if (in_block_) {
      const Outcome outcome = read_block(events, is_last);
      if (outcome == Outcome::kNeedsMore) {
        if (!is_last) return;
        in_block_ = false;
        put_content(events, held_.size());
        return;
      }
      in_block_ = false;
      if (outcome == Outcome::kCalls) {
        after_call_ = true;
      } else {
        after_call_ = false;
        // What looked like an opener is text; so is what follows, until the next opener.
        has_content_ = true;
        put_content(events, 1);
      }
      continue;
    }
    if (after_call_) {
      // Llama's calls stand between semicolons.
      drop(std::min(held_.find_first_not_of(format_ == ToolCallFormat::kLlama3 ? " \t\r\n;" : kBlanks), held_.size()));
      if (held_.empty()) return;
    }
    std::size_t held = 0;
    const std::size_t at = find_opener(held);
    if (at < held_.size()) {
      if (at > 0) after_call_ = false;
      put_content(events, at);
      in_block_ = true;
      scan_.reset(0);
      continue;
    }
    const std::size_t n = is_last ? held_.size() : held_.size() - held;
    // White space at the beginning waits with what follows only where the format looks there.
    if (n > 0) after_call_ = false;
    put_content(events, n);
    return;
  }
}

ToolCallParser::Outcome ToolCallParser::read_block(Events& events, bool is_last) {
  switch (format_) {
    case ToolCallFormat::kHermes:
      return held_[0] == '<' ? read_hermes(events, is_last) : read_untagged(events, is_last);
    case ToolCallFormat::kLlama3:
      return read_bare_json(events);
    case ToolCallFormat::kMistral:
      return read_mistral(events);
    default:
      return read_deepseek(events, is_last);
  }
}

ToolCallParser::Outcome ToolCallParser::read_hermes(Events& events, bool is_last) {
  const std::size_t begin = skip_spaces(held_, kHermesBegin.size());
  if (begin == held_.size()) return Outcome::kNeedsMore;
  if (held_[begin] != '{') return Outcome::kNoCall;
  if (scan_.pos < begin) scan_.reset(begin);
  if (scan_.depth > 0 || scan_.pos == begin) {
    if (!scan_.find_end(held_)) return Outcome::kNeedsMore;
  }
  const std::size_t close = skip_spaces(held_, scan_.pos);
  const Match closes = match(held_, close, kHermesEnd);
  if (closes == Match::kUnknown && !is_last) return Outcome::kNeedsMore;
  if (!put_call(events, std::string_view(held_).substr(begin, scan_.pos - begin))) return Outcome::kNoCall;
  drop(closes == Match::kYes ? close + kHermesEnd.size() : scan_.pos);
  return Outcome::kCalls;
}

// An object whose first key is none of a call's is none.
bool ToolCallParser::may_be_call(std::size_t brace) const {
  const std::size_t key = skip_spaces(held_, brace + 1);
  if (key >= held_.size()) return true;
  if (held_[key] != '"') return false;
  const std::string_view rest = std::string_view(held_).substr(key);
  constexpr std::string_view kKeys[] = {"\"name\"",       "\"type\"",      "\"function\"",
                                        "\"parameters\"", "\"arguments\"", "\"id\""};
  return std::ranges::any_of(kKeys, [&](std::string_view word) { return match(rest, 0, word) != Match::kNo; });
}

ToolCallParser::Outcome ToolCallParser::read_untagged(Events& events, bool is_last) {
  const Match fence = match(held_, 0, kFence);
  if (fence == Match::kUnknown) return Outcome::kNeedsMore;
  std::size_t begin = 0;
  if (fence == Match::kYes) {
    const Match language = match(held_, kFence.size(), kJson);
    if (language == Match::kUnknown) return Outcome::kNeedsMore;
    begin = skip_spaces(held_, kFence.size() + (language == Match::kYes ? kJson.size() : 0));
  }
  if (begin == held_.size()) return Outcome::kNeedsMore;
  if (held_[begin] != '{' || !may_be_call(begin)) return Outcome::kNoCall;
  if (scan_.pos < begin) scan_.reset(begin);
  if ((scan_.depth > 0 || scan_.pos == begin) && !scan_.find_end(held_)) return Outcome::kNeedsMore;
  std::size_t end = scan_.pos;
  if (fence == Match::kYes) {
    const std::size_t close = skip_spaces(held_, end);
    const Match closes = match(held_, close, kFence);
    if (closes == Match::kUnknown && !is_last) return Outcome::kNeedsMore;
    if (closes == Match::kYes) end = close + kFence.size();
  }
  const std::optional<RawCall> call = read_call_object(std::string_view(held_).substr(begin, scan_.pos - begin));
  if (!call || std::ranges::find(names_, call->name) == names_.end()) return Outcome::kNoCall;
  if (!put_named_call(events, call->name, call->arguments, call->id)) return Outcome::kNoCall;
  drop(end);
  return Outcome::kCalls;
}

// Llama 3: an object, perhaps behind the tag, perhaps followed by others behind a semicolon.
ToolCallParser::Outcome ToolCallParser::read_bare_json(Events& events) {
  const std::size_t tag = held_.starts_with(kPythonTag) ? kPythonTag.size() : 0;
  const std::size_t begin = skip_spaces(held_, tag);
  if (begin == held_.size()) return Outcome::kNeedsMore;
  if (held_[begin] != '{') return Outcome::kNoCall;
  if (!may_be_call(begin)) return Outcome::kNoCall;
  if (scan_.pos < begin) scan_.reset(begin);
  if (!scan_.find_end(held_)) return Outcome::kNeedsMore;
  const std::size_t end = scan_.pos;
  if (!put_call(events, std::string_view(held_).substr(begin, end - begin))) return Outcome::kNoCall;
  drop(end);
  return Outcome::kCalls;
}

ToolCallParser::Outcome ToolCallParser::read_mistral(Events& events) {
  const std::string_view text = held_;
  const bool has_mark = text.starts_with(kToolCalls);
  std::size_t begin = skip_spaces(text, has_mark ? kToolCalls.size() : 0);
  if (begin == text.size()) return Outcome::kNeedsMore;
  if (text[begin] == '[' && match(text, begin, kArgs) != Match::kYes) {
    const std::size_t first = skip_spaces(text, begin + 1);
    if (first == text.size()) return Outcome::kNeedsMore;
    if (text[first] != '{') return Outcome::kNoCall;
    if (scan_.pos < begin) scan_.reset(begin);
    if (!scan_.find_end(text)) return Outcome::kNeedsMore;
    const std::string_view list = text.substr(begin, scan_.pos - begin);
    const auto parsed = parse_json(list, "calls");
    if (!parsed || !parsed->is_array()) return Outcome::kNoCall;
    // The objects as they are written, one after another; all must be calls.
    std::vector<RawCall> calls;
    for (std::size_t pos = 1; pos < list.size();) {
      pos = list.find_first_not_of(" \t\r\n,", pos);
      if (pos == std::string_view::npos || list[pos] == ']') break;
      JsonScan scan{.pos = pos};
      if (list[pos] != '{' || !scan.find_end(list)) return Outcome::kNoCall;
      std::optional<RawCall> call = read_call_object(list.substr(pos, scan.pos - pos));
      if (!call || call->name.size() > kMaxName) return Outcome::kNoCall;
      calls.push_back(std::move(*call));
      pos = scan.pos;
    }
    for (const RawCall& call : calls) put_named_call(events, call.name, call.arguments, call.id);
    drop(scan_.pos);
    return Outcome::kCalls;
  }
  if (!has_mark) return Outcome::kNoCall;
  // name, perhaps [CALL_ID]id, [ARGS], an object
  const std::size_t args = text.find(kArgs, begin);
  const std::size_t brace = text.find('{', begin);
  if (args == std::string_view::npos || (brace != std::string_view::npos && brace < args)) {
    // Without [ARGS], as where it is hidden: name{...}
    if (brace == std::string_view::npos) return text.size() - begin > kMaxName ? Outcome::kNoCall : Outcome::kNeedsMore;
  }
  const bool has_args = args != std::string_view::npos && args < brace;
  const std::size_t object = has_args ? skip_spaces(text, args + kArgs.size()) : brace;
  std::string_view name = text.substr(begin, (has_args ? args : brace) - begin), id;
  if (const std::size_t mark = name.find(kCallId); mark != std::string_view::npos) {
    id = trim(name.substr(mark + kCallId.size()));
    name = name.substr(0, mark);
  }
  name = trim(name);
  if (name.empty() || name.size() > kMaxName || name.find_first_of("\n\"[") != std::string_view::npos)
    return Outcome::kNoCall;
  if (object >= text.size()) return Outcome::kNeedsMore;
  if (text[object] != '{') return Outcome::kNoCall;
  if (scan_.pos < object) scan_.reset(object);
  if (!scan_.find_end(text)) return Outcome::kNeedsMore;
  const std::string_view arguments = text.substr(object, scan_.pos - object);
  if (!is_json_object(arguments) || !put_named_call(events, name, arguments, id)) return Outcome::kNoCall;
  drop(scan_.pos);
  return Outcome::kCalls;
}

ToolCallParser::Outcome ToolCallParser::read_deepseek(Events& events, bool is_last) {
  const std::string_view text = held_;
  const std::size_t list = text.starts_with(kCallsBegin) ? kCallsBegin.size() : 0;
  const std::size_t call = skip_spaces(text, list);
  const Match begins = match(text, call, kCallBegin);
  if (begins == Match::kUnknown) return Outcome::kNeedsMore;
  if (begins == Match::kNo) return Outcome::kNoCall;
  const std::size_t head = call + kCallBegin.size();
  const std::size_t separator = text.find(kSeparator, head);
  if (separator == std::string_view::npos)
    return text.size() - head > kMaxName + kSeparator.size() ? Outcome::kNoCall : Outcome::kNeedsMore;
  const std::size_t body = separator + kSeparator.size();
  const std::size_t brace = text.find('{', body);
  if (brace == std::string_view::npos)
    return text.size() - body > kMaxName + 16 ? Outcome::kNoCall : Outcome::kNeedsMore;
  // Between: nothing (the name stood before), or the name and a fence.
  std::string_view name = trim(text.substr(head, separator - head));
  bool is_fenced = false;
  if (const std::string_view between = trim(text.substr(body, brace - body)); !between.empty()) {
    const std::size_t line = between.find('\n');
    const std::size_t fence = between.find("```");
    if (line == std::string_view::npos || fence == std::string_view::npos || fence < line) return Outcome::kNoCall;
    name = trim(between.substr(0, line));
    is_fenced = true;
  }
  if (name.empty() || name.size() > kMaxName) return Outcome::kNoCall;
  if (scan_.pos < brace) scan_.reset(brace);
  if (scan_.depth > 0 || scan_.pos == brace) {
    if (!scan_.find_end(text)) return Outcome::kNeedsMore;
  }
  std::size_t end = skip_spaces(text, scan_.pos);
  if (is_fenced) {
    const Match fence = match(text, end, "```");
    if (fence == Match::kUnknown && !is_last) return Outcome::kNeedsMore;
    if (fence == Match::kYes) end = skip_spaces(text, end + 3);
  }
  const Match closes = match(text, end, kCallEnd);
  if (closes == Match::kUnknown && !is_last) return Outcome::kNeedsMore;
  std::size_t next = closes == Match::kYes ? end + kCallEnd.size() : end;
  const std::size_t last = skip_spaces(text, next);
  const Match ends_list = match(text, last, kCallsEnd);
  // What follows may be the end of the list, which belongs to the call, or the next call.
  if (ends_list == Match::kUnknown && last < text.size() && !is_last && match(text, last, kCallBegin) != Match::kYes)
    return Outcome::kNeedsMore;
  if (ends_list == Match::kUnknown && last == text.size() && !is_last) return Outcome::kNeedsMore;
  const std::string_view arguments = text.substr(brace, scan_.pos - brace);
  if (!is_json_object(arguments) || !put_named_call(events, name, arguments)) return Outcome::kNoCall;
  if (ends_list == Match::kYes) next = last + kCallsEnd.size();
  drop(next);
  return Outcome::kCalls;
}

}  // namespace still
