// What Ollama's API tells of a model without loading it: architecture, sizes, capabilities, template. Read from the
// file's header, once for each file.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "files/checkpoint.h"
#include "hub/library.h"

namespace still {

struct ModelFacts {
  std::string format;          // "gguf", "safetensors"
  std::string family;          // "llama"
  std::string parameter_size;  // "134.52M", "7.6B"
  std::string quantization;    // "Q4_K_M"; "unknown" where the file does not say
  std::int64_t n_parameters = 0;
  std::int64_t context = 0, embedding_length = 0;  // 0: not said
  std::string chat_template;                       // the file's own
  std::vector<std::string> capabilities;           // completion, tools, thinking, insert, embedding
  bool can(std::string_view capability) const;
  JsonObject details() const;  // of /api/tags, /api/ps and /api/show
};

// Thread-safe.
class ModelFactsCache {
 public:
  // Errors of the header, as Checkpoint::open gives them.
  Result<std::shared_ptr<const ModelFacts>> get(const LibraryModel& model);

 private:
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const ModelFacts>> by_key_;
};

Result<ModelFacts> read_model_facts(const Checkpoint& checkpoint, const LibraryModel& model);
// The header's keys and values; arrays longer than five are left empty unless `verbose`. Of safetensors: the keys that
// clients read, made of config.json.
JsonObject model_info(const Checkpoint& checkpoint, const ModelFacts& facts, bool verbose);
// "7.6B", "134.52M": as Ollama rounds counts.
std::string ollama_count(std::int64_t n);

}  // namespace still
