// still rm: names out of the store, and with the last name of its files the files.
#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "hub/file_io.h"
#include "hub/store.h"

namespace still {
namespace {

Status remove_models(const std::vector<std::string>& models, const Context& context) {
  STILL_TRY(Store store, Store::open(context.environment.models));
  // All names are checked before the first is removed.
  std::vector<ModelName> names;
  for (const std::string& model : models) {
    STILL_TRY(ModelName name, ModelName::parse(model));
    if (!store.contains(name)) {
      return error(Code::kNotFound, "no model \"{}\" in the store {}; `still list` shows what is there", name.str(),
                   store.root().string());
    }
    names.push_back(std::move(name));
  }
  for (const ModelName& name : names) {
    STILL_TRY(const RemoveReport report, store.remove(name));
    fmt::print("deleted '{}'", name.str());
    if (report.freed_bytes > 0) fmt::print(", {} free again", format_bytes(report.freed_bytes));
    fmt::print("\n");
    for (const std::string& problem : report.problems) fmt::print(stderr, "still: {}\n", problem);
  }
  return ok();
}

Command::Action declare_remove(Options& options) {
  auto models = std::make_shared<std::vector<std::string>>();
  options.rest("MODEL", models.get(), true, "Names in the store");
  return [models](const Context& context) { return remove_models(*models, context); };
}

}  // namespace

extern const Command kRemoveCommand;
const Command kRemoveCommand{.name = "rm",
                             .alias = nullptr,
                             .summary = "Remove models from the store",
                             .examples =
                                 "  still rm smollm2:135m\n"
                                 "  still rm qwen2.5:0.5b qwen2.5:1.5b",
                             .declare = declare_remove};

}  // namespace still
