#include "cli/environment.h"

#include <pwd.h>
#include <unistd.h>

#include <cstdlib>

#include "hub/library.h"

namespace still {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::filesystem::path home() {
  if (const std::string from_variable = variable("HOME"); !from_variable.empty()) return from_variable;
  const passwd* user = getpwuid(getuid());
  return user && user->pw_dir ? user->pw_dir : "";
}

// XDG Base Directory Specification 0.8: relative paths in the variables are ignored.
std::filesystem::path xdg_folder(const char* name, const char* below_home) {
  if (std::filesystem::path folder = variable(name); folder.is_absolute()) return folder;
  const std::filesystem::path from_home = home();
  return from_home.empty() ? from_home : from_home / below_home;
}

}  // namespace

Result<Environment> read_environment() {
  Environment environment;
  const std::filesystem::path data = xdg_folder("XDG_DATA_HOME", ".local/share");
  const std::filesystem::path state = xdg_folder("XDG_STATE_HOME", ".local/state");
  if (const std::string models = variable("STILL_MODELS"); !models.empty()) {
    environment.models = std::filesystem::absolute(models);
  } else if (!data.empty()) {
    environment.models = data / "still" / "models";
  } else {
    return error(Code::kInvalidArgument,
                 "no folder for models: neither HOME nor XDG_DATA_HOME is set; set STILL_MODELS");
  }
  environment.ollama_models = find_ollama_root(variable("OLLAMA_MODELS"), home());
  environment.state = state.empty() ? environment.models / "state" : state / "still";
  if (const std::string endpoint = variable("HF_ENDPOINT"); !endpoint.empty()) environment.hub.hf_endpoint = endpoint;
  environment.hub.hf_token = variable("HF_TOKEN");
  environment.no_colour = !variable("NO_COLOR").empty() || variable("TERM") == "dumb";
  return environment;
}

}  // namespace still
