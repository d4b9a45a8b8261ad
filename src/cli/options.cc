#include "cli/options.h"

#include <CLI/CLI.hpp>

#include "cli/command.h"
#include "hub/model_name.h"

namespace still {
namespace {

CLI::App& app_of(void* app) {
  return *static_cast<CLI::App*>(app);
}

void describe_program(CLI::App& app) {
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

CLI::App* add_command(CLI::App& app, const Command& command) {
  CLI::App* sub = app.add_subcommand(command.name, command.summary);
  if (command.alias) sub->alias(command.alias);
  sub->footer(std::string("Examples:\n") + command.examples);
  return sub;
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
  app_of(app_)
      .add_option(names, *value, help)
      ->delimiter(',')
      ->type_name("N,N,...")
      ->expected(1)
      ->allow_extra_args(false);
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

// Only here may Options be made.
class CommandLine {
 public:
  static Command::Action declare(const Command& command, CLI::App* app) {
    Options options(app);
    return command.declare(options);
  }
};

std::string program_help() {
  CLI::App app;
  describe_program(app);
  for (const Command* command : commands()) add_command(app, *command);
  return app.help();
}

std::string command_help(const Command& command) {
  CLI::App app("", "still");
  CLI::App* sub = add_command(app, command);
  const Command::Action action = CommandLine::declare(command, sub);
  return sub->help("still");
}

Status run_command_line(int argc, const char* const* argv, const Context& context) {
  CLI::App app;
  describe_program(app);
  bool show_version = false;
  app.add_flag("-V,--version", show_version, "Print the version and exit");

  const std::string_view word = argc > 1 ? argv[1] : "";
  const Command* command = find_command(word);
  if (!word.empty() && word.front() != '-' && !command) {
    std::vector<std::string> names;
    for (const Command* known : commands()) names.emplace_back(known->name);
    const std::vector<std::string> near = closest_names(word, names, 1);
    return error(Code::kInvalidArgument, "no command \"{}\"{}; `still --help` lists them", word,
                 near.empty() ? std::string() : fmt::format("; did you mean \"{}\"?", near.front()));
  }
  // The help of one command is drawn without the others', so only it is declared.
  for (const Command* known : commands()) {
    if (known != command) add_command(app, *known);
  }
  Command::Action action;
  CLI::App* sub = nullptr;
  if (command) {
    sub = add_command(app, *command);
    action = CommandLine::declare(*command, sub);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const std::string text = sub && sub->parsed() ? command_help(*command) : program_help();
    std::fwrite(text.data(), 1, text.size(), stdout);
    return ok();
  } catch (const CLI::ParseError& problem) {
    return error(Code::kInvalidArgument, "{}; see `still {}--help`", problem.what(),
                 command ? std::string(command->name) + " " : std::string());
  }
  if (show_version) return CommandLine::declare(*find_command("version"), &app)(context);
  if (!command) {
    const std::string text = program_help();
    std::fwrite(text.data(), 1, text.size(), stdout);
    return ok();
  }
  return action(context);
}

}  // namespace still
