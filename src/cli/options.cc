#include "cli/options.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <limits>

#include "cli/command.h"
#include "cli/terminal.h"
#include "hub/model_name.h"

namespace still {
namespace {

CLI::App& app_of(void* app) {
  return *static_cast<CLI::App*>(app);
}

void describe_program(CLI::App& app) {
  app.name("still COMMAND");
  app.description("still: language models on your own machine");
  app.footer(
      "Try:\n"
      "  still run smollm2:135m \"Why is the sky blue?\"   pull a small model, ask it something\n"
      "  still run deepseek-r1:1.5b                      chat with a reasoning model\n"
      "  still run --help                                what a command can do\n"
      "\n"
      "Exit status: 0 done, 1 something unexpected, 2 wrong use, 3 not found, 4 damaged file, 5 not supported,\n"
      "6 no memory, disk or context left, 7 a server does not answer, 8 not allowed, 130 stopped by Ctrl-C.\n"
      "Models are kept in STILL_MODELS, else in XDG_DATA_HOME/still/models, else in ~/.local/share/still/models.");
}

// The program's own app knows commands by name only: a word of a prompt must not be taken for one.
void list_commands(CLI::App& app) {
  for (const Command* command : commands()) {
    CLI::App* entry = app.add_subcommand(command->name, command->summary);
    if (command->alias) entry->alias(command->alias);
  }
}

}  // namespace

void Options::flag(const std::string& names, bool* value, const std::string& help) {
  app_of(app_).add_flag(names, *value, help);
}
void Options::value(const std::string& names, std::int64_t* value, const std::string& help) {
  app_of(app_).add_option(names, *value, help)->type_name("N")->capture_default_str();
}
void Options::value(const std::string& names, std::string* value, const std::string& help) {
  app_of(app_).add_option(names, *value, help)->type_name("TEXT");
}
void Options::value(const std::string& names, std::optional<std::int64_t>* value, const std::string& help) {
  app_of(app_).add_option(names, *value, help)->type_name("N");
}
void Options::value(const std::string& names, std::optional<double>* value, const std::string& help) {
  app_of(app_).add_option(names, *value, help)->type_name("X");
}
void Options::value(const std::string& names, std::optional<std::string>* value, const std::string& help) {
  app_of(app_).add_option(names, *value, help)->type_name("TEXT");
}
void Options::list(const std::string& names, std::vector<std::int64_t>* value, const std::string& help) {
  const auto read = [names, value](const std::string& text) {
    std::vector<std::int64_t> numbers;
    for (const std::string& word : CLI::detail::split(text, ',')) {
      std::int64_t number = 0;
      // A number beyond 64 bits is read as the largest one.
      if (!CLI::detail::lexical_cast(word, number) || number == std::numeric_limits<std::int64_t>::max()) {
        throw CLI::ValidationError(names, "\"" + text + "\": expected whole numbers with commas between them");
      }
      numbers.push_back(number);
    }
    *value = std::move(numbers);
  };
  app_of(app_).add_option_function<std::string>(names, read, help)->type_name("N,N,...");
}
void Options::choice(const std::string& names, std::string* value, const std::vector<std::string>& words,
                     const std::string& help) {
  app_of(app_).add_option(names, *value, help)->check(CLI::IsMember(words))->capture_default_str();
}
void Options::repeated(const std::string& names, std::vector<std::string>* value, const std::string& help) {
  app_of(app_).add_option(names, *value, help)->type_name("TEXT")->expected(1)->allow_extra_args(false)->take_all();
}
void Options::required(const std::string& name, std::string* value, const std::string& help) {
  app_of(app_).add_option(name, *value, help)->required()->type_name("");
}
void Options::optional(const std::string& name, std::string* value, const std::string& help) {
  app_of(app_).add_option(name, *value, help)->type_name("");
}
void Options::rest(const std::string& name, std::vector<std::string>* value, bool at_least_one,
                   const std::string& help) {
  app_of(app_).add_option(name, *value, help)->required(at_least_one)->type_name("");
}

// One command's app: what follows the command's name on the line.
class CommandLine {
 public:
  explicit CommandLine(const Command& command)
      : app_(command.summary, std::string("still ") + command.name), action_(declare(command, app_)) {
    app_.footer(std::string("Examples:\n") + command.examples);
  }
  CLI::App& app() { return app_; }
  const Command::Action& action() const { return action_; }

 private:
  // Only here may Options be made.
  static Command::Action declare(const Command& command, CLI::App& app) {
    Options options(&app);
    return command.declare(options);
  }
  CLI::App app_;
  Command::Action action_;
};

std::string program_help() {
  CLI::App app;
  describe_program(app);
  list_commands(app);
  return app.help();
}

std::string command_help(const Command& command) {
  return CommandLine(command).app().help();
}

namespace {

Status run_command(const Command& command, int argc, const char* const* argv, const Context& context) {
  CommandLine line(command);
  try {
    line.app().parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", line.app().help());
    return ok();
  } catch (const CLI::ParseError& problem) {
    return error(Code::kInvalidArgument, "{}; see `still {} --help`", problem.what(), command.name);
  }
  return line.action()(context);
}

tl::unexpected<Error> unknown_command(std::string_view word) {
  std::vector<std::string> names;
  for (const Command* known : commands()) names.emplace_back(known->name);
  const std::vector<std::string> near = closest_names(word, names, 1);
  return error(Code::kInvalidArgument, "no command \"{}\"{}; `still --help` lists them", printable_line(word),
               near.empty() ? std::string() : fmt::format("; did you mean \"{}\"?", near.front()));
}

}  // namespace

Status run_command_line(int argc, const char* const* argv, const Context& context) {
  const std::string_view word = argc > 1 ? argv[1] : "--help";
  if (!word.starts_with('-')) {
    const Command* command = find_command(word);
    return command ? run_command(*command, argc - 1, argv + 1, context) : unknown_command(word);
  }
  if (word == "-V" || word == "--version") return run_command(*find_command("version"), 1, argv, context);
  if (word == "-h" || word == "--help") {
    fmt::print("{}", program_help());
    return ok();
  }
  return error(Code::kInvalidArgument, "no option \"{}\" before a command; see `still --help`", printable_line(word));
}

}  // namespace still
