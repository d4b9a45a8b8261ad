// still list: the models of the store and of an Ollama store, or of the catalogue.
#include <fmt/format.h>

#include <memory>

#include "base/json.h"
#include "cli/command.h"
#include "cli/model_ref.h"
#include "cli/table.h"
#include "hub/catalogue.h"
#include "hub/file_io.h"
#include "hub/store.h"

namespace still {
namespace {

struct ListOptions {
  std::string prefix;
  bool catalogue = false;
  bool json = false;
};

std::string short_count(double n) {
  if (n >= 1e9) return fmt::format("{:.1f} B", n / 1e9);
  if (n >= 1e6) return fmt::format("{:.0f} M", n / 1e6);
  return fmt::format("{:.0f}", n);
}

void list_catalogue_entries(const ListOptions& options, const Store& store) {
  JsonArray array;
  std::vector<std::vector<std::string>> rows = {{"NAME", "MODEL", "WEIGHTS", "SIZE", "CONTEXT", "LICENCE", ""}};
  for (const CatalogueEntry& entry : list_catalogue()) {
    const std::string name = entry.name.str();
    if (!name.starts_with(options.prefix)) continue;
    const bool is_here = store.contains(entry.name);
    JsonArray sources;
    for (const CatalogueSource& source : entry.sources) sources.emplace_back(source.source);
    array.push_back(JsonObject{{"name", name},
                               {"title", entry.title},
                               {"quantisation", entry.quantisation},
                               {"parameters", entry.parameters},
                               {"approx_bytes", entry.approx_bytes},
                               {"context", entry.context},
                               {"licence", entry.licence},
                               {"sources", std::move(sources)},
                               {"in_store", is_here}});
    rows.push_back({name, entry.title, short_count(entry.parameters), format_bytes(entry.approx_bytes),
                    std::to_string(entry.context), entry.licence, is_here ? "here" : ""});
  }
  if (options.json) {
    fmt::print("{}\n", to_json(array));
    return;
  }
  using enum Align;
  fmt::print("{}", format_table({kLeft, kLeft, kRight, kRight, kRight, kLeft, kLeft}, rows));
}

Status list_library(const ListOptions& options, const Library& library, const Context& context) {
  const LibraryListing listing = library.list();
  JsonArray array;
  std::vector<std::vector<std::string>> rows = {{"NAME", "ID", "SIZE", "PULLED", "FROM"}};
  for (const LibraryModel& model : listing.models) {
    if (!model.name.starts_with(options.prefix)) continue;
    const Result<ResolvedModel> resolved = model.resolved();
    const std::string created = resolved ? resolved->manifest.created : "";
    array.push_back(JsonObject{{"name", model.name},
                               {"digest", model.digest},
                               {"bytes", model.size},
                               {"created", created},
                               {"source", model.source},
                               {"licence", resolved ? resolved->manifest.licence : ""},
                               {"store", model.origin == ModelOrigin::kOllama ? "ollama" : "still"},
                               {"problem", model.problem}});
    std::string from = printable_line(model.source);
    if (!model.problem.empty()) from += " (cannot run: " + printable_line(model.problem) + ")";
    rows.push_back(
        {model.name, model.digest.substr(0, 12), format_bytes(model.size), created.substr(0, 10), std::move(from)});
  }
  for (const std::string& problem : listing.problems) fmt::print(stderr, "still: {}\n", problem);
  if (options.json) {
    fmt::print("{}\n", to_json(array));
    return ok();
  }
  if (rows.size() == 1 && context.out.is_tty()) {
    fmt::print("no models in {}; `still list --catalogue` shows what `still pull` knows\n",
               library.store().root().string());
    return ok();
  }
  using enum Align;
  fmt::print("{}", format_table({kLeft, kLeft, kRight, kLeft, kLeft}, rows));
  return ok();
}

Status list(const ListOptions& options, const Context& context) {
  STILL_TRY(const Library library, open_library(context));
  if (options.catalogue) {
    list_catalogue_entries(options, library.store());
    return ok();
  }
  return list_library(options, library, context);
}

Command::Action declare_list(Options& options) {
  auto chosen = std::make_shared<ListOptions>();
  options.optional("PREFIX", &chosen->prefix, "Only names that begin so");
  options.flag("-c,--catalogue", &chosen->catalogue, "What `still pull` knows by name, instead of what is here");
  options.flag("--json", &chosen->json, "An array of objects");
  return [chosen](const Context& context) { return list(*chosen, context); };
}

}  // namespace

extern const Command kListCommand;
const Command kListCommand{.name = "list",
                           .alias = "ls",
                           .summary = "List the models of the store, or of the catalogue",
                           .examples =
                               "  still list\n"
                               "  still list --catalogue deepseek-r1\n"
                               "  still list --json | jq -r '.[].name'",
                           .declare = declare_list};

}  // namespace still
