#include "cli/chat.h"

#include <fmt/format.h>

#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>

#include "cli/input.h"
#include "engine/chat.h"

namespace still {
namespace {

Result<double> parse_number(std::string_view name, std::string_view text) {
  double value = 0;
  const auto [stop, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (problem != std::errc() || stop != text.data() + text.size() || !std::isfinite(value)) {
    return error(Code::kInvalidArgument, "{} \"{}\": expected a number", name, printable_line(text));
  }
  return value;
}

Result<std::int64_t> parse_integer(std::string_view name, std::string_view text, std::int64_t min, std::int64_t max) {
  std::int64_t value = 0;
  const auto [stop, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (problem != std::errc() || stop != text.data() + text.size() || value < min || value > max) {
    return error(Code::kInvalidArgument, "{} \"{}\": expected a whole number from {} to {}", name, printable_line(text),
                 min, max);
  }
  return value;
}

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxInt64 = std::numeric_limits<std::int64_t>::max();

std::string json_text(const Json& value) {
  return value.is_string() ? std::string(value.get_string()) : to_json(value);
}

ChatThinking to_thinking(const ThinkSetting& think) {
  ChatThinking thinking{.budget = think.budget};
  if (think.mode == ThinkSwitch::kOn) thinking.mode = ThinkingMode::kRequired;
  if (think.mode == ThinkSwitch::kOff) thinking.mode = ThinkingMode::kForbidden;
  return thinking;
}

void apply(const ChatSettings& settings, Request& request) {
  request.max_tokens = settings.max_tokens;
  request.stop = settings.stop;
  request.sampling = settings.sampling;
}

// A template is foreign code: what fails in it is told with the way around it.
Error explain_template(Error problem) {
  if (problem.message.starts_with("chat template of"))
    problem.message +=
        "; the template is the model's own: try --raw, which does without, or another file of this model";
  return problem;
}

// The engine does not know what its model is called.
Error name_model(Error problem, const std::string& name) {
  if (problem.code == Code::kInternal) problem.message = fmt::format("{}: {}", name, problem.message);
  return problem;
}

Result<ChatTemplate> template_of(const ResolvedModel& found, const Model& model) {
  if (found.is_stored && !found.manifest.template_text.empty()) {
    return load_chat_template(
        found.manifest.template_text, found.name,
        found.manifest.template_language == kTemplateGo ? TemplateLanguage::kGo : TemplateLanguage::kJinja);
  }
  return chat_template_of(model, found.name);
}

}  // namespace

Result<ThinkSetting> ThinkSetting::parse(std::string_view text) {
  if (text == "auto") return ThinkSetting{};
  if (text == "on" || text == "true") return ThinkSetting{.mode = ThinkSwitch::kOn};
  if (text == "off" || text == "false" || text == "0") return ThinkSetting{.mode = ThinkSwitch::kOff};
  if (text == "hide") return ThinkSetting{.is_hidden = true};
  std::int64_t budget = 0;
  const auto [stop, problem] = std::from_chars(text.data(), text.data() + text.size(), budget);
  if (problem != std::errc() || stop != text.data() + text.size() || budget < 1) {
    return error(Code::kInvalidArgument, "thinking \"{}\": expected on, off, hide, auto or a number of tokens",
                 printable_line(text));
  }
  return ThinkSetting{.budget = budget};
}

std::string ThinkSetting::str() const {
  std::string text = mode == ThinkSwitch::kOn ? "on" : mode == ThinkSwitch::kOff ? "off" : "auto";
  if (is_hidden) text += ", hidden";
  if (budget >= 0) text += fmt::format(", at most {} tokens", budget);
  return text;
}

Status check_settings(const ChatSettings& settings) {
  Request request{.prompt = {0}};
  apply(settings, request);
  return check_request(request,
                       {.vocab_size = kMaxInt32, .context = std::int64_t{1} << 40, .has_thinking_tokens = true});
}

Status set_parameter(ChatSettings& settings, std::string_view name, std::string_view value) {
  ChatSettings changed = settings;
  SamplingParams& sampling = changed.sampling;
  const auto set_float = [&](float& target) -> Status {
    STILL_TRY(const double number, parse_number(name, value));
    target = static_cast<float>(number);
    return ok();
  };
  const auto set_int32 = [&](std::int32_t& target, std::int64_t min) -> Status {
    STILL_TRY(const std::int64_t number, parse_integer(name, value, min, kMaxInt32));
    target = static_cast<std::int32_t>(number);
    return ok();
  };
  if (name == "temperature") {
    STILL_TRY_STATUS(set_float(sampling.temperature));
  } else if (name == "top_p") {
    STILL_TRY_STATUS(set_float(sampling.top_p));
  } else if (name == "min_p") {
    STILL_TRY_STATUS(set_float(sampling.min_p));
  } else if (name == "top_k") {
    STILL_TRY_STATUS(set_int32(sampling.top_k, 0));
  } else if (name == "repeat_penalty" || name == "repetition_penalty") {
    STILL_TRY_STATUS(set_float(sampling.repetition_penalty));
  } else if (name == "presence_penalty") {
    STILL_TRY_STATUS(set_float(sampling.presence_penalty));
  } else if (name == "frequency_penalty") {
    STILL_TRY_STATUS(set_float(sampling.frequency_penalty));
  } else if (name == "repeat_last_n") {
    STILL_TRY_STATUS(set_int32(sampling.penalty_last_n, -1));
  } else if (name == "seed") {
    // -1, as elsewhere: a new one for each answer.
    STILL_TRY(const std::int64_t seed, parse_integer(name, value, -1, kMaxInt64));
    sampling.seed.reset();
    if (seed >= 0) sampling.seed = static_cast<std::uint64_t>(seed);
  } else if (name == "max_tokens" || name == "num_predict") {
    STILL_TRY(changed.max_tokens, parse_integer(name, value, -1, kMaxInt64));
  } else if (name == "stop") {
    STILL_TRY_STATUS(check_utf8(value, "stop"));
    changed.stop.emplace_back(value);
  } else {
    return error(Code::kInvalidArgument,
                 "no parameter \"{}\": there are temperature, top_p, top_k, min_p, repeat_penalty, presence_penalty, "
                 "frequency_penalty, repeat_last_n, seed, max_tokens, stop",
                 printable_line(name));
  }
  STILL_TRY_STATUS(check_settings(changed));
  settings = std::move(changed);
  return ok();
}

std::vector<std::pair<std::string, std::string>> list_parameters(const ChatSettings& settings) {
  const SamplingParams& sampling = settings.sampling;
  std::vector<std::pair<std::string, std::string>> list = {
      {"temperature", fmt::format("{}", sampling.temperature)},
      {"top_p", fmt::format("{}", sampling.top_p)},
      {"top_k", fmt::format("{}", sampling.top_k)},
      {"min_p", fmt::format("{}", sampling.min_p)},
      {"repeat_penalty", fmt::format("{}", sampling.repetition_penalty)},
      {"presence_penalty", fmt::format("{}", sampling.presence_penalty)},
      {"frequency_penalty", fmt::format("{}", sampling.frequency_penalty)},
      {"repeat_last_n", fmt::format("{}", sampling.penalty_last_n)},
      {"seed", sampling.seed ? fmt::format("{}", *sampling.seed) : "-1"},
      {"max_tokens", fmt::format("{}", settings.max_tokens)},
  };
  for (const std::string& stop : settings.stop) list.emplace_back("stop", fmt::format("\"{}\"", printable_line(stop)));
  return list;
}

namespace {
// Parameters of a store that speak of the engine or the machine, not of an answer. num_ctx is read by Chat::open; the
// rest are another engine's knobs without a meaning here.
bool is_engine_parameter(std::string_view name) {
  return name == "num_ctx" || name == "num_keep" || name == "num_batch" || name == "num_gpu" || name == "num_thread" ||
         name == "main_gpu" || name == "use_mmap" || name == "use_mlock" || name == "low_vram" || name == "f16_kv" ||
         name == "numa" || name == "num_gqa";
}
}  // namespace

Result<ChatSettings> default_settings(const ResolvedModel& found, const Model& model) {
  ChatSettings settings;
  settings.sampling = default_sampling(model, {.temperature = 0.6f, .top_p = 0.95f});
  if (!found.is_stored) return settings;
  for (const auto& [name, value] : found.manifest.parameters) {
    if (is_engine_parameter(name)) continue;
    const JsonArray values = value.is_array() ? value.get_array() : JsonArray{value};
    for (const Json& one : values) {
      if (const Status status = set_parameter(settings, name, json_text(one)); !status) {
        fmt::print(stderr, "still: {} of {} in the store: {}\n", std::string_view(name), found.name,
                   status.error().message);
      }
    }
  }
  settings.system = found.manifest.system;
  return settings;
}

Result<Chat> Chat::open(const Context& context, const ResolvedModel& found, const EngineArguments& arguments) {
  STILL_TRY(EngineOptions options, to_engine_options(arguments));
  if (!arguments.context && found.is_stored) {
    if (const Json* value = found.manifest.parameters.if_contains("num_ctx"); value && value->is_int64()) {
      options.settings.context = value->get_int64();
    }
  }
  const auto start = std::chrono::steady_clock::now();
  Chat chat;
  chat.found_ = found;
  STILL_TRY(chat.model_, load_model(context, found, options.settings.n_threads, &arguments));
  STILL_TRY(options.draft, load_draft(context, arguments));
  STILL_TRY(chat.engine_, Engine::create(chat.model_, options));
  chat.load_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return chat;
}

bool Chat::can_think() const {
  const Tokenizer& tokenizer = model_->tokenizer();
  return tokenizer.find("<think>") && tokenizer.find("</think>");
}

std::string Chat::cannot_think() const {
  return fmt::format("{} cannot think: its vocabulary has no <think> and </think> tokens", found_.name);
}

Result<GenerateResult> Chat::answer(const std::string& text, const ChatSettings& settings,
                                    const std::function<bool(const Event&)>& on_event) {
  STILL_TRY_STATUS(check_utf8(text, "prompt"));
  if (!template_) {
    STILL_TRY(ChatTemplate parsed, template_of(found_, *model_).map_error(explain_template));
    template_.emplace(std::move(parsed));
  }
  JsonArray messages;
  if (!settings.system.empty()) messages.push_back(JsonObject{{"role", "system"}, {"content", settings.system}});
  if (found_.is_stored) {
    const JsonArray& first = found_.manifest.messages;
    messages.insert(messages.end(), first.begin(), first.end());
  }
  messages.insert(messages.end(), messages_.begin(), messages_.end());
  messages.push_back(JsonObject{{"role", "user"}, {"content", text}});
  STILL_TRY(Request request,
            make_chat_request(*model_, *template_, {.messages = std::move(messages)}, to_thinking(settings.think))
                .map_error(explain_template));
  apply(settings, request);
  STILL_TRY(GenerateResult result, generate(*engine_, std::move(request), on_event).map_error([&](Error problem) {
    return name_model(std::move(problem), found_.name);
  }));

  messages_.push_back(JsonObject{{"role", "user"}, {"content", text}});
  JsonObject reply{{"role", "assistant"}, {"content", result.text}};
  if (!result.reasoning.empty()) reply["reasoning_content"] = result.reasoning;
  messages_.push_back(std::move(reply));
  return result;
}

Result<GenerateResult> Chat::complete(const std::string& text, const ChatSettings& settings,
                                      const std::function<bool(const Event&)>& on_event) {
  STILL_TRY_STATUS(check_utf8(text, "prompt"));
  Request request{.prompt = model_->tokenizer().encode(text, {.add_special = true})};
  apply(settings, request);
  request.thinking.mode = ThinkingMode::kUntracked;
  STILL_TRY(GenerateResult result, generate(*engine_, std::move(request), on_event).map_error([&](Error problem) {
    return name_model(std::move(problem), found_.name);
  }));
  return result;
}

}  // namespace still
