// The interactive chat of `still run`: messages, answers, and commands that begin with '/'.
#pragma once

#include <string>

#include "cli/answer_printer.h"
#include "cli/chat.h"

namespace still {

struct ReplOptions {
  ChatSettings settings;
  bool stats = false;
  bool wraps_words = true;
  std::string first_message;  // answered before the first prompt; empty: none
};

// Returns when the person leaves (/bye, Ctrl-D). Errors of single answers are told and the chat goes on.
Status run_chat_repl(const Context& context, Chat& chat, ReplOptions options);

// One answer on stdout as it comes; Ctrl-C stops it. Shared with the one-shot.
Result<GenerateResult> print_answer(const Context& context, Chat& chat, const std::string& text,
                                    const ChatSettings& settings, bool is_raw, bool wraps_words = true);

}  // namespace still
