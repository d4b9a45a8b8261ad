// For tests of the APIs: a pool that serves a tiny model of testdata/, a writer that keeps what is written, and a
// context of both. Needs no network and no store.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/chat.h"
#include "serve/context.h"
#include "serve/generation_registry.h"
#include "serve/metrics.h"

namespace still::testing {

struct TinyModelOptions {
  std::string name = "qwen2";  // folder in testdata/tiny
  std::string chat_template;   // empty: the model's own
  std::int64_t context = 0;    // 0: the model's
  std::int64_t max_queue = 256;
  JsonObject parameters;
  std::string system;
};

inline std::shared_ptr<ServedModel> load_tiny(const TinyModelOptions& options) {
  auto served = std::make_shared<ServedModel>();
  served->name = options.name + ":latest";
  served->digest = std::string(64, 'a');
  const std::string folder = std::string(STILL_SOURCE_DIR) + "/testdata/tiny/" + options.name;
  auto model = Model::load(folder, {.n_threads = 1});
  EXPECT_TRUE(model) << model.error().message;
  served->model = *model;
  EngineOptions engine_options;
  engine_options.settings = {.n_threads = 1, .context = options.context, .max_seqs = 8};
  engine_options.max_queue = options.max_queue;
  auto engine = Engine::create(*model, engine_options);
  EXPECT_TRUE(engine) << engine.error().message;
  served->engine = std::move(*engine);
  served->engine->start();
  auto chat_template = options.chat_template.empty() ? chat_template_of(**model, options.name)
                                                     : load_chat_template(options.chat_template, options.name);
  EXPECT_TRUE(chat_template) << chat_template.error().message;
  served->chat_template.emplace(std::move(*chat_template));
  served->can_think = true;
  served->parameters = options.parameters;
  served->system = options.system;
  return served;
}

class TinyLease : public ModelLease {
 public:
  TinyLease(std::shared_ptr<ServedModel> model, std::atomic<int>& n_open) : model_(std::move(model)), n_open_(n_open) {
    ++n_open_;
  }
  ~TinyLease() override { --n_open_; }
  const ServedModel& model() const override { return *model_; }
  std::chrono::nanoseconds load_duration() const override { return std::chrono::milliseconds(1); }
  void set_keep_alive(std::optional<std::chrono::nanoseconds>) override {}

 private:
  std::shared_ptr<ServedModel> model_;
  std::atomic<int>& n_open_;
};

// Every name but "missing" is the tiny model; "huge" can never fit; "slow" never comes, until its ticket is dropped.
class TinyPool : public ModelPool {
 public:
  explicit TinyPool(const TinyModelOptions& options) : model_(load_tiny(options)) {}
  ~TinyPool() override {
    for (std::thread& thread : threads_) thread.join();
    model_->engine->stop(false);
  }
  std::shared_ptr<void> acquire(ModelWish wish,
                                std::function<void(Result<std::shared_ptr<ModelLease>>)> ready) override {
    const auto ticket = std::make_shared<int>(0);
    if (wish.name == "slow") {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(std::move(ready));
      return ticket;
    }
    const std::lock_guard lock(mutex_);
    threads_.emplace_back([this, wish = std::move(wish), ready = std::move(ready)] {
      if (wish.name == "missing") {
        ready(error(Code::kNotFound, "model 'missing' not found"));
      } else if (wish.name == "huge") {
        ready(error(Code::kResourceExhausted, "the model needs 700 GiB, 8 are there"));
      } else {
        ready(std::shared_ptr<ModelLease>(std::make_shared<TinyLease>(model_, n_open)));
      }
    });
    return ticket;
  }
  std::vector<LoadedModelInfo> loaded() const override {
    return {{.name = model_->name, .context = model_->engine->context()}};
  }
  Status unload(const std::string&) override { return ok(); }
  void refresh() override {}

  ServedModel& model() { return *model_; }
  std::atomic<int> n_open{0};  // leases

 private:
  std::shared_ptr<ServedModel> model_;
  std::mutex mutex_;
  std::vector<std::thread> threads_;
  std::vector<std::function<void(Result<std::shared_ptr<ModelLease>>)>> waiting_;
};

class RecordingWriter : public ResponseWriter {
 public:
  void send(HttpResponse response) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(is_answered_) << "answered twice";
    is_answered_ = is_ended_ = true;
    status = response.status;
    headers = response.headers;
    body = response.body;
    changed_.notify_all();
  }
  void start(int new_status, std::string_view, std::vector<HttpHeader> new_headers) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(is_answered_) << "answered twice";
    is_answered_ = true;
    status = new_status;
    headers = std::move(new_headers);
  }
  void write(std::string_view bytes) override {
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(is_answered_ && !is_ended_);
    body += bytes;
  }
  void flush() override {
    const std::lock_guard lock(mutex_);
    ++n_flushes;
    changed_.notify_all();
  }
  void finish() override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(is_ended_);
    is_ended_ = true;
    changed_.notify_all();
  }
  void abort() override { finish(); }
  void on_closed(std::function<void()> gone) override {
    const std::lock_guard lock(mutex_);
    gone_ = std::move(gone);
  }
  bool is_closed() const override { return false; }

  void wait() {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60), [this] { return is_ended_; })) << body;
  }
  void wait_for_text(std::string_view text) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60),
                                  [&] { return is_ended_ || body.find(text) != std::string::npos; }));
  }
  void client_leaves() {
    std::function<void()> gone;
    {
      const std::lock_guard lock(mutex_);
      gone = gone_;
    }
    if (gone) gone();
  }

  int status = 0, n_flushes = 0;
  std::string body;
  std::vector<HttpHeader> headers;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_answered_ = false, is_ended_ = false;
  std::function<void()> gone_;
};

// Routes of the APIs over a tiny model.
class ApiTest : public ::testing::Test {
 protected:
  void use_model(const TinyModelOptions& options = {}) {
    context.generations = std::make_unique<GenerationRegistry>();
    auto tiny = std::make_unique<TinyPool>(options);
    pool = tiny.get();
    context.pool = std::move(tiny);
  }

  std::shared_ptr<RecordingWriter> start(std::string method, std::string path, std::string body) {
    const auto request = std::make_shared<HttpRequest>();
    request->method = std::move(method);
    request->path = std::move(path);
    request->body = std::move(body);
    request->peer = "127.0.0.1:1";
    const Router::Match match = router.find(request->method, request->path);
    auto writer = std::make_shared<RecordingWriter>();
    if (match.route == nullptr) {
      ADD_FAILURE() << "no route " << request->path;
      return writer;
    }
    request->captures = match.captures;
    match.route->handler(request, writer);
    return writer;
  }
  std::shared_ptr<RecordingWriter> call(std::string method, std::string path, std::string body) {
    auto writer = start(std::move(method), std::move(path), std::move(body));
    writer->wait();
    return writer;
  }
  Json post(const std::string& path, const std::string& body, int status = 200) {
    const auto writer = call("POST", path, body);
    EXPECT_EQ(writer->status, status) << writer->body;
    const Result<Json> json = parse_json(writer->body, "answer");
    EXPECT_TRUE(json) << writer->body;
    return json ? *json : Json();
  }

  ServeContext context;
  Router router;
  TinyPool* pool = nullptr;
};

}  // namespace still::testing
