#include "cli/chat_repl.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "cli/input.h"
#include "cli/interrupt.h"
#include "cli/line_editor.h"
#include "hub/file_io.h"

namespace still {
namespace {

constexpr const char* kHelp =
    "  /set parameter NAME VALUE   temperature, top_p, top_k, min_p, repeat_penalty, seed, max_tokens, stop, ...\n"
    "  /set system TEXT            the system prompt; without TEXT: none\n"
    "  /set verbose | quiet        counts and rates after each answer, or not\n"
    "  /set wordwrap | nowordwrap  break lines between words, or where the terminal does\n"
    "  /show                       model, context and all settings\n"
    "  /think on|off|auto          let the model think, keep it from thinking, or as it likes\n"
    "  /think hide|show            whether thinking is shown\n"
    "  /think budget N             at most N tokens of thinking; without N: no limit\n"
    "  /clear                      forget the conversation\n"
    "  /save NAME, /load NAME      the conversation, into a file and back\n"
    "  /bye                        leave (also Ctrl-D)\n"
    "  Several lines: begin with \"\"\" and end with \"\"\", or end a line with \\, or paste.\n"
    "  Ctrl-C stops the answer. Up and down: earlier messages. Ctrl-R searches them.\n";

std::string trim(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\n");
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(" \t\n") - begin + 1));
}

// The first word and the rest, trimmed.
std::pair<std::string, std::string> split_word(std::string_view text) {
  const std::string trimmed = trim(text);
  const std::size_t end = std::min(trimmed.find_first_of(" \t\n"), trimmed.size());
  return {trimmed.substr(0, end), trim(std::string_view(trimmed).substr(end))};
}

std::string without_quotes(std::string text) {
  if (text.size() >= 2 && text.front() == '"' && text.back() == '"') return text.substr(1, text.size() - 2);
  return text;
}

class Repl {
 public:
  Repl(const Context& context, Chat& chat, ReplOptions options)
      : context_(context), chat_(chat), options_(std::move(options)), editor_(context.environment.state / "history") {}

  Status run() {
    fmt::print("{}{} is ready, {} tokens of context. /? helps, /bye leaves.{}\n", context_.out.dim(),
               chat_.found().name, chat_.engine().context(), context_.out.reset());
    if (!options_.first_message.empty()) {
      fmt::print(">>> {}\n", printable_line(options_.first_message));
      answer(options_.first_message);
    }
    int n_interrupts = 0;
    while (!is_done_) {
      std::string message;
      switch (editor_.read(message)) {
        case LineEditor::Outcome::kEnd:
          fmt::print("\n");
          return ok();
        case LineEditor::Outcome::kInterrupted:
          if (++n_interrupts >= 2) fmt::print("/bye or Ctrl-D leaves\n");
          continue;
        case LineEditor::Outcome::kMessage:
          break;
      }
      n_interrupts = 0;
      const std::string trimmed = trim(message);
      if (trimmed.empty()) continue;
      if (trimmed.front() == '/') {
        if (const Status status = run_slash_command(trimmed); !status) tell(status.error());
      } else {
        answer(message);
      }
    }
    return ok();
  }

 private:
  void tell(const Error& problem) {
    std::fflush(stdout);
    fmt::print(stderr, "still: {}\n", problem.message);
  }

  void answer(const std::string& text) {
    const Result<GenerateResult> result =
        print_answer(context_, chat_, text, options_.settings, false, options_.wraps_words);
    if (!result) {
      tell(result.error());
      if (result.error().code == Code::kResourceExhausted)
        fmt::print(stderr, "/clear forgets the conversation so far\n");
      return;
    }
    if (options_.stats) print_stats(*result, 0);
    fmt::print("\n");
  }

