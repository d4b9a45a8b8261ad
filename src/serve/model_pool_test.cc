// The pool of models over a store of tiny models: loading on demand, how long models stay, who makes room, the queue's
// bound, reloads, cancellation, drain; and what a served model's memory plan asks for.
#include "serve/model_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <numeric>
#include <sstream>
#include <thread>

#include "hub/sha256.h"
#include "hub/store.h"
#include "hub/test_server.h"

namespace still {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using LeaseResult = Result<std::shared_ptr<ModelLease>>;

// What `ready` brought, and how often it was called.
class Answer {
 public:
  std::function<void(LeaseResult)> ready() {
    return [state = state_](LeaseResult result) {
      const std::lock_guard lock(state->mutex);
      ++state->n_calls;
      state->result = std::move(result);
      state->changed.notify_all();
    };
  }
  int n_calls() const {
    const std::lock_guard lock(state_->mutex);
    return state_->n_calls;
  }
  // The result is given away: a lease lives as long as the caller keeps it.
  LeaseResult take() {
    std::unique_lock lock(state_->mutex);
    if (!state_->changed.wait_for(lock, 60s, [this] { return state_->n_calls > 0; })) {
      return error(Code::kInternal, "no answer within a minute");
    }
    return std::exchange(state_->result, error(Code::kInternal, "taken"));
  }

 private:
  struct State {
    mutable std::mutex mutex;
    std::condition_variable changed;
    int n_calls = 0;
    LeaseResult result = error(Code::kInternal, "none yet");
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

bool becomes_true(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + 30s;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(2ms);
  }
  return true;
}

class ModelPoolTest : public ::testing::Test {
 protected:
  void add_model(const std::string& name, const std::string& tiny, JsonObject parameters = {}) {
    const fs::path source = fs::path(STILL_SOURCE_DIR) / "testdata/tiny" / tiny / "model.gguf";
    std::ifstream file(source, std::ios::binary);
    std::ostringstream bytes;
    bytes << file.rdbuf();
    const std::string sha256 = sha256_hex(bytes.str());
    auto store = Store::open(folder_ / "store");
    ASSERT_TRUE(store) << store.error().message;
    std::vector<StagedFile> staged;
    if (!store->has_blob(sha256)) {
      const fs::path copy = store->partial_folder() / ("staged-" + tiny);
      fs::copy_file(source, copy);
      staged.push_back({.path = copy, .sha256 = sha256});
    }
    Manifest manifest;
    manifest.name = *ModelName::parse(name);
    manifest.source = "test";
    manifest.parameters = std::move(parameters);
    manifest.created = utc_now();
    manifest.files = {{.name = "model.gguf", .size = static_cast<std::int64_t>(bytes.str().size()), .sha256 = sha256}};
    const Status committed = store->commit(manifest, staged);
    ASSERT_TRUE(committed) << committed.error().message;
  }

  // Small settings; a test changes what it is about.
  ModelPoolOptions options() const {
    ModelPoolOptions options;
    options.library = {.store = folder_ / "store", .ollama = {}};
    options.engine = {.n_threads = 1, .max_seqs = 2, .chunk_tokens = 64};
    return options;
  }
  void open(ModelPoolOptions options) {
    add_model("first", "llama");
    add_model("second", "qwen2");
    auto made = make_model_pool(std::move(options));
    ASSERT_TRUE(made) << made.error().message;
    pool_ = std::move(*made);
  }

  LeaseResult acquire(ModelWish wish) {
    Answer answer;
    const std::shared_ptr<void> ticket = pool_->acquire(std::move(wish), answer.ready());
    return answer.take();
  }
  // A request from start to end.
  void use(ModelWish wish) {
    const LeaseResult lease = acquire(std::move(wish));
    ASSERT_TRUE(lease) << lease.error().message;
  }
  std::vector<std::string> loaded() const {
    std::vector<std::string> names;
    for (const LoadedModelInfo& info : pool_->loaded()) names.push_back(info.name);
    std::ranges::sort(names);
    return names;
  }
  LoadedModelInfo only() const {
    const std::vector<LoadedModelInfo> models = pool_->loaded();
    EXPECT_EQ(models.size(), 1U);
    return models.empty() ? LoadedModelInfo() : models.front();
  }

