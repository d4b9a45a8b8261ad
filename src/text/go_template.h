// Chat templates of Modelfiles, which are Go's text/template: a chat as the data they read, and the rules by which
// Ollama runs them. text/chat_template.h is what callers use; here is its other language.
#pragma once

#include <chrono>
#include <optional>
#include <string_view>

#include "base/json.h"
#include "text/go/syntax.h"

namespace still::go {

// What a chat template becomes once: parsed, and asked what it reads.
struct ChatTemplate {
  Template parsed;
  bool reads_messages = false;  // it walks through .Messages; else it is run once for each turn (.Prompt, .Response)
  bool reads_tools = false;
  int response_order = 0;  // of the first action with .Response: the last run of a turn ends behind it
};

// Throws Failure.
ChatTemplate parse_chat_template(std::string_view source);

// `context` has the members of a Jinja rendering: messages, tools, enable_thinking or thinking (booleans: .Think and
// .IsThinkSet), think_level or reasoning_effort (.ThinkLevel); or prompt and suffix to fill in the middle. Texts of
// messages, tools and arguments are untrusted; roles are trusted if they are well-known words. System messages are
// joined for .System, neighbours of one role become one message. Throws Failure.
Text render_chat(const ChatTemplate& chat_template, const JsonObject& context,
                 std::optional<std::chrono::system_clock::time_point> now);

}  // namespace still::go