  Status run_slash_command(const std::string& line) {
    const auto [word, rest] = split_word(line);
    if (word == "/bye" || word == "/exit" || word == "/quit") {
      is_done_ = true;
      return ok();
    }
    if (word == "/?" || word == "/help") {
      fmt::print("{}", kHelp);
      return ok();
    }
    if (word == "/clear") {
      chat_.clear();
      fmt::print("the conversation is forgotten\n");
      return ok();
    }
    if (word == "/show") return show();
    if (word == "/set") return set(rest);
    if (word == "/think") return think(rest);
    if (word == "/save") return save(rest);
    if (word == "/load") return load(rest);
    return error(Code::kInvalidArgument, "no command {}; /? lists them", printable_line(word));
  }

  Status show() {
    const ModelConfig& config = chat_.engine().model().config();
    fmt::print("model            {} ({})\n", chat_.found().name, config.model_type);
    fmt::print("context          {} tokens\n", chat_.engine().context());
    fmt::print("messages         {}\n", chat_.messages().size());
    fmt::print("thinking         {}\n", options_.settings.think.str());
    fmt::print("system           {}\n",
               options_.settings.system.empty() ? "none" : printable_line(options_.settings.system));
    for (const auto& [name, value] : list_parameters(options_.settings)) fmt::print("{:<16} {}\n", name, value);
    return ok();
  }

  Status set(const std::string& rest) {
    const auto [what, arguments] = split_word(rest);
    if (what == "parameter") {
      const auto [name, value] = split_word(arguments);
      if (value.empty()) {
        return error(Code::kInvalidArgument, "/set parameter {}: a name and a value are expected, as in {}", name,
                     "/set parameter temperature 0");
      }
      STILL_TRY_STATUS(set_parameter(options_.settings, name, without_quotes(value)));
    } else if (what == "system") {
      STILL_TRY_STATUS(check_utf8(arguments, "system prompt"));
      options_.settings.system = without_quotes(arguments);
    } else if (what == "wordwrap" || what == "nowordwrap") {
      options_.wraps_words = what == "wordwrap";
    } else if (what == "verbose" || what == "quiet") {
      options_.stats = what == "verbose";
    } else if (what == "think" || what == "nothink") {
      return think(what == "nothink" ? "off" : arguments.empty() ? "on" : arguments);
    } else if (const auto known = list_parameters(options_.settings);
               what == "stop" ||
               std::ranges::find(known, what, &std::pair<std::string, std::string>::first) != known.end()) {
      // "/set temperature 0" is what people write.
      return set("parameter " + rest);
    } else {
      return error(Code::kInvalidArgument,
                   "/set {}: expected parameter, system, verbose, quiet, wordwrap, nowordwrap, think or the name of a "
                   "parameter, as in /set temperature 0; /show lists them",
                   what.empty() ? "without a word" : printable_line(what));
    }
    return ok();
  }

  Status think(const std::string& rest) {
    ThinkSetting& setting = options_.settings.think;
    const auto [word, value] = split_word(rest);
    if (word.empty()) {
      // only shown
    } else if (word == "hide" || word == "show") {
      setting.is_hidden = word == "hide";
    } else if (word == "budget" && value.empty()) {
      setting.budget = -1;
    } else {
      STILL_TRY(const ThinkSetting parsed, ThinkSetting::parse(word == "budget" ? value : word));
      if ((parsed.mode == ThinkSwitch::kOn || parsed.budget >= 0) && !chat_.can_think()) {
        return error(Code::kInvalidArgument, "{}; choose another model, such as deepseek-r1:1.5b",
                     chat_.cannot_think());
      }
      if (parsed.budget >= 0) {
        setting.budget = parsed.budget;
        if (setting.mode == ThinkSwitch::kOff) setting.mode = ThinkSwitch::kAuto;
      } else {
        setting.mode = parsed.mode;
      }
    }
    fmt::print("thinking: {}\n", setting.str());
    return ok();
  }

