// Separates reasoning from answer in the stream of generated tokens. The tags are the tokens <think> and </think> of
// the vocabulary where it has them, so text that merely looks like a tag stays text; otherwise they are looked for in
// the text. Rules: the first </think> ends the reasoning; without one everything is reasoning; <think> opens it only
// before any other text; line ends at the beginning of reasoning and of the answer after it are dropped.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace still {

struct ThinkEvent {
  enum class Kind { kReasoning, kContent };
  Kind kind;
  std::string text;  // whole characters, not empty
};

// The tag tokens of a vocabulary; absent where it has none.
struct ThinkTokens {
  std::optional<TokenId> begin, end;
  bool are_tokens() const { return begin && end; }
};
ThinkTokens find_think_tokens(const Tokenizer& tokenizer);

// Whether generation after this prompt goes on inside an open <think> (the template or the caller prefilled it).
bool prompt_ends_in_thinking(const Tokenizer& tokenizer, std::span<const TokenId> prompt);

// One per sequence; keeps a reference to the tokenizer; not thread-safe.
class ThinkSplitter {
 public:
  ThinkSplitter(const Tokenizer& tokenizer, bool starts_inside);

  std::vector<ThinkEvent> add(TokenId id);
  std::vector<ThinkEvent> finish();  // what was held back

  bool is_inside() const { return state_ == State::kThinking; }
  bool was_closed() const { return was_closed_; }                        // a </think> came
  std::int64_t n_thinking_tokens() const { return n_thinking_tokens_; }  // tags not counted

 private:
  enum class State { kStart, kThinking, kContent };

  void take_text(std::string text, std::vector<ThinkEvent>& events);
  void take_tagged_text(std::string text, std::vector<ThinkEvent>& events);
  void open();
  void close(std::vector<ThinkEvent>& events);

  const Tokenizer& tokenizer_;
  ThinkTokens tokens_;
  Detokenizer detokenizer_;
  State state_;
  std::string held_;          // white space before the first word, or the beginning of a tag in text
  bool at_beginning_ = true;  // of the reasoning, or of the answer after it: line ends are dropped
  bool was_closed_ = false;
  std::int64_t n_thinking_tokens_ = 0;
};

}  // namespace still
