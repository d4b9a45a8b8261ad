// still cp: a second name for a model; the files are shared.
#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "hub/store.h"

namespace still {
namespace {

struct CopyOptions {
  std::string from, to;
};

Status copy_model(const CopyOptions& options, const Context& context) {
  STILL_TRY(Store store, Store::open(context.environment.models));
  STILL_TRY(const ModelName from, ModelName::parse(options.from));
  STILL_TRY(const ModelName to, ModelName::parse(options.to));
  STILL_TRY_STATUS(store.copy(from, to));
  fmt::print("copied '{}' to '{}'\n", from.str(), to.str());
  return ok();
}

Command::Action declare_copy(Options& options) {
  auto chosen = std::make_shared<CopyOptions>();
  options.required("SOURCE", &chosen->from, "A name in the store");
  options.required("TARGET", &chosen->to, "The new name; a model of that name is replaced");
  return [chosen](const Context& context) { return copy_model(*chosen, context); };
}

}  // namespace

extern const Command kCopyCommand;
const Command kCopyCommand{.name = "cp",
                           .alias = nullptr,
                           .summary = "Give a model a second name (its files are shared)",
                           .examples = "  still cp deepseek-r1:1.5b my-r1",
                           .declare = declare_copy};

}  // namespace still
