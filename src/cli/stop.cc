// still stop: a running server unloads a model once its requests are done.
#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/server_client.h"

namespace still {
namespace {

Status stop_model(const std::string& model) {
  STILL_TRY(const ServeEnvironment environment, read_serve_environment());
  // As Ollama's command does it, so that it works with either server.
  const JsonObject request{{"model", model}, {"keep_alive", 0}, {"stream", false}};
  STILL_TRY([[maybe_unused]] const Json answer, call_server(environment, "/api/generate", to_json(request)));
  return ok();
}

Command::Action declare_stop(Options& options) {
  auto model = std::make_shared<std::string>();
  options.required("MODEL", model.get(), "A model of `still ps`");
  return [model](const Context&) { return stop_model(*model); };
}

}  // namespace

extern const Command kStopCommand;
const Command kStopCommand{.name = "stop",
                           .alias = nullptr,
                           .summary = "Unload a model from a running server",
                           .examples =
                               "  still stop smollm2:135m\n"
                               "  STILL_HOST=10.0.0.5:11434 still stop smollm2:135m",
                           .declare = declare_stop};

}  // namespace still
