// AnswerPrinter: the events of one answer onto stdout, as they come; reasoning dimmed, hidden or left out.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "cli/command.h"
#include "cli/word_wrap.h"
#include "engine/generate.h"

namespace still {

inline double to_seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

enum class ReasoningView {
  kDimmed,   // shown dimmed on a terminal; left out elsewhere
  kVisible,  // shown everywhere, between tag lines where there is no colour
  kHidden,   // only how many tokens it was, on a terminal
};

class AnswerPrinter {
 public:
  // Words are wrapped on a terminal where asked for.
  AnswerPrinter(const Context& context, ReasoningView view, bool wraps_words = true);
  void on_event(const Event& event);
  // Ends the last line. Call once, after the last event. kResourceExhausted or what else kept stdout from being
  // written.
  Status finish();
  // False once stdout could not be written: more answer would be lost, too.
  bool can_write() const { return write_errno_ == 0; }
  bool shows_reasoning() const;

 private:
  void print_reasoning(std::string_view text);
  void print_content(std::string_view text);
  void close_reasoning();
  void write(std::string_view text);

  const Context& context_;
  ReasoningView view_;
  ProgressLine progress_;
  WordWrap wrap_;
  bool in_reasoning_ = false;
  bool ends_with_newline_ = true;
  std::int64_t n_reasoning_ = 0;
  int write_errno_ = 0;  // of the first write that failed
};

// Counts, rates and times of an answer on stderr, in the lines that Ollama's --verbose has, and the time to first
// token.
void print_stats(const GenerateResult& result, double load_seconds);

}  // namespace still