  Result<std::filesystem::path> chat_file(const std::string& name) const {
    if (name.empty())
      return error(Code::kInvalidArgument, "a name or the path of a file is missing, as in /save holidays");
    if (name.find('/') != std::string::npos) return std::filesystem::path(name);
    STILL_TRY_STATUS(check_file_name(name));
    return context_.environment.state / "chats" / (name.ends_with(".json") ? name : name + ".json");
  }

  Status save(const std::string& name) {
    STILL_TRY(const std::filesystem::path path, chat_file(name));
    const JsonObject saved{
        {"model", chat_.found().name}, {"system", options_.settings.system}, {"messages", chat_.messages()}};
    STILL_TRY_STATUS(make_folders(std::filesystem::absolute(path).parent_path()));
    STILL_TRY_STATUS(write_file_atomic(path, to_json_pretty(saved)));
    fmt::print("saved to {}\n", path.string());
    return ok();
  }

  Status load(const std::string& name) {
    STILL_TRY(const std::filesystem::path path, chat_file(name));
    constexpr std::int64_t kMaxBytes = 64 << 20;
    STILL_TRY(const std::string text, read_text_file(path, kMaxBytes));
    STILL_TRY(const Json saved, parse_json(text, path.string()));
    const Json* messages = saved.is_object() ? saved.get_object().if_contains("messages") : nullptr;
    const auto is_message = [](const Json& message) {
      if (!message.is_object()) return false;
      const Json* role = message.get_object().if_contains("role");
      const Json* content = message.get_object().if_contains("content");
      return role && role->is_string() && content && content->is_string();
    };
    if (!messages || !messages->is_array() || !std::ranges::all_of(messages->get_array(), is_message)) {
      return error(Code::kCorrupt, "{}: no \"messages\" with role and content in it", path.string());
    }
    chat_.set_messages(messages->get_array());
    if (const Json* system = saved.get_object().if_contains("system"); system && system->is_string()) {
      options_.settings.system = std::string(system->get_string());
    }
    fmt::print("{} messages from {}\n", chat_.messages().size(), path.string());
    return ok();
  }

  const Context& context_;
  Chat& chat_;
  ReplOptions options_;
  LineEditor editor_;
  bool is_done_ = false;
};

}  // namespace

Result<GenerateResult> print_answer(const Context& context, Chat& chat, const std::string& text,
                                    const ChatSettings& settings, bool is_raw, bool wraps_words) {
  const ThinkSetting& think = settings.think;
  const ReasoningView view = think.is_hidden                  ? ReasoningView::kHidden
                             : think.mode == ThinkSwitch::kOn ? ReasoningView::kVisible
                                                              : ReasoningView::kDimmed;
  AnswerPrinter printer(context, view, wraps_words);
  const InterruptScope interrupt;
  const auto on_event = [&](const Event& event) {
    printer.on_event(event);
    return !interrupt.is_interrupted() && printer.can_write();
  };
  Result<GenerateResult> result =
      is_raw ? chat.complete(text, settings, on_event) : chat.answer(text, settings, on_event);
  const Status written = printer.finish();
  if (!result) return result;
  if (!written) return tl::unexpected(written.error());
  for (const std::string& warning : result->finished.warnings) fmt::print(stderr, "still: {}\n", warning);
  const bool is_complete = result->finished.reason != FinishReason::kCancelled;
  if (const std::int64_t n = result->finished.usage.n_reasoning;
      is_complete && n > 0 && result->text.empty() && !printer.shows_reasoning()) {
    fmt::print(stderr, "still: {} tokens of thinking, which are not shown, and no answer after them\n", n);
  }
  if (result->finished.reason == FinishReason::kLength) {
    fmt::print(stderr, "still: stopped after {} tokens: {}\n", result->finished.usage.n_completion,
               settings.max_tokens >= 0 && result->finished.usage.n_completion >= settings.max_tokens
                   ? "that is the limit asked for"
                   : "the context is full");
  }
  return result;
}

Status run_chat_repl(const Context& context, Chat& chat, ReplOptions options) {
  return Repl(context, chat, std::move(options)).run();
}

}  // namespace still
