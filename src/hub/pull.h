// Pulling: from a name of the catalogue or an explicit source to a model in the store.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"
#include "hub/cancel.h"
#include "hub/progress.h"
#include "hub/source.h"
#include "hub/store.h"

namespace still {

struct PullRequest {
  std::string what;     // "deepseek-r1:7b", "hf:owner/repo:file.gguf", ...
  std::string name;     // to store it under; empty: the catalogue's, or made of the source
  std::string command;  // for the manifest: what the user typed; may be empty
  HubOptions options;
};

struct PullReport {
  Manifest manifest;
  std::filesystem::path path;  // for the engine: a GGUF blob or a folder
  bool was_there = false;      // nothing had to be loaded
  std::int64_t fetched_bytes = 0;
  std::int64_t resumed_bytes = 0;
  double seconds = 0;
  std::vector<std::string> notes;  // sources that failed, fresh starts; also given to the progress function
};

// Sources are tried in order; why one failed is told in one line (Phase::kNote). Cancellation and a full disk end the
// pull. Everything loaded so far stays in the store's partial/ folder and serves the next pull of the same bytes. Two
// pulls of the same bytes: the later one waits for the earlier and finds them done. The error, when all sources fail,
// names each.
Result<PullReport> pull(Store& store, const PullRequest& request, const ProgressFn& progress,
                        const CancelToken& cancel);

// A MODEL argument of a command: a name in the store, an alias of the catalogue for one, or a path of a file or folder.
struct ResolvedModel {
  std::string name;            // the store's name or the path
  std::filesystem::path path;  // a file or a folder to open
  bool is_stored = false;
  Manifest manifest;  // when is_stored: parameters, template, system prompt
};

// Order: what looks like a path ("./x", "/x", "~" is the shell's work, or ends in .gguf or .safetensors) is one; then
// the store; then any path that exists. kNotFound suggests close names of the store, or the pull that would bring it.
Result<ResolvedModel> resolve_model(const Store& store, std::string_view argument);
// Whether resolve_model() takes it for a path, there or not.
bool looks_like_path(std::string_view text);
// An error of opening or loading `model`, made a sentence on its own: which model, what was found, what to do (get it
// again, or choose another). Errors of memory, permissions and arguments say so themselves and stay as they are.
Error explain_failure(Error problem, const ResolvedModel& model);
// The same for commands that need a stored model (rm, cp, show): exact name, else the catalogue's name of an alias;
// "library/NAME" and "registry.ollama.ai/library/NAME" are NAME where there is no such namespace.
Result<ModelName> find_stored_name(const Store& store, std::string_view argument);

}  // namespace still