  test::TempFolder folder_;
  std::unique_ptr<ModelPool> pool_;
};

TEST_F(ModelPoolTest, OllamasFullNamesAreTheSameModel) {
  open(options());
  for (const char* name :
       {"first", "library/first", "registry.ollama.ai/library/first", "registry.ollama.ai/library/first:latest"}) {
    const LeaseResult lease = acquire({.name = name});
    ASSERT_TRUE(lease) << name << ": " << lease.error().message;
    EXPECT_EQ((*lease)->model().name, "first:latest");
  }
  EXPECT_THAT(loaded(), ElementsAre("first:latest"));
  for (const char* name : {"other/first", "registry.ollama.ai/other/first", "library/third", "library/"})
    EXPECT_FALSE(acquire({.name = name})) << name;
}

TEST_F(ModelPoolTest, CountsWhatIsGoneAndWhatWasLoaded) {
  ModelPoolOptions chosen = options();
  std::atomic<int> n_loaded{0}, n_failed{0};
  chosen.on_load = [&](bool is_ok) { ++(is_ok ? n_loaded : n_failed); };
  open(chosen);
  std::int64_t n_steps = 0;
  {
    const LeaseResult lease = acquire({.name = "first"});
    ASSERT_TRUE(lease) << lease.error().message;
    struct Ignore : EventSink {
      void on_event(const Event&) override {}
    };
    Request request;
    request.prompt = {1, 2, 3};
    request.max_tokens = 4;
    ASSERT_TRUE((*lease)->model().engine->submit(request, std::make_shared<Ignore>()));
    ASSERT_TRUE(becomes_true([&] {
      const EngineStats stats = only().stats;
      return std::accumulate(stats.n_finished.begin(), stats.n_finished.end(), std::int64_t{0}) == 1;
    }));
    n_steps = only().stats.n_steps;
    EXPECT_TRUE(pool_->snapshot().ended.empty());
  }
  ASSERT_TRUE(pool_->unload("first"));
  ASSERT_TRUE(becomes_true([&] { return loaded().empty(); }));
  const PoolSnapshot after = pool_->snapshot();
  ASSERT_EQ(after.ended.size(), 1U);
  EXPECT_EQ(after.ended.begin()->first, "first:latest");
  EXPECT_GE(after.ended.begin()->second.n_steps, n_steps);
  EXPECT_GT(n_steps, 0);
  EXPECT_EQ(after.ended.begin()->second.ttft.n, 1);
  use({.name = "first"});
  EXPECT_EQ(n_loaded, 2);
  EXPECT_EQ(n_failed, 0);
}

// How long models stay ----------------------------------------------------------------------------------------------

TEST_F(ModelPoolTest, LoadsOnceAtFirstUse) {
  open(options());
  EXPECT_TRUE(pool_->loaded().empty());
  const LeaseResult lease = acquire({.name = "First"});
  ASSERT_TRUE(lease) << lease.error().message;
  EXPECT_EQ((*lease)->model().name, "first:latest");
  EXPECT_GT((*lease)->load_duration(), 0ns);
  ASSERT_NE((*lease)->model().engine, nullptr);
  EXPECT_TRUE((*lease)->model().engine->is_started());

  const LeaseResult again = acquire({.name = "first:latest"});
  ASSERT_TRUE(again);
  EXPECT_EQ(&(*again)->model(), &(*lease)->model());
  EXPECT_EQ((*again)->load_duration(), 0ns);
  const LoadedModelInfo info = only();
  EXPECT_EQ(info.n_leases, 2);
  EXPECT_EQ(info.memory_bytes, (*lease)->model().engine->plan().total_bytes());
  EXPECT_EQ(info.context, (*lease)->model().engine->context());
}

TEST_F(ModelPoolTest, UnloadsWhenKeepAliveHasPassedSinceTheLastUse) {
  ModelPoolOptions chosen = options();
  chosen.keep_alive = 300ms;
  open(std::move(chosen));
  std::optional<LeaseResult> lease = acquire({.name = "first"});
  ASSERT_TRUE(*lease);
  std::this_thread::sleep_for(500ms);
  EXPECT_THAT(loaded(), ElementsAre("first:latest")) << "time runs only when it is idle";
  const auto released = std::chrono::steady_clock::now();
  lease.reset();
  EXPECT_TRUE(only().expires_at);
  EXPECT_TRUE(becomes_true([this] { return pool_->loaded().empty(); }));
  EXPECT_GE(std::chrono::steady_clock::now() - released, 290ms);
}

TEST_F(ModelPoolTest, KeepAliveZeroUnloadsAtOnceAndNegativeNever) {
  ModelPoolOptions chosen = options();
  chosen.keep_alive = 50ms;
  open(std::move(chosen));
  use({.name = "first", .keep_alive = -1s});
  EXPECT_FALSE(only().expires_at);
  std::this_thread::sleep_for(200ms);
  EXPECT_THAT(loaded(), ElementsAre("first:latest"));
  use({.name = "first", .keep_alive = 0s});
  EXPECT_TRUE(becomes_true([this] { return pool_->loaded().empty(); }));
  // So long that a sum with the clock's time would overflow.
  use({.name = "first", .keep_alive = std::chrono::nanoseconds::max()});
  EXPECT_FALSE(only().expires_at);
}

TEST_F(ModelPoolTest, ALeaseMaySetItsKeepAlive) {
  open(options());
  {
    const LeaseResult lease = acquire({.name = "first"});
    ASSERT_TRUE(lease);
    (*lease)->set_keep_alive(0s);
  }
  EXPECT_TRUE(becomes_true([this] { return pool_->loaded().empty(); }));
}

TEST_F(ModelPoolTest, UnloadWaitsForTheLastRequest) {
  open(options());
  EXPECT_EQ(pool_->unload("first").error().code, Code::kNotFound);
  std::optional<LeaseResult> lease = acquire({.name = "first"});
  ASSERT_TRUE(*lease);
  EXPECT_TRUE(pool_->unload("first"));
  EXPECT_THAT(loaded(), ElementsAre("first:latest"));
  lease.reset();
  EXPECT_TRUE(becomes_true([this] { return pool_->loaded().empty(); }));
}

// Room --------------------------------------------------------------------------------------------------------------

class SmallPoolTest : public ModelPoolTest {
 protected:
  // As much memory as `n_models` of the tiny models take, and half of one more.
  void open_with_room_for(double n_models, ModelPoolOptions chosen) {
    open(options());
    use({.name = "first"});
    use({.name = "second"});
    std::int64_t largest = 0;
    for (const LoadedModelInfo& info : pool_->loaded()) largest = std::max(largest, info.memory_bytes);
    pool_.reset();
    chosen.engine.memory_limit = static_cast<std::int64_t>(static_cast<double>(largest) * n_models);
    auto made = make_model_pool(std::move(chosen));
    ASSERT_TRUE(made) << made.error().message;
    pool_ = std::move(*made);
  }
};

TEST_F(SmallPoolTest, SeveralStayWhileTheyFit) {
  open_with_room_for(2.5, options());
  use({.name = "first"});
  use({.name = "second"});
  EXPECT_THAT(loaded(), ElementsAre("first:latest", "second:latest"));
}

TEST_F(SmallPoolTest, TheLeastRecentlyUsedMakesRoom) {
  ModelPoolOptions chosen = options();
  chosen.max_models = 2;
  open_with_room_for(9, std::move(chosen));
  add_model("third", "llama_tied");
  pool_->refresh();
  use({.name = "first"});
  use({.name = "second"});
  use({.name = "first"});
  use({.name = "third"});
  EXPECT_THAT(loaded(), ElementsAre("first:latest", "third:latest"));
}

TEST_F(SmallPoolTest, MemoryMakesTheIdleOneGo) {
  open_with_room_for(1.5, options());
  use({.name = "first"});
  use({.name = "second"});
  EXPECT_THAT(loaded(), ElementsAre("second:latest"));
}

TEST_F(SmallPoolTest, ABusyModelIsWaitedFor) {
  open_with_room_for(1.5, options());
  std::optional<LeaseResult> first = acquire({.name = "first"});
  ASSERT_TRUE(*first);
  Answer second, again;
  const auto ticket = pool_->acquire({.name = "second"}, second.ready());
  std::this_thread::sleep_for(200ms);
  EXPECT_EQ(second.n_calls(), 0);
  // The first gives no more leases, or the second would never come.
  const auto ticket_again = pool_->acquire({.name = "first"}, again.ready());
  std::this_thread::sleep_for(100ms);
  EXPECT_EQ(again.n_calls(), 0);
  first.reset();
  {
    const LeaseResult lease = second.take();
    ASSERT_TRUE(lease) << lease.error().message;
    EXPECT_EQ((*lease)->model().name, "second:latest");
    EXPECT_GE((*lease)->load_duration(), 200ms);
  }
  const LeaseResult lease = again.take();
  ASSERT_TRUE(lease) << lease.error().message;
  EXPECT_EQ((*lease)->model().name, "first:latest");
  EXPECT_EQ(second.n_calls(), 1);
  EXPECT_EQ(again.n_calls(), 1);
}

TEST_F(SmallPoolTest, ABusyModelGoesOnWhenNobodyWantsItsRoomAnyMore) {
  open_with_room_for(1.5, options());
  const LeaseResult first = acquire({.name = "first"});
  ASSERT_TRUE(first);
  Answer second, again;
  std::shared_ptr<void> ticket = pool_->acquire({.name = "second"}, second.ready());
  std::this_thread::sleep_for(100ms);
  const auto ticket_again = pool_->acquire({.name = "first"}, again.ready());
  std::this_thread::sleep_for(50ms);
  ticket.reset();
  const LeaseResult lease = again.take();
  ASSERT_TRUE(lease) << lease.error().message;
  EXPECT_EQ(&(*lease)->model(), &(*first)->model());
  EXPECT_EQ(second.n_calls(), 0);
}

TEST_F(SmallPoolTest, AFailedLoadForgetsNoUnload) {
  open_with_room_for(1.5, options());
  std::optional<LeaseResult> first = acquire({.name = "first"});
  ASSERT_TRUE(*first);
  EXPECT_TRUE(pool_->unload("first"));
  Answer second;
  std::shared_ptr<void> ticket = pool_->acquire({.name = "second"}, second.ready());
  std::this_thread::sleep_for(100ms);
  ticket.reset();
  EXPECT_TRUE(becomes_true([this] { return loaded().size() == 1; }));
  first.reset();
  EXPECT_TRUE(becomes_true([this] { return pool_->loaded().empty(); }));
}

TEST_F(SmallPoolTest, WhatCanNeverFitIsRefusedWithBothNumbers) {
  ModelPoolOptions chosen = options();
  open_with_room_for(0.3, std::move(chosen));
  const LeaseResult lease = acquire({.name = "first"});
  ASSERT_FALSE(lease);
  EXPECT_EQ(lease.error().code, Code::kResourceExhausted);
  EXPECT_THAT(lease.error().message, HasSubstr("GiB"));
  EXPECT_TRUE(pool_->loaded().empty());
}

// Names, the queue, reloads, the end ----------------------------------------------------------------------------------

TEST_F(ModelPoolTest, AnUnknownNameTellsTheClosest) {
  open(options());
  const LeaseResult lease = acquire({.name = "secnd"});
  ASSERT_FALSE(lease);
  EXPECT_EQ(lease.error().code, Code::kNotFound);
  EXPECT_EQ(lease.error().message, "model 'secnd' not found; did you mean second:latest?");
  EXPECT_EQ(acquire({.name = "something-else"}).error().message, "model 'something-else' not found");
  EXPECT_EQ(acquire({.name = ""}).error().code, Code::kInvalidArgument);
  for (const std::string name : {"../store", "/etc/passwd", "a b", ":", "x:y:z"}) {
    const LeaseResult bad = acquire({.name = name});
    ASSERT_FALSE(bad) << name;
    EXPECT_EQ(bad.error().message.find(folder_.path().string()), std::string::npos) << bad.error().message;
    EXPECT_TRUE(bad.error().code == Code::kNotFound || bad.error().code == Code::kInvalidArgument) << name;
  }
}

TEST_F(ModelPoolTest, ALargerContextLoadsAnew) {
  ModelPoolOptions chosen = options();
  chosen.engine.context = 128;
  open(std::move(chosen));
  std::optional<LeaseResult> lease = acquire({.name = "first"});
  ASSERT_TRUE(*lease);
  EXPECT_EQ((**lease)->model().engine->context(), 128);
  {
    const LeaseResult smaller = acquire({.name = "first", .context = 64});
    ASSERT_TRUE(smaller);
    EXPECT_EQ(&(*smaller)->model(), &(**lease)->model());
  }
  Answer larger;
  const auto ticket = pool_->acquire({.name = "first", .context = 256}, larger.ready());
  std::this_thread::sleep_for(150ms);
  EXPECT_EQ(larger.n_calls(), 0) << "the first request still runs";
  lease.reset();
  const LeaseResult got = larger.take();
  ASSERT_TRUE(got) << got.error().message;
  EXPECT_EQ((*got)->model().engine->context(), 256);
}

TEST_F(ModelPoolTest, WhoMayNotChangeModelsTakesTheContextThatThereIs) {
  ModelPoolOptions chosen = options();
  chosen.engine.context = 128;
  open(std::move(chosen));
  const LeaseResult first = acquire({.name = "first", .context = 256, .is_bound = true});
  ASSERT_TRUE(first) << first.error().message;
  EXPECT_EQ((*first)->model().engine->context(), 128);
  const LeaseResult again = acquire({.name = "first", .context = 256, .is_bound = true});
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(&(*again)->model(), &(*first)->model()) << "not loaded anew";
}

TEST_F(ModelPoolTest, AModelfilesContextIsTheModelsDefault) {
  ModelPoolOptions chosen = options();
  chosen.engine.context = 128;
  add_model("wide", "llama", {{"num_ctx", 256}});
  add_model("odd", "llama", {{"num_ctx", "many"}});
  open(std::move(chosen));
  for (const bool is_bound : {true, false}) {
    const LeaseResult lease = acquire({.name = "wide", .is_bound = is_bound});
    ASSERT_TRUE(lease) << lease.error().message;
    EXPECT_EQ((*lease)->model().engine->context(), 256);
  }
  const LeaseResult odd = acquire({.name = "odd"});
  ASSERT_TRUE(odd) << odd.error().message;
  EXPECT_EQ((*odd)->model().engine->context(), 128);
}

TEST_F(ModelPoolTest, AContextBeyondTheModelsIsTheModels) {
  open(options());
  for (int i = 0; i < 2; ++i) {
    const LeaseResult lease = acquire({.name = "first", .context = 1 << 20});
    ASSERT_TRUE(lease) << lease.error().message;
    EXPECT_EQ((*lease)->model().engine->context(), 512);
    EXPECT_EQ((*lease)->load_duration() == 0ns, i == 1) << "not loaded anew";
  }
}

TEST_F(ModelPoolTest, ACancelledReloadHoldsNobodyUp) {
  ModelPoolOptions chosen = options();
  chosen.engine.context = 128;
  open(std::move(chosen));
  const LeaseResult running = acquire({.name = "first"});
  ASSERT_TRUE(running);
  Answer larger, other;
  std::shared_ptr<void> ticket = pool_->acquire({.name = "first", .context = 256}, larger.ready());
  std::this_thread::sleep_for(100ms);
  const auto ticket_other = pool_->acquire({.name = "first"}, other.ready());
  std::this_thread::sleep_for(100ms);
  EXPECT_EQ(other.n_calls(), 0) << "waits behind the reload";
  ticket.reset();
  ASSERT_TRUE(becomes_true([&] { return other.n_calls() == 1; }));
  const LeaseResult lease = other.take();
  ASSERT_TRUE(lease);
  EXPECT_EQ(&(*lease)->model(), &(*running)->model());
  EXPECT_EQ(larger.n_calls(), 0);
}

TEST_F(ModelPoolTest, TheQueueHasABound) {
  ModelPoolOptions chosen = options();
  chosen.engine.context = 128;
  chosen.max_queue = 2;
  open(std::move(chosen));
  std::optional<LeaseResult> running = acquire({.name = "first"});
  ASSERT_TRUE(*running);
  std::vector<Answer> waiting(2);
  std::vector<std::shared_ptr<void>> tickets;
  for (Answer& answer : waiting) {
    tickets.push_back(pool_->acquire({.name = "first", .context = 256}, answer.ready()));
  }
  const LeaseResult refused = acquire({.name = "second"});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kUnavailable);
  EXPECT_THAT(refused.error().message, HasSubstr("server busy"));
  // A ticket that is given back makes a place.
  tickets.pop_back();
  use({.name = "second"});
  EXPECT_EQ(waiting[1].n_calls(), 0);
  running.reset();
  EXPECT_TRUE(waiting[0].take());
  EXPECT_EQ(waiting[1].n_calls(), 0);
}

TEST_F(ModelPoolTest, DrainRefusesWhatIsNewAndWhatWaitsForALoad) {
  open(options());
  const LeaseResult running = acquire({.name = "first"});
  ASSERT_TRUE(running);
  pool_->drain();
  for (const std::string name : {"first", "second"}) {
    const LeaseResult refused = acquire({.name = name});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Code::kUnavailable);
  }
  EXPECT_THAT(loaded(), ElementsAre("first:latest"));
}

