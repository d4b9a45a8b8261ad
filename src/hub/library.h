// The library: every model that can be named, whoever keeps it. The own store comes first, then an existing Ollama
// store, read in place; a path of a file or folder is a name, too. Commands and the server look models up here.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "hub/ollama_store.h"
#include "hub/pull.h"
#include "hub/store.h"

namespace still {

enum class ModelOrigin { kStore, kOllama, kPath };

// The language of a chat template that is not the model file's own.
inline constexpr std::string_view kTemplateJinja = "jinja", kTemplateGo = "go";

struct LibraryModel {
  std::string name;  // "qwen2.5:0.5b", "hf.co/owner/repo:q4_k_m", or the path
  ModelOrigin origin = ModelOrigin::kPath;
  std::filesystem::path path;  // what Model::load takes
  // Of the stored bytes: the store's digest over names and digests of the files, Ollama's digest of its manifest; of a
  // path empty.
  std::string digest;
  std::int64_t size = 0;                           // bytes of all its files
  std::vector<StoredFile> files;                   // the weights below or at `path`; of a path empty
  std::chrono::system_clock::time_point modified;  // pulled, made or (a path) written
  std::string source;                              // where it came from, for people
  JsonObject parameters;                           // defaults of a request: {"temperature": 0.6, "stop": [...]}
  std::string template_text;                       // chat template to use instead of the model's own; empty: none
  std::string template_language;                   // kTemplateJinja or kTemplateGo; empty with template_text
  std::string system;                              // system prompt of chats that bring none
  std::vector<std::string> licences;               // of the store: a name; of Ollama's: whole texts
  JsonArray messages;                              // that every chat begins with
  JsonObject config;                               // Ollama's: model_family, model_type, file_type, ...
  std::string problem;                             // why it cannot run here (an adapter, no weights); empty: it may

  // The same for what only knows ResolvedModel: a manifest is made up for Ollama's models. kUnsupported with `problem`.
  Result<ResolvedModel> resolved() const;
};

struct LibraryListing {
  std::vector<LibraryModel> models;   // sorted by name; one of each name
  std::vector<std::string> problems;  // one sentence each
};

struct LibraryOptions {
  std::filesystem::path store;   // root of the own store; made if missing
  std::filesystem::path ollama;  // root of Ollama's store; empty: none
};

// Immutable; may be used from many threads. Every call looks at the disk again.
class Library {
 public:
  static Result<Library> open(const LibraryOptions& options);

  const Store& store() const { return store_; }
  const OllamaStore& ollama() const { return ollama_; }

  LibraryListing list() const;
  // A name, an alias of the catalogue, a path. kNotFound with the closest names; kCorrupt for a damaged model. Reads
  // manifests only, not the model.
  Result<LibraryModel> find(std::string_view name) const;
  // As find(), but never a path: what a server may be asked for.
  Result<LibraryModel> find_stored(std::string_view name) const;
  // Up to three names that look like `name`.
  std::vector<std::string> closest(std::string_view name) const;
  // "model 'x' not found; did you mean y?": for who is not at this machine, unlike find_stored()'s sentence.
  std::string not_found_sentence(std::string_view name) const;

 private:
  Library(Store store, OllamaStore ollama) : store_(std::move(store)), ollama_(std::move(ollama)) {}
  Result<LibraryModel> from_store(const Manifest& manifest) const;

  Store store_;
  OllamaStore ollama_;
};

// The first of these that is not empty and, but for the first, holds manifests: `ollama_models` (the variable
// OLLAMA_MODELS), <home>/.ollama/models, /usr/share/ollama/.ollama/models. Empty: none.
std::filesystem::path find_ollama_root(const std::filesystem::path& ollama_models, const std::filesystem::path& home);

}  // namespace still
