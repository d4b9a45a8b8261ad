// Chat: a model ready to answer, the conversation so far, and the settings that the next answer is made with. What a
// one-shot `still run`, the interactive chat and --json share.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/engine_options.h"
#include "cli/model_ref.h"
#include "engine/generate.h"
#include "text/chat_template.h"

namespace still {

enum class ThinkSwitch { kAuto, kOn, kOff };

// "on", "off", "hide", "auto", or a number of tokens: a budget (0 is off).
struct ThinkSetting {
  ThinkSwitch mode = ThinkSwitch::kAuto;
  bool is_hidden = false;
  std::int64_t budget = -1;  // -1: none
  static Result<ThinkSetting> parse(std::string_view text);
  std::string str() const;
};

struct ChatSettings {
  SamplingParams sampling;
  std::int64_t max_tokens = -1;
  std::vector<std::string> stop;
  std::string system;
  ThinkSetting think;
};

// Sets one parameter by name ("temperature", "top_p", "num_predict", ...), as `/set parameter` and store manifests
// spell them. Several stop strings are added one by one. kInvalidArgument for unknown names and for values out of
// range.
Status set_parameter(ChatSettings& settings, std::string_view name, std::string_view value);
std::vector<std::pair<std::string, std::string>> list_parameters(const ChatSettings& settings);

// In order, each overriding the one before: 0.6 and top_p 0.95 (DeepSeek-R1's advice, good for others too), what the
// model ships in generation_config, what the store's manifest says.
Result<ChatSettings> default_settings(const ResolvedModel& found, const Model& model);

class Chat {
 public:
  // Loads the model. `load_seconds` of it is told by load_seconds().
  static Result<Chat> open(const Context& context, const ResolvedModel& found, const EngineArguments& arguments);

  // Answers `text` as the next user message; both are in the conversation afterwards (with what a cancelled answer said
  // so far). Nothing is changed on an error. on_event returns false to cancel.
  Result<GenerateResult> answer(const std::string& text, const ChatSettings& settings,
                                const std::function<bool(const Event&)>& on_event);
  // The text as it is, no template, no conversation.
  Result<GenerateResult> complete(const std::string& text, const ChatSettings& settings,
                                  const std::function<bool(const Event&)>& on_event);

  void clear() { messages_.clear(); }
  const JsonArray& messages() const { return messages_; }
  void set_messages(JsonArray messages) { messages_ = std::move(messages); }
  const Engine& engine() const { return *engine_; }
  const ResolvedModel& found() const { return found_; }
  // The vocabulary has the tokens of thinking; otherwise cannot_think() says what is missing.
  bool can_think() const;
  std::string cannot_think() const;
  double load_seconds() const { return load_seconds_; }

 private:
  Chat() = default;
  ResolvedModel found_;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<Engine> engine_;
  std::optional<ChatTemplate> template_;
  JsonArray messages_;  // without the system message
  double load_seconds_ = 0;
};

// The checks of check_request() that need no model, so that a wrong number is told before minutes of loading.
Status check_settings(const ChatSettings& settings);

}  // namespace still