TEST_F(ModelPoolTest, StopAnswersAllWhoWait) {
  ModelPoolOptions chosen = options();
  chosen.engine.context = 128;
  open(std::move(chosen));
  std::optional<LeaseResult> running = acquire({.name = "first"});
  ASSERT_TRUE(*running);
  Answer waiting;
  const auto ticket = pool_->acquire({.name = "first", .context = 256}, waiting.ready());
  pool_->stop();
  const LeaseResult refused = waiting.take();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kUnavailable);
  running.reset();  // after the pool stopped: nothing is left to give it back to
  pool_.reset();
}

TEST_F(ModelPoolTest, ADamagedModelIsToldToAllWhoWait) {
  open(options());
  auto store = Store::open(folder_ / "store");
  ASSERT_TRUE(store);
  const auto manifest = store->read(*ModelName::parse("first"));
  ASSERT_TRUE(manifest);
  const fs::path blob = store->blob_path(manifest->files[0].sha256);
  fs::permissions(blob, fs::perms::owner_write, fs::perm_options::add);
  std::ofstream(blob, std::ios::binary | std::ios::in | std::ios::out) << "no GGUF at all";
  std::vector<Answer> answers(3);
  std::vector<std::shared_ptr<void>> tickets;
  for (Answer& answer : answers) tickets.push_back(pool_->acquire({.name = "first"}, answer.ready()));
  for (Answer& answer : answers) EXPECT_FALSE(answer.take());
  use({.name = "second"});
  EXPECT_THAT(loaded(), ElementsAre("second:latest"));
}

