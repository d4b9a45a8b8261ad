// The store: models on disk, content-addressed. Layout under its root:
//   blobs/sha256-<hex>            the bytes, named by their digest, read-only, shared by all models that hold them
//   manifests/[ns/]model/tag.json what a model is: files (name, size, digest), where it came from, when, by what
//   views/<digest>/<file name>    for models of several files: symbolic links to the blobs under their own names
//   partial/                      downloads under way (state beside data), kept by Ctrl-C, kill and full disks
//   lock                          held (flock) while blobs or manifests change
// Every write is a temporary file, fsync and rename. Safe for several processes at once; an object is used by one
// thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "hub/model_name.h"

namespace still {

struct StoredFile {
  std::string name;  // relative, '/' between folders: "model-00001-of-00002.gguf"
  std::int64_t size = 0;
  std::string sha256;
};

struct Manifest {
  ModelName name;
  std::string source;   // "hf:owner/repo:file.gguf", as a source can be asked again
  std::string created;  // RFC 3339, UTC
  std::string version;  // of the program that wrote it
  std::string command;  // that led to it; may be empty
  double seconds = 0;   // that the pull took
  std::string licence;
  std::vector<StoredFile> files;
  JsonObject parameters;          // sampling and context overrides: {"temperature": 0.6}
  std::string template_text;      // chat template override; empty: the model's own
  std::string template_language;  // of template_text: "go", or "jinja" (also when empty)
  std::string system;             // system prompt; empty: none
  JsonArray messages;             // that every chat begins with: [{"role": "user", "content": "..."}]

  std::int64_t total_bytes() const;
  std::string digest() const;  // 64 hex digits over names and digests of the files; equal models have equal ones
};

struct StoreListing {
  std::vector<Manifest> models;       // sorted by name
  std::vector<std::string> problems;  // manifests that cannot be read, one sentence each
};

struct RemoveReport {
  std::vector<std::string> removed;  // names
  std::int64_t freed_bytes = 0;
  std::vector<std::string> problems;  // why unreferenced blobs were kept, if they were
};

// A complete, synced file that commit() moves into blobs/.
struct StagedFile {
  std::filesystem::path path;
  std::string sha256;
};

class Store {
 public:
  // Makes the folders that are missing. `root` is often <data home>/still/models; cli/ decides it.
  static Result<Store> open(const std::filesystem::path& root);

  const std::filesystem::path& root() const { return root_; }
  Result<StoreListing> list() const;
  Result<Manifest> read(const ModelName& name) const;  // kNotFound, or kCorrupt with what is wrong
  bool contains(const ModelName& name) const;
  // Where the engine opens it: the blob of a single GGUF, else the folder views/<digest> (made again if missing).
  Result<std::filesystem::path> model_path(const Manifest& manifest) const;

  bool has_blob(const std::string& sha256, std::int64_t size = -1) const;
  std::filesystem::path blob_path(const std::string& sha256) const;
  std::filesystem::path partial_folder() const { return root_ / "partial"; }

  // Moves the staged files into blobs/ and writes the manifest, under the lock: a removal in another process cannot
  // take blobs in between. Replaces a model of that name. kNotFound if a blob of the manifest is neither staged nor
  // there.
  Status commit(const Manifest& manifest, const std::vector<StagedFile>& staged);
  // Removes the name, then what no manifest refers to any more.
  Result<RemoveReport> remove(const ModelName& name);
  Status copy(const ModelName& from, const ModelName& to);
  // Removes blobs and views without a manifest. Keeps all of them while some manifest cannot be read.
  Result<RemoveReport> collect_garbage();
  // Removes downloads that no process works on and whose last change is at least `age` ago; returns the bytes freed.
  Result<std::int64_t> remove_partials(std::chrono::seconds age);
  // Reads every byte of the model again; kCorrupt names the first file whose digest differs.
  Status verify(const Manifest& manifest) const;
  // Disk taken by distinct blobs (not by downloads under way).
  Result<std::int64_t> total_bytes() const;

 private:
  explicit Store(std::filesystem::path root) : root_(std::move(root)) {}
  std::filesystem::path manifest_path(const ModelName& name) const;
  Status make_view(const Manifest& manifest) const;
  Result<RemoveReport> collect_garbage_locked();

  std::filesystem::path root_;
};

Json manifest_to_json(const Manifest& manifest);
Result<Manifest> manifest_from_json(const Json& json, std::string_view what);
// Relative, no "..", no empty part, no control characters: safe to make below a folder.
Status check_file_name(std::string_view name);
std::string utc_now();  // "2025-01-31T12:00:00Z"

}  // namespace still
