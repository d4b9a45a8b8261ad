// Three kinds of threads: callers, who only queue a wish; the callback threads, which look the name up and later call
// `ready`; and one loader, which loads, unloads and keeps the time. The state is under one lock, which nobody holds
// while a file is read, an engine is made or stopped, or `ready` runs.
#include "serve/model_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <ctime>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "engine/chat.h"
#include "engine/model_drafter.h"
#include "engine/vocab.h"
#include "models/arch.h"
#include "models/encoder.h"

namespace still {
namespace {

using Clock = std::chrono::steady_clock;
using Ready = std::function<void(Result<std::shared_ptr<ModelLease>>)>;

constexpr std::chrono::seconds kNameAge{2};  // so long a name's manifest is not read again
// Of the memory that is available when the pool starts: the rest is for what the server itself takes.
constexpr double kBudgetShare = 0.95;
constexpr std::int64_t kRounding = 64 << 20;

Error busy_error() {
  return {Code::kUnavailable, "server busy, please try again.  maximum pending requests exceeded"};
}
Error draining_error() {
  return {Code::kUnavailable, "the server is shutting down"};
}

// Pages of this process that are in memory, bytes.
std::int64_t resident_bytes() {
  long total = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%ld %ld", &total, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return static_cast<std::int64_t>(resident) * 4096;
}

std::string rfc3339(std::chrono::system_clock::time_point time) {
  const std::time_t seconds = std::chrono::system_clock::to_time_t(time);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
                     utc.tm_hour, utc.tm_min, utc.tm_sec);
}

// A model's headers: enough to know what it will take.
struct Headers {
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  std::int64_t weight_bytes = 0, max_k = 0;
  bool screens_head = false;  // on the CPU
  // On a GPU, or on the fullest of those that share the model.
  ModelConfig gpu_config;
  std::int64_t gpu_weight_bytes = 0;
  std::vector<std::int64_t> rank_columns;
  bool has_f32_activations = false;      // on a GPU
  std::shared_ptr<const Headers> draft;  // of the model that drafts for it; null: none
};

Result<Headers> read_headers(const std::filesystem::path& path, std::int32_t n_ranks) {
  STILL_TRY(Checkpoint opened, Checkpoint::open(path));
  Headers headers;
  headers.checkpoint = std::make_shared<const Checkpoint>(std::move(opened));
  if (is_encoder(*headers.checkpoint))
    return error(Code::kInvalidArgument,
                 "this is a model for embeddings (POST /v1/embeddings, /api/embed): it does not "
                 "support chat or completions");
  STILL_TRY(const Arch* arch, find_arch(headers.checkpoint->architecture()));
  STILL_TRY(headers.config, arch->read_config(headers.checkpoint->config()));
  STILL_TRY(const WeightLayout layout, weight_layout(*arch, headers.config, *headers.checkpoint));
  headers.weight_bytes = layout.arena_bytes;
  headers.screens_head = screens_head(layout);
  for (const WeightLayout::Item& item : layout.items) {
    if (!item.source || item.spec.role == TensorRole::kEmbedding || item.spec.role == TensorRole::kVector) continue;
    headers.max_k = std::max(headers.max_k, item.source->shape[1]);
    if (item.source->dtype != DType::kBF16 && item.source->dtype != DType::kF16) headers.has_f32_activations = true;
  }
  for (std::int32_t i = 0; i < n_ranks; ++i) {
    STILL_TRY(const WeightLayout on_gpu,
              weight_layout(*arch, headers.config, *headers.checkpoint, {.is_on_cuda = true, .rank = {i, n_ranks}}));
    headers.rank_columns.push_back(on_gpu.parts.vocabulary.begin);
    if (on_gpu.arena_bytes <= headers.gpu_weight_bytes) continue;
    headers.gpu_weight_bytes = on_gpu.arena_bytes;
    headers.gpu_config = on_gpu.parts.config(headers.config);
  }
  headers.rank_columns.push_back(headers.config.vocab_size);
  return headers;
}

// Whether the model at `path` can draft for this one.
Result<std::shared_ptr<const Headers>> read_draft(const std::filesystem::path& path, const Headers& model) {
  STILL_TRY(Headers draft, read_headers(path, 1));
  if (draft.weight_bytes >= model.weight_bytes)
    return error(Code::kInvalidArgument, "the draft model is not smaller than the model");
  STILL_TRY(const Tokenizer tokenizer, load_tokenizer(*model.checkpoint));
  STILL_TRY(const Tokenizer draft_tokenizer, load_tokenizer(*draft.checkpoint));
  STILL_TRY_STATUS(check_same_vocabulary(tokenizer, draft_tokenizer));
  return std::make_shared<const Headers>(std::move(draft));
}

Result<std::unique_ptr<ServedModel>> make_served(const LibraryModel& source, const Headers& headers,
                                                 EngineOptions options) {
  auto served = std::make_unique<ServedModel>();
  served->name = source.name;
  served->digest = source.digest;
  served->file_bytes = source.size;
  served->modified = rfc3339(source.modified);
  served->parameters = source.parameters;
  served->system = source.system;
  if (!source.licences.empty()) served->licence = source.licences[0];
  LoadOptions load{.n_threads = options.settings.n_threads, .cuda_device = options.settings.cuda_device};
  if (load.cuda_device >= 0 && !options.settings.rank_devices.empty()) {
    STILL_TRY(served->model, Model::over_devices(options.settings.rank_devices, [&](Rank rank, std::int32_t device) {
                load.rank = rank;
                load.cuda_device = device;
                return Model::load(headers.checkpoint, load);
              }));
  } else {
    STILL_TRY(served->model, Model::load(headers.checkpoint, load));
  }
  if (headers.draft != nullptr && load.cuda_device < 0) {
    STILL_TRY(options.draft, Model::load(headers.draft->checkpoint, load));
  }
  STILL_TRY(served->engine, Engine::create(served->model, options));
  const TemplateLanguage language =
      source.template_language == kTemplateGo ? TemplateLanguage::kGo : TemplateLanguage::kJinja;
  Result<ChatTemplate> parsed = source.template_text.empty()
                                    ? chat_template_of(*served->model, source.name)
                                    : load_chat_template(source.template_text, source.name, language);
  // A template that cannot be parsed is told to those who chat; completions need none.
  if (parsed) served->chat_template.emplace(std::move(*parsed));
  served->can_think = make_vocab(served->model->tokenizer(), served->model->config().vocab_size).has_thinking();
  served->engine->start();
  return served;
}

// One model under its name.
struct Entry {
  enum class State : std::uint8_t { kLoading, kReady, kUnloading };
  State state = State::kLoading;
  LibraryModel source;
  std::shared_ptr<ServedModel> served;
  std::int64_t plan_bytes = 0, context = 0;
  bool is_on_gpu = false;   // plan_bytes are the GPU's
  bool is_longest = false;  // a longer context does not fit, or the model was made for none
  // Why it gives no more leases and goes when it is idle:
  bool is_unwanted = false;  // unload() was called
  bool makes_room = false;   // another model that is being loaded needs its room
  bool is_outdated = false;  // a request waits for a longer context or newer bytes of the same name
  bool is_closing() const { return is_unwanted || makes_room || is_outdated; }
  std::int64_t n_leases = 0;
  Clock::time_point last_used = Clock::now();
  std::optional<Clock::time_point> expires;  // absent: never
  std::chrono::nanoseconds keep_alive{};     // of the last request
  std::chrono::nanoseconds load_time{};
};

struct Waiter {
  std::uint64_t id = 0;
  ModelWish wish;
  LibraryModel source;
  Ready ready;
  Clock::time_point since;
  bool has_waited_for_load = false;
};

// PARAMETER num_ctx: what the model is loaded with where no request wants more; 0: not said.
std::int64_t modelfile_context(const LibraryModel& model) {
  const Json* value = model.parameters.if_contains("num_ctx");
  return value != nullptr && value->is_int64() ? std::max<std::int64_t>(0, value->get_int64()) : 0;
}

std::int64_t wanted_context(const Waiter& waiter) {
  return waiter.wish.is_bound ? 0 : waiter.wish.context;
}

struct PoolState {
  PoolState(ModelPoolOptions chosen, Library opened, std::optional<CudaDeviceInfo> found)
      : options(std::move(chosen)),
        library(std::move(opened)),
        gpu(std::move(found)),
        gpu_budget(!gpu ? 0
                   : options.engine.memory_limit > 0
                       ? std::min(options.engine.memory_limit, gpu->free_bytes)
                       : static_cast<std::int64_t>(static_cast<double>(gpu->free_bytes) * kBudgetShare)),
        budget(options.engine.memory_limit > 0
                   ? options.engine.memory_limit
                   : static_cast<std::int64_t>(static_cast<double>(available_memory()) * kBudgetShare)) {}