TEST_F(ModelPoolTest, ManyThreadsGetTheModelTheyNamed) {
  ModelPoolOptions chosen = options();
  chosen.max_models = 1;
  open(std::move(chosen));
  constexpr int kThreads = 4, kRequests = 12;
  std::vector<std::thread> threads;
  std::atomic<int> n_wrong{0};
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kRequests; ++i) {
        const std::string name = (t + i / 4) % 2 == 0 ? "first" : "second";
        const LeaseResult lease = acquire({.name = name});
        if (!lease || (*lease)->model().name != name + ":latest") ++n_wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(n_wrong, 0);
  EXPECT_LE(loaded().size(), 1U);
}

// The plan ----------------------------------------------------------------------------------------------------------

// The shape of a model of 135M parameters, 8,192 tokens of context: 22.5 KiB of keys and values a token in f16.
ModelConfig small_model() {
  ModelConfig config;
  config.n_layers = 30;
  config.hidden_size = 576;
  config.intermediate_size = 1536;
  config.n_heads = 9;
  config.n_kv_heads = 3;
  config.head_dim = 64;
  config.vocab_size = 49152;
  config.max_seq_len = 8192;
  return config;
}
constexpr std::int64_t kSmallWeights = 100'000'000;

MemoryPlan plan_of(const ModelConfig& config, const EngineSettings& wanted, std::int64_t available) {
  const Result<MemoryPlan> plan = plan_served_model(config, kSmallWeights, 1536, wanted, available);
  EXPECT_TRUE(plan) << plan.error().message;
  return plan ? *plan : MemoryPlan();
}

