// still help: the same text as --help.
#include <fmt/format.h>

#include <memory>

#include "cli/command.h"

namespace still {
namespace {

Status show_help(const std::string& word) {
  if (word.empty()) {
    fmt::print("{}", program_help());
    return ok();
  }
  const Command* command = find_command(word);
  if (!command) return error(Code::kInvalidArgument, "no command \"{}\"; `still --help` lists them", word);
  fmt::print("{}", command_help(*command));
  return ok();
}

Command::Action declare_help(Options& options) {
  auto word = std::make_shared<std::string>();
  options.optional("COMMAND", word.get(), "The command to explain");
  return [word](const Context&) { return show_help(*word); };
}

}  // namespace

extern const Command kHelpCommand;
const Command kHelpCommand{.name = "help",
                           .alias = nullptr,
                           .summary = "Explain a command",
                           .examples = "  still help run",
                           .declare = declare_help};

}  // namespace still
