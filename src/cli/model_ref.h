// What a MODEL on the command line means, and pulling it where it may be.
#pragma once

#include <string>

#include "cli/command.h"
#include "cli/engine_options.h"
#include "hub/library.h"
#include "hub/pull.h"
#include "models/model.h"
#include "plan/memory.h"

namespace still {

// The own store and Ollama's, where there is one.
Result<Library> open_library(const Context& context);
// A name in the store, in Ollama's store, or a path; Library::find() has the rules.
Result<ResolvedModel> find_model(const Context& context, const std::string& model);
// As find_model; a name of the catalogue, or a source ("hf:...", "file:..."), that is not in the store is pulled first,
// with progress on stderr. What cannot run here with `settings` is refused before anything of it is loaded, as far as
// its header can be read from afar (a wheel's cannot) or the catalogue knows its architecture; the error names the
// nearest model of the catalogue that can.
Result<ResolvedModel> find_or_pull_model(const Context& context, const std::string& model,
                                         const EngineSettings& settings);
// As find_model; what could be pulled but is not here is an error that says how to get it.
Result<ResolvedModel> find_model_here(const Context& context, const std::string& model);

// A temporary folder of headers that goes away with the object.
class HeaderFolder {
 public:
  HeaderFolder() = default;
  ~HeaderFolder();
  HeaderFolder(const HeaderFolder&) = delete;
  HeaderFolder& operator=(const HeaderFolder&) = delete;
  Result<std::filesystem::path> create();

 private:
  std::filesystem::path path_;
};

// Nothing of that name is here; a source ("hf:...") is no name at all. Other errors mean that something is, but
// damaged.
inline bool is_absent(const Error& problem) {
  return problem.code == Code::kNotFound || problem.code == Code::kInvalidArgument;
}
// Whether `still pull` knows it: a source, or a name of the catalogue.
bool can_be_pulled(const std::string& model);

// Pulls with a progress line on stderr; Ctrl-C keeps what came. name: empty, or what to store it under.
Result<PullReport> pull_with_progress(const Context& context, Store& store, const std::string& what,
                                      const std::string& name);

// Loads with a progress line on stderr, to the device that the arguments name (null: the CPU). Errors are
// explain_failure()'s.
Result<std::shared_ptr<const Model>> load_model(const Context& context, const ResolvedModel& found, int n_threads,
                                                const EngineArguments* arguments = nullptr);
// The model that --draft names, which must be here; null where it names none.
Result<std::shared_ptr<const Model>> load_draft(const Context& context, const EngineArguments& arguments);

}  // namespace still
