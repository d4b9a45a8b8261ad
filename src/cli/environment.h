// Environment: all environment variables that still reads (STILL_ISA, in kernels/, and STILL_SCREEN, in ops/, are the
// exceptions), read once.
#pragma once

#include <filesystem>
#include <string>

#include "base/result.h"
#include "hub/source.h"

namespace still {

struct Environment {
  std::filesystem::path models;  // STILL_MODELS, else <XDG_DATA_HOME or ~/.local/share>/still/models
  // Ollama's store: OLLAMA_MODELS, else ~/.ollama/models or /usr/share/ollama/.ollama/models where it is one; empty:
  // none.
  std::filesystem::path ollama_models;
  std::filesystem::path state;  // <XDG_STATE_HOME or ~/.local/state>/still: chat history, saved chats
  HubOptions hub;               // HF_ENDPOINT, HF_TOKEN
  bool no_colour = false;       // NO_COLOR set and not empty (no-color.org), or TERM=dumb
};

// kInvalidArgument where neither the variables nor HOME say where to keep models.
Result<Environment> read_environment();

}  // namespace still
