// Tool calls out of the text that a model produces, in the formats that chat templates teach it. Streaming: text that
// cannot belong to a call is given on at once, text that may be the beginning of one is held back; what turns out to be
// no call comes out as content again. Nothing is lost but the marks of good calls and the white space between and after
// them. Where a vocabulary has the marks as control tokens, the caller must feed their text too (tool_call_marks).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/chat_template.h"

namespace still {

enum class ToolCallFormat : std::uint8_t {
  kNone,        // all text is content
  kHermes,      // Qwen2.5, Qwen3, Hermes: <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>
  kLlama3,      // {"name": ..., "parameters": {...}} as the whole answer, perhaps behind <|python_tag|>
  kDeepSeek,    // V3, R1: marks, type, name, and the arguments in a json fence
  kDeepSeek31,  // V3.1: marks, name, arguments
  kMistral,     // [TOOL_CALLS] [{"name": ..., "arguments": {...}}], or [TOOL_CALLS]name[ARGS]{...}
};

// By the marks in the template's text.
ToolCallFormat detect_tool_call_format(const ChatTemplate& chat_template);
// The texts that begin or divide calls; tokens spelled so must not be hidden from the parser.
std::vector<std::string_view> tool_call_marks(ToolCallFormat format);

struct ToolCallEvent {
  enum class Kind : std::uint8_t { kContent, kCall };
  Kind kind = Kind::kContent;
  std::string text;       // kContent, not empty
  int index = 0;          // kCall: 0, 1, ...
  std::string id;         // as the model gave it, mostly empty
  std::string name;       // not empty
  std::string arguments;  // a JSON object's text as the model wrote it: keys and numbers as they were
};

// One answer; not thread-safe.
class ToolCallParser {
 public:
  static ToolCallParser for_template(const ChatTemplate& chat_template) {
    return ToolCallParser(detect_tool_call_format(chat_template));
  }
  // names: of the functions that may be called. With them kHermes also takes what smaller models of that family write,
  // at the beginning of an answer: the object without its tags, perhaps in a json fence, where it calls one of these.
  explicit ToolCallParser(ToolCallFormat format, std::vector<std::string> names = {})
      : format_(format), names_(std::move(names)) {}

  // Any pieces; a piece may end inside a character where the caller's texts do.
  std::vector<ToolCallEvent> feed(std::string_view text);
  std::vector<ToolCallEvent> finish();  // the text has ended

  ToolCallFormat format() const { return format_; }
  int n_calls() const { return n_calls_; }

 private:
  using Events = std::vector<ToolCallEvent>;
  enum class Outcome : std::uint8_t { kCalls, kNeedsMore, kNoCall };
  // Finds the end of a JSON value in text that grows; looks at each byte once.
  struct JsonScan {
    std::size_t pos = 0;
    int depth = 0;
    bool in_string = false, is_escaped = false;
    void reset(std::size_t begin) { *this = JsonScan{.pos = begin}; }
    bool find_end(std::string_view text);  // pos is behind the value then
  };

  void run(Events& events, bool is_last);
  void put_content(Events& events, std::size_t n_bytes);
  bool put_call(Events& events, std::string_view json);
  bool put_named_call(Events& events, std::string_view name, std::string_view arguments, std::string_view id = {});
  std::size_t find_opener(std::size_t& held) const;
  bool is_at_beginning() const { return !has_content_; }

  Outcome read_block(Events& events, bool is_last);
  Outcome read_hermes(Events& events, bool is_last);
  Outcome read_bare_json(Events& events);
  Outcome read_untagged(Events& events, bool is_last);
  bool may_be_call(std::size_t brace) const;
  Outcome read_deepseek(Events& events, bool is_last);
  Outcome read_mistral(Events& events);
  void drop(std::size_t n_bytes);

  ToolCallFormat format_;
  std::vector<std::string> names_;
  std::string held_;          // not yet given on
  bool in_block_ = false;     // held_ begins with an opener
  bool after_call_ = false;   // white space is dropped
  bool has_content_ = false;  // other than white space
  JsonScan scan_;
  int n_calls_ = 0;
};

}  // namespace still