  std::shared_ptr<void> acquire(ModelWish wish, Ready ready);
  PoolSnapshot snapshot() const;
  Status unload(const std::string& name);
  void refresh();
  void drain();
  void stop();

  void run_callbacks();
  void run_loader();

  void enqueue(Waiter waiter);
  Result<LibraryModel> look_up(const std::string& name);
  void call(Ready ready, Result<std::shared_ptr<ModelLease>> result);  // locked; queues the call
  void schedule();                                                     // locked
  void grant(Entry& entry, Waiter waiter);                             // locked
  void fail_waiters(const std::string& name, const Error& problem);    // locked
  bool has_waiter(const std::string& name) const;                      // locked
  void release(const std::string& name, const ServedModel* served, std::optional<std::chrono::nanoseconds> keep_alive);
  void forget(std::uint64_t waiter_id);
  std::string next_to_load() const;                         // locked; empty: none
  std::string next_to_unload(Clock::time_point now) const;  // locked; empty: none
  std::optional<Clock::time_point> next_expiry() const;     // locked
  void load(std::unique_lock<std::mutex>& lock, const std::string& name);
  void evict(std::unique_lock<std::mutex>& lock, const std::string& name);
  // Waits until the model may be made; the plan, or why not. kCancelled: nobody waits for it any more.
  Result<MemoryPlan> make_room(std::unique_lock<std::mutex>& lock, const std::string& name, const Headers& headers,
                               bool on_gpu);
  std::int64_t memory_left(const std::string& name, bool on_gpu) const;  // locked
  bool fits_gpu(const Headers& headers) const;                           // if it were alone there
  void log(const std::string& sentence) const {
    if (options.log) options.log(sentence);
  }

