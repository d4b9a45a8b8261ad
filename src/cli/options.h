// Options: what a command accepts, declared in its own file. A wall around CLI11, whose header costs ten seconds of
// compilation: only options.cc includes it, and its exceptions end there.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace still {

struct Command;

// Names are as CLI11 takes them: "-t,--threads" for options, "MODEL" for positionals. The values are written before the
// command's action runs, and must live as long as the Options' owner: commands keep them in a struct owned by the
// action.
class Options {
 public:
  void flag(const std::string& names, bool* value, const std::string& help);
  void value(const std::string& names, std::int64_t* value, const std::string& help);
  void value(const std::string& names, std::string* value, const std::string& help);
  void value(const std::string& names, std::optional<std::int64_t>* value, const std::string& help);
  void value(const std::string& names, std::optional<double>* value, const std::string& help);
  void value(const std::string& names, std::optional<std::string>* value, const std::string& help);
  // "1,2,4": numbers with commas between them.
  void list(const std::string& names, std::vector<std::int64_t>* value, const std::string& help);
  // One of the words given, else an error that names them.
  void choice(const std::string& names, std::string* value, const std::vector<std::string>& words,
              const std::string& help);
  // May be given several times.
  void repeated(const std::string& names, std::vector<std::string>* value, const std::string& help);
  void required(const std::string& name, std::string* value, const std::string& help);
  void optional(const std::string& name, std::string* value, const std::string& help);
  void rest(const std::string& name, std::vector<std::string>* value, bool at_least_one, const std::string& help);

 private:
  friend class CommandLine;
  explicit Options(void* app) : app_(app) {}
  void* app_;  // CLI::App of this command
};

}  // namespace still
