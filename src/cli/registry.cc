// All commands, in the order of `still --help`, and what an error means to the shell.
#include <array>

#include "cli/command.h"

namespace still {

#define STILL_COMMANDS(X) \
  X(kRunCommand)          \
  X(kServeCommand)        \
  X(kPsCommand)           \
  X(kStopCommand)         \
  X(kPullCommand)         \
  X(kListCommand)         \
  X(kShowCommand)         \
  X(kPlanCommand)         \
  X(kCopyCommand)         \
  X(kRemoveCommand) X(kTokenizeCommand) X(kPerplexityCommand) X(kBenchCommand) X(kVersionCommand) X(kHelpCommand)

#define STILL_DECLARE(name) extern const Command name;
STILL_COMMANDS(STILL_DECLARE)
#undef STILL_DECLARE

std::span<const Command* const> commands() {
#define STILL_ADDRESS(name) &name,
  static constexpr std::array kCommands = {STILL_COMMANDS(STILL_ADDRESS)};
#undef STILL_ADDRESS
  return kCommands;
}

const Command* find_command(std::string_view name) {
  for (const Command* command : commands()) {
    if (name == command->name || (command->alias && name == command->alias)) return command;
  }
  return nullptr;
}

int exit_code(Code code) {
  switch (code) {
    case Code::kInternal:
      return 1;
    case Code::kInvalidArgument:
      return 2;
    case Code::kNotFound:
      return 3;
    case Code::kCorrupt:
      return 4;
    case Code::kUnsupported:
      return 5;
    case Code::kResourceExhausted:
      return 6;
    case Code::kUnavailable:
      return 7;
    case Code::kPermissionDenied:
      return 8;
    case Code::kCancelled:
      return 130;  // 128 + SIGINT, as shells say
  }
  return 1;
}

}  // namespace still
