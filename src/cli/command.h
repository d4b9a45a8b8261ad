// Command: one word after `still`. Each command's file exports one `const Command`; registry.cc lists them all, in the
// order of `still --help`.
#pragma once

#include <functional>
#include <span>
#include <string_view>

#include "base/result.h"
#include "cli/environment.h"
#include "cli/options.h"
#include "cli/terminal.h"

namespace still {

// What every command gets from main(): lives as long as the program.
struct Context {
  Environment environment;
  Terminal out;  // stdout
  Terminal err;  // stderr: progress, notes, errors
};

struct Command {
  using Action = std::function<Status(const Context& context)>;

  const char* name;
  const char* alias;     // nullptr: none
  const char* summary;   // one line of `still --help`
  const char* examples;  // the end of `still <name> --help`
  Action (*declare)(Options& options);
};

std::span<const Command* const> commands();
// By name or alias; null if there is none.
const Command* find_command(std::string_view name);
std::string program_help();
std::string command_help(const Command& command);

// The exit code of an error; 0 is success.
int exit_code(Code code);

// Parses and runs. Errors are printed by the caller (main).
Status run_command_line(int argc, const char* const* argv, const Context& context);

}  // namespace still
