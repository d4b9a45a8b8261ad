// ModelPool: the models that are loaded, by name. Loads at first use, keeps for keep_alive after the last use, holds
// several at once while the plan fits the machine, and unloads the least recently used idle one where it does not.
// Requests wait meanwhile in a queue with a bound.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "engine/engine.h"
#include "hub/library.h"
#include "text/chat_template.h"

namespace still {

// A loaded model and what its manifest says beside the file. Immutable but for the engine, which is thread-safe.
struct ServedModel {
  std::string name;    // canonical: "smollm2:135m"
  std::string digest;  // 64 hex digits
  std::int64_t file_bytes = 0;
  std::string modified;  // RFC 3339
  std::shared_ptr<const Model> model;
  std::unique_ptr<Engine> engine;             // started; null for an embedding-only model
  std::optional<ChatTemplate> chat_template;  // the manifest's, else the model's own, else by its special tokens
  bool can_think = false;                     // thinking tokens in the vocabulary
  JsonObject parameters;                      // of the manifest: {"temperature": 0.6, "stop": [...]}
  std::string system;                         // system prompt; empty: none
  std::string licence;
  std::chrono::nanoseconds load_time{};
  std::chrono::system_clock::time_point loaded_at;
};

// Keeps the model loaded while it lives; a request holds one from its start to its FinishedEvent.
class ModelLease {
 public:
  virtual ~ModelLease() = default;
  virtual const ServedModel& model() const = 0;
  // True if this request had to wait for the load: Ollama's load_duration.
  virtual std::chrono::nanoseconds load_duration() const = 0;
  // Time to keep the model after this lease ends: negative: for ever; 0: unload at once; absent: the server's default.
  virtual void set_keep_alive(std::optional<std::chrono::nanoseconds> keep_alive) = 0;
};

struct ModelWish {
  std::string name;          // as the client wrote it; "" is an error
  std::int64_t context = 0;  // num_ctx; 0: the server's default. A loaded model with at least that context serves it
  std::optional<std::chrono::nanoseconds> keep_alive;
  bool is_bound = false;  // takes the model with the context that it has, or that the server would load it with
};

struct LoadedModelInfo {  // for /api/ps, `still ps`, /metrics
  std::string name, digest;
  std::int64_t file_bytes = 0, memory_bytes = 0, context = 0, n_leases = 0;
  std::optional<std::chrono::system_clock::time_point> expires_at;  // absent: never
  EngineStats stats;
  bool is_loading = false;
  bool is_on_gpu = false;  // memory_bytes are the GPU's
};

// Of one moment: what an engine has counted is in `ended` from the moment that its model is no longer loaded.
struct PoolSnapshot {
  std::vector<LoadedModelInfo> loaded;
  std::map<std::string, EngineStats> ended;  // counters of unloaded engines, by the model's name
};

class ModelPool {
 public:
  virtual ~ModelPool() = default;
  // Calls `ready` once, on a thread of the pool (never before acquire returns). Errors: kNotFound with the closest
  // names (base Error's message is the sentence to show), kResourceExhausted where the model can never fit,
  // kUnavailable where the queue is full or the server drains ("server busy, please try again."). Cancelled by
  // destroying the returned ticket.
  virtual std::shared_ptr<void> acquire(ModelWish wish,
                                        std::function<void(Result<std::shared_ptr<ModelLease>>)> ready) = 0;
  virtual std::vector<LoadedModelInfo> loaded() const = 0;
  virtual PoolSnapshot snapshot() const { return {.loaded = loaded(), .ended = {}}; }
  // Unloads when its last request is done; kNotFound if it is not loaded.
  virtual Status unload(const std::string& name) = 0;
  // The store changed (pull, create, copy, delete): names are looked up again.
  virtual void refresh() = 0;
  // From now on acquire() answers kUnavailable; what waits for a model that is not loaded is refused, too.
  virtual void drain() {}
  // Requests that run are cancelled, all models unloaded. Also done at destruction.
  virtual void stop() {}
};

// Where models compute. kAuto: on the first GPU where there is one that the model fits into, else on the CPU.
enum class DeviceChoice : std::uint8_t { kAuto, kCpu, kCuda };

struct ModelPoolOptions {
  LibraryOptions library;
  // memory_limit: of all models together (on a GPU: there; else of the machine); 0: what is available when the pool is
  // made.
  EngineSettings engine;
  DeviceChoice device = DeviceChoice::kCpu;
  Speculation speculation = Speculation::kOff;
  std::filesystem::path draft;  // a model that drafts for larger ones of its vocabulary; empty: none
  std::chrono::nanoseconds keep_alive = std::chrono::minutes(5);
  std::int64_t max_models = 0;                        // 0: as many as fit
  std::int64_t max_queue = 512;                       // requests that wait for a model
  int n_callback_threads = 2;                         // on which `ready` is called
  std::function<void(bool begins)> around_step_ends;  // EngineOptions, of every engine; may be empty
  std::function<void(bool is_ok)> on_load;            // a model was loaded, or could not be; may be empty
  std::function<void(const std::string&)> log;        // a sentence about loading and unloading; may be empty
};

// kInvalidArgument or the like where the store cannot be opened; kUnavailable for kCuda where there is no GPU.
Result<std::unique_ptr<ModelPool>> make_model_pool(ModelPoolOptions options);

// What an engine would be made with for this model, where `available` bytes are left for it: the context wanted, else
// the model's, or what half of the memory beside the weights holds (another model may come), or all of it where half
// is not enough for kGoodContext tokens. A context that does not fit becomes the longest that does.
// The KV cache holds wanted.kv_tokens, else 2,048 tokens for each of the sequences, or less where that does not fit;
// never less than one context.
inline constexpr std::int64_t kGoodContext = 8192;
Result<MemoryPlan> plan_served_model(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                                     EngineSettings wanted, std::int64_t available);

}  // namespace still