  const ModelPoolOptions options;
  const Library library;
  const std::optional<CudaDeviceInfo> gpu;  // absent: all on the CPU
  const std::int64_t gpu_budget;
  const std::int64_t budget;
  std::weak_ptr<PoolState> self;

  mutable std::mutex mutex;
  std::condition_variable loader_wake, callback_wake;
  bool is_draining = false, is_stopped = false;
  std::uint64_t next_waiter = 1;
  std::map<std::string, Entry> entries;
  std::map<std::string, EngineStats> ended;  // counters of engines that are gone, by name
  std::list<Waiter> waiters;                 // in order of arrival; each has its source
  std::deque<Waiter> unresolved;             // names to look up
  std::deque<std::function<void()>> calls;
  std::map<std::string, std::pair<LibraryModel, Clock::time_point>> names;

  std::vector<std::thread> threads;
  std::thread loader;
};

class Lease : public ModelLease {
 public:
  Lease(std::weak_ptr<PoolState> state, std::string name, std::shared_ptr<ServedModel> served,
        std::chrono::nanoseconds load_duration, std::optional<std::chrono::nanoseconds> keep_alive)
      : state_(std::move(state)),
        name_(std::move(name)),
        served_(std::move(served)),
        load_duration_(load_duration),
        keep_alive_(keep_alive) {}
  ~Lease() override {
    // The pool holds the model, too: an engine is never destroyed on its own thread.
    const ServedModel* served = served_.get();
    const std::shared_ptr<PoolState> state = state_.lock();
    if (!state) return;
    served_.reset();
    state->release(name_, served, keep_alive_);
  }
  const ServedModel& model() const override { return *served_; }
  std::chrono::nanoseconds load_duration() const override { return load_duration_; }
  void set_keep_alive(std::optional<std::chrono::nanoseconds> keep_alive) override { keep_alive_ = keep_alive; }