TEST(ServedModelPlan, ASmallModelTakesNoGigabytesUnasked) {
  const MemoryPlan plan = plan_of(small_model(), {.n_threads = 2, .max_seqs = 16}, std::int64_t{64} << 30);
  EXPECT_EQ(plan.settings.context, 8192);
  EXPECT_EQ(plan.settings.max_seqs, 16);
  EXPECT_EQ(plan.settings.kv_tokens, 16 * 2048);
  EXPECT_LT(plan.total_bytes(), std::int64_t{1} << 30);
}

TEST(ServedModelPlan, OneContextAlwaysFitsTheCache) {
  ModelConfig config = small_model();
  config.max_seq_len = 131072;
  const MemoryPlan plan = plan_of(config, {.n_threads = 2, .max_seqs = 16}, std::int64_t{64} << 30);
  EXPECT_EQ(plan.settings.context, 131072);
  EXPECT_EQ(plan.settings.kv_tokens, 131072);
  const MemoryPlan odd = plan_of(config, {.n_threads = 2, .context = 100001, .max_seqs = 3}, std::int64_t{64} << 30);
  EXPECT_EQ(odd.settings.context, 100001);
  EXPECT_GE(odd.settings.kv_tokens, 100001);
}

TEST(ServedModelPlan, KvTokensCanBeAskedFor) {
  const EngineSettings wanted = {.n_threads = 2, .max_seqs = 16, .kv_tokens = 100'000};
  const MemoryPlan plan = plan_of(small_model(), wanted, std::int64_t{64} << 30);
  EXPECT_GE(plan.settings.kv_tokens, 100'000);
  EXPECT_LT(plan.settings.kv_tokens, 100'000 + plan.settings.block_size);
  // What does not fit becomes what does; less than one context becomes that.
  EXPECT_LT(plan_of(small_model(), wanted, std::int64_t{1} << 30).settings.kv_tokens, 100'000);
  EngineSettings little = wanted;
  little.kv_tokens = 1;
  EXPECT_EQ(plan_of(small_model(), little, std::int64_t{64} << 30).settings.kv_tokens, 8192);
}

TEST(ServedModelPlan, LittleMemoryShortensTheContext) {
  const MemoryPlan plan = plan_of(small_model(), {.n_threads = 2, .max_seqs = 16}, std::int64_t{300} << 20);
  EXPECT_LT(plan.settings.context, 8192);
  EXPECT_GE(plan.settings.context, 256);
  EXPECT_LE(plan.total_bytes(), std::int64_t{300} << 20);
  const Result<MemoryPlan> none = plan_served_model(small_model(), kSmallWeights, 1536, {.max_seqs = 16}, 50'000'000);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, Code::kResourceExhausted);
}

}  // namespace
}  // namespace still
