// A store that Ollama keeps, read in place: its models run here without a second download. Layout under its root:
//   manifests/<host>/<namespace>/<model>/<tag>   Docker's v2 manifest: layers by media type, digest and size
//   blobs/sha256-<hex>                           the bytes: a GGUF for the model, small files for the rest
// Nothing is ever written there. A manifest that cannot be used is a sentence in the listing, never a failure of it.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace still {

// [host/][namespace/]model[:tag]; what is left out is registry.ollama.ai, library, latest. Case as on disk; two names
// that differ in case only are the same.
struct OllamaName {
  std::string host = "registry.ollama.ai";
  std::string space = "library";
  std::string model;
  std::string tag = "latest";

  // kInvalidArgument for text that cannot be such a name: parts of letters, digits, "_", "-", ".", none of them "..".
  static Result<OllamaName> parse(std::string_view text);
  std::string str() const;  // "qwen2.5:0.5b", "hf.co/owner/repo:q4_k_m": host and namespace only where not the default
};
bool is_same_name(const OllamaName& a, const OllamaName& b);

struct OllamaModel {
  OllamaName name;
  std::string digest;                              // 64 hex digits: SHA-256 of the manifest's bytes, as Ollama shows it
  std::int64_t size = 0;                           // of all layers and the configuration
  std::chrono::system_clock::time_point modified;  // of the manifest
  std::filesystem::path path;                      // the GGUF; empty: a model without one (a cloud model)
  std::string model_sha256;                        // of the GGUF
  std::int64_t model_size = 0;
  std::vector<std::filesystem::path> adapters, projectors;
  JsonObject config;          // model_format, model_family, model_families, model_type ("7.6B"), file_type ("Q4_K_M")
  JsonObject parameters;      // {"temperature": 0.6, "stop": ["<|im_end|>"]}
  std::string template_text;  // Go text/template; empty: the GGUF's own
  std::string system;
  std::vector<std::string> licences;  // whole texts
  JsonArray messages;                 // [{"role": "user", "content": "..."}]
};

struct OllamaListing {
  std::vector<OllamaModel> models;    // sorted by name
  std::vector<std::string> problems;  // one sentence each
};

// Immutable; may be used from many threads. What another program changes meanwhile is seen by the next call.
class OllamaStore {
 public:
  // A root that does not exist is an empty store.
  explicit OllamaStore(std::filesystem::path root) : root_(std::move(root)) {}

  const std::filesystem::path& root() const { return root_; }
  bool exists() const;  // there is a folder of manifests
  OllamaListing list() const;
  // kNotFound without a manifest of that name; kCorrupt or kUnsupported, in a sentence, for one that cannot be used.
  Result<OllamaModel> find(std::string_view name) const;

 private:
  std::vector<std::pair<OllamaName, std::filesystem::path>> manifests(std::vector<std::string>& problems) const;
  Result<OllamaModel> read(const OllamaName& name, const std::filesystem::path& manifest) const;
  Result<std::filesystem::path> blob(std::string_view digest, std::int64_t size) const;
  Result<std::string> read_small(std::string_view digest, std::int64_t size) const;

  std::filesystem::path root_;
};

}  // namespace still