 private:
  std::weak_ptr<PoolState> state_;
  std::string name_;
  std::shared_ptr<ServedModel> served_;
  std::chrono::nanoseconds load_duration_;
  std::optional<std::chrono::nanoseconds> keep_alive_;
};

// Requests ---------------------------------------------------------------------------------------------------------

std::shared_ptr<void> PoolState::acquire(ModelWish wish, Ready ready) {
  const std::lock_guard lock(mutex);
  if (is_stopped || is_draining) {
    call(std::move(ready), tl::unexpected(draining_error()));
    return nullptr;
  }
  if (static_cast<std::int64_t>(waiters.size() + unresolved.size()) >= options.max_queue) {
    call(std::move(ready), tl::unexpected(busy_error()));
    return nullptr;
  }
  const std::uint64_t id = next_waiter++;
  unresolved.push_back(
      {.id = id, .wish = std::move(wish), .source = {}, .ready = std::move(ready), .since = Clock::now()});
  callback_wake.notify_one();
  return std::shared_ptr<void>(nullptr, [weak = self, id](void*) {
    if (const std::shared_ptr<PoolState> state = weak.lock()) state->forget(id);
  });
}

void PoolState::forget(std::uint64_t waiter_id) {
  Ready last;  // may hold the last reference to much; dies outside the lock
  const std::lock_guard lock(mutex);
  const auto is_it = [waiter_id](const Waiter& waiter) { return waiter.id == waiter_id; };
  if (const auto it = std::ranges::find_if(waiters, is_it); it != waiters.end()) {
    last = std::move(it->ready);
    waiters.erase(it);
    loader_wake.notify_one();
    schedule();  // others may have waited behind it
  } else if (const auto raw = std::ranges::find_if(unresolved, is_it); raw != unresolved.end()) {
    last = std::move(raw->ready);
    unresolved.erase(raw);
  }
}

void PoolState::call(Ready ready, Result<std::shared_ptr<ModelLease>> result) {
  calls.emplace_back([ready = std::move(ready), result = std::move(result)]() mutable { ready(std::move(result)); });
  callback_wake.notify_one();
}

Result<LibraryModel> PoolState::look_up(const std::string& name) {
  if (name.empty()) return error(Code::kInvalidArgument, "model is required");
  {
    const std::lock_guard lock(mutex);
    const auto it = names.find(name);
    if (it != names.end() && Clock::now() - it->second.second < kNameAge) return it->second.first;
  }
  Result<LibraryModel> found = library.find_stored(name);
  if (!found && found.error().code == Code::kNotFound) {
    // The library's sentence is for who sits at this machine: it tells the store's folder.
    return error(Code::kNotFound, "{}", library.not_found_sentence(name));
  }
  const std::lock_guard lock(mutex);
  if (names.size() > 1000) names.clear();
  if (found) names.insert_or_assign(name, std::pair(*found, Clock::now()));
  return found;
}

void PoolState::run_callbacks() {
  std::unique_lock lock(mutex);
  while (true) {
    callback_wake.wait(lock, [this] { return is_stopped || !calls.empty() || !unresolved.empty(); });
    if (!calls.empty()) {
      std::function<void()> task = std::move(calls.front());
      calls.pop_front();
      lock.unlock();
      task();
      task = nullptr;
      lock.lock();
      continue;
    }
    if (!unresolved.empty()) {
      Waiter waiter = std::move(unresolved.front());
      unresolved.pop_front();
      // Counted and findable while its name is looked up: it waits in the list, with no source yet.
      const std::uint64_t id = waiter.id;
      const std::string name = waiter.wish.name;
      waiters.push_back(std::move(waiter));
      lock.unlock();
      Result<LibraryModel> found = look_up(name);
      lock.lock();
      const auto it = std::ranges::find_if(waiters, [id](const Waiter& w) { return w.id == id; });
      if (it == waiters.end()) continue;
      if (!found) {
        call(std::move(it->ready), tl::unexpected(std::move(found).error()));
        waiters.erase(it);
        continue;
      }
      it->source = std::move(*found);
      schedule();
      continue;
    }
    if (is_stopped) return;
  }
}

void PoolState::grant(Entry& entry, Waiter waiter) {
  ++entry.n_leases;
  entry.last_used = Clock::now();
  entry.expires.reset();
  const std::chrono::nanoseconds waited =
      waiter.has_waited_for_load ? std::chrono::nanoseconds(Clock::now() - waiter.since) : std::chrono::nanoseconds{};
  std::shared_ptr<ModelLease> lease =
      std::make_shared<Lease>(self, entry.source.name, entry.served, waited, waiter.wish.keep_alive);
  call(std::move(waiter.ready), std::move(lease));
}

void PoolState::schedule() {
  bool is_loader_needed = false;
  for (auto& [name, entry] : entries) entry.is_outdated = false;
  for (auto it = waiters.begin(); it != waiters.end();) {
    Waiter& waiter = *it;
    const std::string& name = waiter.source.name;
    if (name.empty()) {
      ++it;
      continue;
    }
    const auto found = entries.find(name);
    if (found == entries.end() || found->second.state != Entry::State::kReady) {
      waiter.has_waited_for_load = true;
      if (found == entries.end() && is_draining) {
        call(std::move(waiter.ready), tl::unexpected(draining_error()));
        it = waiters.erase(it);
        continue;
      }
      is_loader_needed = true;
      ++it;
      continue;
    }
    Entry& entry = found->second;
    const bool is_stale = entry.source.digest != waiter.source.digest;
    const bool is_short = wanted_context(waiter) > entry.context && !entry.is_longest;
    // Loaded anew when those who use it are done; later requests wait behind this one.
    if (is_stale || is_short) entry.is_outdated = true;
    if (entry.is_closing()) {
      waiter.has_waited_for_load = true;
      is_loader_needed = true;
      ++it;
      continue;
    }
    grant(entry, std::move(waiter));
    it = waiters.erase(it);
  }
  if (is_loader_needed) loader_wake.notify_one();
}

void PoolState::fail_waiters(const std::string& name, const Error& problem) {
  for (auto it = waiters.begin(); it != waiters.end();) {
    if (it->source.name == name) {
      call(std::move(it->ready), tl::unexpected(problem));
      it = waiters.erase(it);
    } else {
      ++it;
    }
  }
}

bool PoolState::has_waiter(const std::string& name) const {
  return std::ranges::any_of(waiters, [&](const Waiter& waiter) { return waiter.source.name == name; });
}

void PoolState::release(const std::string& name, const ServedModel* served,
                        std::optional<std::chrono::nanoseconds> keep_alive) {
  const std::lock_guard lock(mutex);
  const auto it = entries.find(name);
  if (it == entries.end() || it->second.served.get() != served) return;
  Entry& entry = it->second;
  --entry.n_leases;
  entry.last_used = Clock::now();
  entry.keep_alive = keep_alive.value_or(options.keep_alive);
  if (entry.n_leases == 0) {
    entry.expires.reset();
    if (entry.keep_alive >= std::chrono::nanoseconds{}) {
      // Beyond a century is for ever: a sum must not overflow.
      constexpr std::chrono::hours kForEver{24 * 365 * 100};
      if (entry.keep_alive < kForEver) entry.expires = entry.last_used + entry.keep_alive;
    }
    loader_wake.notify_one();
  }
}

// The loader -------------------------------------------------------------------------------------------------------

std::string PoolState::next_to_load() const {
  for (const Waiter& waiter : waiters) {
    if (!waiter.source.name.empty() && !entries.contains(waiter.source.name)) return waiter.source.name;
  }
  return "";
}

std::string PoolState::next_to_unload(Clock::time_point now) const {
  for (const auto& [name, entry] : entries) {
    if (entry.state != Entry::State::kReady || entry.n_leases > 0) continue;
    if (entry.is_closing() || (entry.expires && *entry.expires <= now)) return name;
  }
  return "";
}

std::optional<Clock::time_point> PoolState::next_expiry() const {
  std::optional<Clock::time_point> next;
  for (const auto& [name, entry] : entries) {
    if (entry.n_leases == 0 && entry.expires && (!next || *entry.expires < *next)) next = entry.expires;
  }
  return next;
}

void PoolState::run_loader() {
  std::unique_lock lock(mutex);
  while (!is_stopped) {
    if (const std::string name = next_to_unload(Clock::now()); !name.empty()) {
      evict(lock, name);
      continue;
    }
    if (const std::string name = next_to_load(); !name.empty()) {
      load(lock, name);
      continue;
    }
    if (const auto next = next_expiry()) {
      loader_wake.wait_until(lock, *next);
    } else {
      loader_wake.wait(lock);
    }
  }
}

void PoolState::evict(std::unique_lock<std::mutex>& lock, const std::string& name) {
  Entry& entry = entries.at(name);
  entry.state = Entry::State::kUnloading;
  std::shared_ptr<ServedModel> served = std::move(entry.served);
  // Idle: it counts no more.
  if (served && served->engine) ended[name].add_counters(served->engine->stats());
  lock.unlock();
  log(fmt::format("unloading {}", name));
  served.reset();
  lock.lock();
  entries.erase(name);
  schedule();
}

std::int64_t PoolState::memory_left(const std::string& name, bool on_gpu) const {
  std::int64_t planned = 0;
  for (const auto& [other, entry] : entries) {
    if (other != name && entry.is_on_gpu == on_gpu) planned += entry.plan_bytes;
  }
  if (on_gpu) return gpu_budget - planned;
  const std::int64_t by_budget = budget - planned;
  if (options.engine.memory_limit > 0) return by_budget;
  // What loaded models have planned but not yet touched is theirs, though the system calls it available.
  const std::int64_t untouched = std::max<std::int64_t>(0, planned - resident_bytes());
  return std::min(by_budget, available_memory() - untouched);
}

EngineSettings settings_on_gpu(EngineSettings settings, const CudaDeviceInfo& gpu, const Headers& headers) {
  settings.cuda_device = gpu.index;
  settings.has_f32_activations = headers.has_f32_activations;
  if (!settings.rank_devices.empty()) settings.rank_columns = headers.rank_columns;
  return settings;
}

bool PoolState::fits_gpu(const Headers& headers) const {
  return gpu.has_value() && plan_served_model(headers.gpu_config, headers.gpu_weight_bytes, headers.max_k,
                                              settings_on_gpu(options.engine, *gpu, headers), gpu_budget)
                                .has_value();
}

Result<MemoryPlan> PoolState::make_room(std::unique_lock<std::mutex>& lock, const std::string& name,
                                        const Headers& headers, bool on_gpu) {
  while (true) {
    if (is_stopped) return tl::unexpected(draining_error());
    if (!has_waiter(name)) return error(Code::kCancelled, "nobody waits for {} any more", name);
    EngineSettings wanted = on_gpu ? settings_on_gpu(options.engine, *gpu, headers) : options.engine;
    if (const std::int64_t own = modelfile_context(entries.at(name).source); own > 0) wanted.context = own;
    wanted.screens_head = headers.screens_head && !on_gpu;
    if (headers.draft != nullptr && !on_gpu) {
      wanted.draft = std::make_shared<const DraftShape>(DraftShape{
          .config = headers.draft->config, .weight_bytes = headers.draft->weight_bytes, .max_k = headers.draft->max_k});
    }
    for (const Waiter& waiter : waiters) {
      if (waiter.source.name == name) wanted.context = std::max(wanted.context, wanted_context(waiter));
    }
    Error problem;
    bool is_full_of_models = true;
    if (options.max_models == 0 || static_cast<std::int64_t>(entries.size()) <= options.max_models) {
      Result<MemoryPlan> plan = plan_served_model(on_gpu ? headers.gpu_config : headers.config,
                                                  on_gpu ? headers.gpu_weight_bytes : headers.weight_bytes,
                                                  headers.max_k, wanted, memory_left(name, on_gpu));
      if (plan || plan.error().code != Code::kResourceExhausted) return plan;
      problem = plan.error();
      is_full_of_models = false;
    }
    // The least recently used of the others makes room, when it is idle.
    Entry* victim = nullptr;
    std::string victim_name;
    for (auto& [other, entry] : entries) {
      if (other == name || entry.state != Entry::State::kReady) continue;
      if (!is_full_of_models && entry.is_on_gpu != on_gpu) continue;  // its memory is another's
      if (!victim ||
          std::pair(entry.n_leases > 0, entry.last_used) < std::pair(victim->n_leases > 0, victim->last_used)) {
        victim = &entry;
        victim_name = other;
      }
    }
    if (!victim) return tl::unexpected(std::move(problem));
    if (victim->n_leases == 0) {
      evict(lock, victim_name);
      continue;
    }
    victim->makes_room = true;
    loader_wake.wait(lock);
  }
}

void PoolState::load(std::unique_lock<std::mutex>& lock, const std::string& name) {
  const auto first = std::ranges::find_if(waiters, [&](const Waiter& waiter) { return waiter.source.name == name; });
  const LibraryModel source = first->source;
  entries[name] = {.state = Entry::State::kLoading, .source = source};
  lock.unlock();
  const auto start = Clock::now();
  Result<Headers> headers = error(Code::kUnsupported, "{}", source.problem);
  if (source.problem.empty()) headers = read_headers(source.path, options.engine.n_ranks);
  if (headers && !options.draft.empty()) {
    if (auto draft = read_draft(options.draft, *headers))
      headers->draft = std::move(*draft);
    else
      log(fmt::format("nothing drafts for {}: {}", name, draft.error().message));
  }
  lock.lock();

  Result<std::unique_ptr<ServedModel>> served = error(Code::kInternal, "not loaded");
  std::int64_t n_bytes = 0;
  const auto try_load = [&](bool on_gpu) {
    Result<MemoryPlan> plan = make_room(lock, name, *headers, on_gpu);
    if (!plan) {
      served = tl::unexpected(std::move(plan).error());
      return;
    }
    n_bytes = plan->total_bytes();
    entries.at(name).plan_bytes = n_bytes;
    entries.at(name).is_on_gpu = on_gpu;
    EngineOptions engine;
    engine.settings = plan->settings;
    // Loading rounds some sizes up; everything large is settled by the plan.
    engine.settings.memory_limit = n_bytes + kRounding;
    engine.max_queue = options.max_queue;
    engine.speculation = options.speculation;
    engine.around_step_ends = options.around_step_ends;
    lock.unlock();
    log(fmt::format("loading {}{}: {:.2f} GiB, a context of {} tokens", name, on_gpu ? " on the GPU" : "",
                    static_cast<double>(n_bytes) / (std::int64_t{1} << 30), engine.settings.context));
    if (on_gpu && headers->draft != nullptr) log(fmt::format("nothing drafts for {} on the GPU", name));
    served = make_served(source, *headers, engine);
    lock.lock();
    if (!served) entries.at(name).plan_bytes = 0;
  };
  if (!headers) {
    served = tl::unexpected(std::move(headers).error());
  } else if (options.device == DeviceChoice::kCuda) {
    try_load(true);
  } else {
    const bool may_use_gpu = options.device == DeviceChoice::kAuto && fits_gpu(*headers);
    if (may_use_gpu) try_load(true);
    // What a GPU does not take after all, the CPU does.
    if (!may_use_gpu ||
        (!served && (served.error().code == Code::kUnsupported || served.error().code == Code::kResourceExhausted))) {
      if (may_use_gpu) log(fmt::format("{} does not load on the GPU: {}", name, served.error().message));
      try_load(false);
    }
  }

  for (auto& [other, entry] : entries) entry.makes_room = false;
  if (!served) {
    entries.erase(name);
    if (served.error().code != Code::kCancelled) {
      if (options.on_load) options.on_load(false);
      log(fmt::format("{} cannot be loaded: {}", name, served.error().message));
      fail_waiters(name, served.error());
    }
    schedule();
    return;
  }
  Entry& entry = entries.at(name);
  entry.load_time = Clock::now() - start;
  (*served)->load_time = entry.load_time;
  (*served)->loaded_at = std::chrono::system_clock::now();
  entry.context = (*served)->engine->context();
  entry.plan_bytes = (*served)->engine->plan().total_bytes();
  const std::int64_t longest = (*served)->model->config().max_seq_len;
  std::int64_t wanted = 0;
  for (const Waiter& waiter : waiters) {
    if (waiter.source.name == name) wanted = std::max(wanted, wanted_context(waiter));
  }
  entry.is_longest = entry.context >= longest || entry.context < wanted;
  entry.served = std::move(*served);
  entry.state = Entry::State::kReady;
  entry.last_used = Clock::now();
  entry.keep_alive = options.keep_alive;
  if (options.keep_alive >= std::chrono::nanoseconds{}) entry.expires = entry.last_used + options.keep_alive;
  if (options.on_load) options.on_load(true);
  log(fmt::format("{} is loaded, {:.1f} s", name, std::chrono::duration<double>(entry.load_time).count()));
  schedule();
}

// Facts and the end -----------------------------------------------------------------------------------------------

PoolSnapshot PoolState::snapshot() const {
  PoolSnapshot snapshot;
  std::vector<LoadedModelInfo>& list = snapshot.loaded;
  std::vector<std::shared_ptr<ServedModel>> models;
  {
    const std::lock_guard lock(mutex);
    snapshot.ended = ended;
    for (const auto& [name, entry] : entries) {
      LoadedModelInfo info{.name = name,
                           .digest = entry.source.digest,
                           .file_bytes = entry.source.size,
                           .memory_bytes = entry.plan_bytes,
                           .context = entry.context,
                           .n_leases = entry.n_leases,
                           .expires_at = {},
                           .stats = {},
                           .is_loading = entry.state == Entry::State::kLoading,
                           .is_on_gpu = entry.is_on_gpu};
      const auto now = Clock::now();
      // In use: as if it ended now.
      std::optional<Clock::time_point> expires = entry.expires;
      if (entry.n_leases > 0 && entry.keep_alive >= std::chrono::nanoseconds{}) expires = now + options.keep_alive;
      if (expires) {
        info.expires_at = std::chrono::system_clock::now() +
                          std::chrono::duration_cast<std::chrono::system_clock::duration>(*expires - now);
      }
      list.push_back(std::move(info));
      models.push_back(entry.served);
    }
  }
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (models[i] && models[i]->engine) list[i].stats = models[i]->engine->stats();
  }
  return snapshot;
}

