// A model's chat template: messages to the text of a prompt. The templates are Jinja, as the models ship them, rendered
// as Hugging Face renders them; or Go's text/template, as Modelfiles bring them, rendered as Ollama does
// (text/go_template.h). Text of the messages cannot become a special token: see RenderedChat.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/tokenizer.h"

namespace still {

struct ChatSegment {
  std::string text;
  bool is_trusted = false;  // from the template or the tokenizer; false: from messages, tools or other variables
};

struct RenderedChat {
  std::vector<ChatSegment> segments;  // neighbours differ in is_trusted
  std::string text() const;           // joined
};

enum class TemplateLanguage { kJinja, kGo };

// Immutable; may be used from many threads.
class ChatTemplate {
 public:
  // `name` stands in messages ("chat template of smollm2"). kCorrupt for a template that cannot be parsed.
  static Result<ChatTemplate> parse(std::string_view source, std::string_view name,
                                    TemplateLanguage language = TemplateLanguage::kJinja);
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // The variables are the members of `context`; strings in it are untrusted but for bos_token, eos_token and the like.
  // kInvalidArgument where the template refuses the messages (raise_exception) or fails on them; kResourceExhausted is
  // not told apart: a template that runs too long fails the same way.
  // Roles are trusted if they are well-known words, for some templates build their marks from them ("<|user|>").
  Result<std::string> render(const Json& context) const;
  Result<RenderedChat> render_segments(const Json& context,
                                       std::optional<std::chrono::system_clock::time_point> now = {}) const;

  const std::string& name() const;
  const std::string& source() const;
  TemplateLanguage language() const;
  bool takes_tools() const;  // there is a place for descriptions of tools
  // Whether the template's text speaks of it: "tools", "enable_thinking", "<think>", ...
  bool mentions(std::string_view word) const;

 private:
  struct Parsed;
  explicit ChatTemplate(std::unique_ptr<const Parsed> parsed);
  std::unique_ptr<const Parsed> parsed_;
};

struct ChatRequest {
  JsonArray messages;  // objects with role, content, and perhaps reasoning_content, tool_calls, tool_call_id, name
  JsonArray tools;     // empty: the variable is not defined
  bool add_generation_prompt = true;
  // Only for an assistant message at the end: leave it open, so that the answer goes on from there.
  bool continue_final_message = false;
  std::string bos_token, eos_token;
  JsonObject variables;  // enable_thinking, thinking, custom_tools, ...: further variables of the template
  std::optional<std::chrono::system_clock::time_point> now;
};

// Parses a template as a model file ships it, with known mistakes of published templates mended: DeepSeek's first R1
// and V3 templates end a turn of tool calls only from the second call on, and open only the first such turn of a chat.
Result<ChatTemplate> load_chat_template(std::string_view source, std::string_view name,
                                        TemplateLanguage language = TemplateLanguage::kJinja);

// Renders, with these corrections that every engine needs:
// - earlier assistant turns lose their reasoning, up to the last </think> of their content (unless the template does it
//   itself); reasoning_content stays a variable for templates that want it;
// - arguments of tool calls are given as a string or an object, as the template handles them;
// - a template without tools refuses them by name instead of dropping them.
// A Go template knows no add_generation_prompt: it opens the assistant's turn where the last message is another's.
Result<RenderedChat> render_chat(const ChatTemplate& chat_template, const ChatRequest& request);

// Token ids of a rendered chat; never adds BOS or EOS (the template writes its own BOS, if at all), but drops nothing.
// Equals tokenizer.encode(rendered.text()) unless an untrusted segment spells a special token or markup.
std::vector<TokenId> encode_chat(const Tokenizer& tokenizer, const RenderedChat& rendered);

// A template for a model that ships none, chosen by the special tokens of its vocabulary (DeepSeek, Llama 3, ChatML);
// ChatML for a vocabulary with none of them, for it is readable text.
Result<ChatTemplate> fallback_chat_template(const Tokenizer& tokenizer);

}  // namespace still