Status PoolState::unload(const std::string& name) {
  std::string canonical = name;
  if (Result<LibraryModel> found = look_up(name)) canonical = found->name;
  const std::lock_guard lock(mutex);
  const auto it = entries.find(canonical);
  if (it == entries.end()) return error(Code::kNotFound, "model \"{}\" is not loaded", name);
  it->second.is_unwanted = true;
  loader_wake.notify_one();
  return ok();
}

void PoolState::refresh() {
  const std::lock_guard lock(mutex);
  names.clear();
}

void PoolState::drain() {
  const std::lock_guard lock(mutex);
  is_draining = true;
  schedule();
}

void PoolState::stop() {
  std::map<std::string, Entry> last;
  {
    const std::lock_guard lock(mutex);
    if (is_stopped) return;
    is_stopped = is_draining = true;
    for (Waiter& waiter : waiters) call(std::move(waiter.ready), tl::unexpected(draining_error()));
    for (Waiter& waiter : unresolved) call(std::move(waiter.ready), tl::unexpected(draining_error()));
    waiters.clear();
    unresolved.clear();
  }
  loader_wake.notify_all();
  callback_wake.notify_all();
  loader.join();
  for (std::thread& thread : threads) thread.join();
  {
    const std::lock_guard lock(mutex);
    last.swap(entries);
  }
  // Running requests end here with kCancelled, and give their leases back.
  for (auto& [name, entry] : last) {
    if (entry.served && entry.served->engine) entry.served->engine->stop(false);
  }
}

class Pool : public ModelPool {
 public:
  Pool(ModelPoolOptions options, Library library, std::optional<CudaDeviceInfo> gpu)
      : state_(std::make_shared<PoolState>(std::move(options), std::move(library), std::move(gpu))) {
    state_->self = state_;
    for (int i = 0; i < std::max(1, state_->options.n_callback_threads); ++i) {
      state_->threads.emplace_back([state = state_.get()] { state->run_callbacks(); });
    }
    state_->loader = std::thread([state = state_.get()] { state->run_loader(); });
  }
  ~Pool() override { Pool::stop(); }

  std::shared_ptr<void> acquire(ModelWish wish, Ready ready) override {
    return state_->acquire(std::move(wish), std::move(ready));
  }
  std::vector<LoadedModelInfo> loaded() const override { return state_->snapshot().loaded; }
  PoolSnapshot snapshot() const override { return state_->snapshot(); }
  Status unload(const std::string& name) override { return state_->unload(name); }
  void refresh() override { state_->refresh(); }
  void drain() override { state_->drain(); }
  void stop() override { state_->stop(); }

 private:
  std::shared_ptr<PoolState> state_;
};

}  // namespace

Result<std::unique_ptr<ModelPool>> make_model_pool(ModelPoolOptions options) {
  STILL_TRY(Library library, Library::open(options.library));
  std::optional<CudaDeviceInfo> gpu;
  if (options.device != DeviceChoice::kCpu) {
    std::string reason;
    const std::vector<CudaDeviceInfo> gpus = list_cuda_devices(&reason);
    if (!gpus.empty()) gpu = gpus.front();
    const auto n_ranks = static_cast<std::size_t>(options.engine.n_ranks);
    if (n_ranks > 1 && n_ranks > gpus.size())
      return error(Code::kUnavailable, "--tensor-parallel {}: there are {} GPUs", n_ranks, gpus.size());
    for (std::size_t i = 0; n_ranks > 1 && i < n_ranks; ++i) options.engine.rank_devices.push_back(gpus[i].index);
    if (!gpu && options.device == DeviceChoice::kCuda) return error(Code::kUnavailable, "--device cuda: {}", reason);
  }
  return std::make_unique<Pool>(std::move(options), std::move(library), std::move(gpu));
}

}  // namespace still
