#include "serve/http/server.h"

#include <signal.h>

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_set>
#include <utility>

#include "serve/http/exchange.h"
#include "serve/http/inflate.h"
#include "serve/http/session.h"
#include "serve/http/text.h"
#include "serve/http/transport.h"

namespace still {
namespace {

// Connections over the limit are told so; beyond this many more they are closed without a word.
constexpr std::int64_t kMaxRefusing = 64;

std::uint64_t random_start() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

// Undoes Content-Encoding. False: it was answered with a refusal.
bool unpack_body(HttpRequest& request, ExchangeWriter& writer, const HttpServerOptions& options,
                 const HttpHooks& hooks) {
  const std::string_view encoding = trim_spaces(request.header("Content-Encoding"));
  if (encoding.empty() || equals_without_case(encoding, "identity")) return true;
  const bool is_zstd = equals_without_case(encoding, "zstd");
  const bool is_zlib = equals_without_case(encoding, "gzip") || equals_without_case(encoding, "x-gzip") ||
                       equals_without_case(encoding, "deflate");
  if (!is_zstd && !is_zlib) {
    writer.add_header({"Accept-Encoding", "gzip, deflate, zstd"});
    writer.send(hooks.refuse(request, 415,
                             fmt::format("Content-Encoding \"{}\": expected gzip, deflate, zstd or identity",
                                         std::string(encoding.substr(0, 40)))));
    return false;
  }
  Result<std::string> body = is_zstd ? inflate_zstd_body(request.body, options.max_body_bytes)
                                     : inflate_body(request.body, options.max_body_bytes);
  if (!body) {
    const int status = body.error().code == Code::kResourceExhausted ? 413 : 400;
    writer.send(hooks.refuse(request, status, body.error().message));
    return false;
  }
  request.body = std::move(*body);
  return true;
}

// A few threads that run what they are given, in order of arrival.
class Workers {
 public:
  void start(int n) {
    for (int i = 0; i < n; ++i) threads_.emplace_back([this] { run(); });
  }
  void add(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      if (is_stopped_) return;
      tasks_.push_back(std::move(task));
    }
    ready_.notify_one();
  }
  // What waits is dropped; what runs is waited for.
  void stop() {
    std::deque<std::function<void()>> dropped;
    {
      const std::lock_guard lock(mutex_);
      is_stopped_ = true;
      dropped.swap(tasks_);
    }
    ready_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      ready_.wait(lock, [this] { return is_stopped_ || !tasks_.empty(); });
      if (is_stopped_) return;
      std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      task = nullptr;
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> tasks_;
  bool is_stopped_ = false;
  std::vector<std::thread> threads_;
};

// The server whose wake-ups this thread holds back.
thread_local const void* holder_of_wakes = nullptr;

}  // namespace

class HttpServer::Core : public SessionHost, public ExchangeLoop, public std::enable_shared_from_this<Core> {
 public:
  Core(HttpServerOptions options, HttpHooks hooks)
      : options_(std::move(options)), hooks_(std::move(hooks)), timer_(io_), next_id_(random_start()) {}

  Status listen() {
    std::shared_ptr<asio::ssl::context> tls;
    if (!options_.tls_certificate.empty() || !options_.tls_key.empty()) {
      STILL_TRY(tls, load_tls(options_.tls_certificate, options_.tls_key));
    }
    STILL_TRY(auto tcp, listen_tcp(io_, options_.host, options_.port, std::move(tls)));
    port_ = tcp->port();
    listeners_.push_back(std::move(tcp));
    if (!options_.unix_socket.empty()) {
      STILL_TRY(auto local, listen_unix(io_, options_.unix_socket));
      listeners_.push_back(std::move(local));
    }
    return ok();
  }

  void start() {
    // A write to a connection that is gone is an error to handle, not the end of the program.
    ::signal(SIGPIPE, SIG_IGN);
    workers_.start(options_.n_workers);
    for (auto& listener : listeners_) {
      listener->start([this](std::unique_ptr<Transport> transport) { accept(std::move(transport)); });
    }
    arm_timer();
    thread_ = std::thread([this] { io_.run(); });
  }

  void drain() {
    is_draining_ = true;
    // The listeners stay: whoever comes is told that the server is ending, not left to guess why nobody answers.
    asio::post(io_, [this] {
      for (const auto& session : std::vector(sessions_.begin(), sessions_.end())) session->drain();
    });
  }

  bool wait_idle(std::chrono::milliseconds timeout) {
    std::unique_lock lock(idle_mutex_);
    return idle_.wait_for(lock, timeout, [this] { return n_active_.load() == 0; });
  }

  void stop() {
    if (is_stopped_.exchange(true)) return;
    is_draining_ = true;
    if (thread_.joinable()) {
      asio::post(io_, [this] {
        for (auto& listener : listeners_) listener->stop();
        timer_.cancel();
        for (const auto& session : std::vector(sessions_.begin(), sessions_.end())) session->close(true);
        work_.reset();
      });
    } else {
      work_.reset();
      io_.stop();
    }
    workers_.stop();
    if (thread_.joinable()) thread_.join();
    sessions_.clear();
    listeners_.clear();
  }

  HttpServerStats stats() const {
    return {.n_connections = n_connections_.load(),
            .n_active = n_active_.load(),
            .n_accepted = n_accepted_.load(),
            .n_refused = n_refused_.load()};
  }
  std::uint16_t port() const { return port_; }

  // SessionHost, on the I/O thread.
  const HttpServerOptions& options() const override { return options_; }
  std::shared_ptr<ExchangeLoop> loop() override { return shared_from_this(); }
  std::uint64_t next_request_id() override { return next_id_++; }
  HttpResponse refusal(const HttpRequest& request, int status, const std::string& sentence) override {
    return hooks_.refuse(request, status, sentence);
  }
  BodyPlan plan_body(const HttpRequest& request) override {
    return hooks_.plan_body ? hooks_.plan_body(request) : BodyPlan{};
  }
  void work(std::function<void()> task) override { workers_.add(std::move(task)); }
  void dispatch(std::shared_ptr<HttpRequest> request, std::shared_ptr<Exchange> exchange) override {
    auto writer = std::make_shared<ExchangeWriter>(std::move(exchange));
    workers_.add([this, request = std::move(request), writer = std::move(writer)]() mutable {
      if (!unpack_body(*request, *writer, options_, hooks_)) return;
      hooks_.handle(std::move(request), std::move(writer));
    });
  }
  void done(const HttpRecord& record) override { hooks_.done(record); }
  void active_changed(int change) override {
    if (change == 0) return;
    {
      const std::lock_guard lock(idle_mutex_);
      n_active_ += change;
    }
    if (change < 0) idle_.notify_all();
  }

  // ExchangeLoop, any thread.
  void wake(std::shared_ptr<Exchange> exchange) override {
    {
      const std::lock_guard lock(ready_mutex_);
      ready_.push_back(std::move(exchange));
      // One wake-up for all that come before they are taken.
      if (holder_of_wakes == this || std::exchange(is_woken_, true)) return;
    }
    asio::post(io_, [this] { send_ready(); });
  }
  void hold_wakes() { holder_of_wakes = this; }
  void let_wakes_go() {
    holder_of_wakes = nullptr;
    {
      const std::lock_guard lock(ready_mutex_);
      if (ready_.empty() || std::exchange(is_woken_, true)) return;
    }
    asio::post(io_, [this] { send_ready(); });
  }
  void post(std::function<void()> task) override {
    if (!is_stopped_) asio::post(io_, std::move(task));
  }
  bool is_draining() const override { return is_draining_; }

 private:
  void accept(std::unique_ptr<Transport> transport) {
    const bool is_over = n_connections_ >= options_.max_connections;
    if (n_connections_ >= options_.max_connections + kMaxRefusing) {
      ++n_refused_;
      return transport->close(true);
    }
    ++(is_over ? n_refused_ : n_accepted_);
    auto session = std::make_shared<Session>(*this, std::move(transport));
    sessions_.insert(session);
    n_connections_ = static_cast<std::int64_t>(sessions_.size());
    session->start(is_over);
  }

  void send_ready() {
    {
      const std::lock_guard lock(ready_mutex_);
      sending_.swap(ready_);
      is_woken_ = false;
    }
    for (const auto& exchange : sending_) {
      if (const auto owner = exchange->owner()) owner->on_ready(*exchange);
    }
    sending_.clear();
  }

  void arm_timer() {
    timer_.expires_after(options_.tick);
    timer_.async_wait([this](const ErrorCode& problem) {
      if (problem || is_stopped_) return;
      tick();
      arm_timer();
    });
  }

  void tick() {
    const auto now = Session::Clock::now();
    std::erase_if(sessions_, [](const auto& session) { return session->is_closed(); });
    for (const auto& session : sessions_) session->tick(now);
    n_connections_ = static_cast<std::int64_t>(sessions_.size());
  }

  const HttpServerOptions options_;
  const HttpHooks hooks_;
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_ = asio::make_work_guard(io_);
  asio::steady_timer timer_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::uint16_t port_ = 0;
  std::uint64_t next_id_;
  std::unordered_set<std::shared_ptr<Session>> sessions_;
  std::atomic<std::int64_t> n_connections_{0}, n_accepted_{0}, n_refused_{0};
  std::atomic<bool> is_draining_{false}, is_stopped_{false};

  std::mutex idle_mutex_;
  std::condition_variable idle_;
  std::atomic<std::int64_t> n_active_{0};

  std::mutex ready_mutex_;
  std::vector<std::shared_ptr<Exchange>> ready_, sending_;
  bool is_woken_ = false;  // send_ready() will run

  Workers workers_;
  std::thread thread_;
};

HttpServer::HttpServer(std::shared_ptr<Core> core) : core_(std::move(core)) {}

HttpServer::~HttpServer() {
  stop();
}

Result<std::unique_ptr<HttpServer>> HttpServer::listen(HttpServerOptions options, HttpHooks hooks) {
  auto core = std::make_shared<Core>(std::move(options), std::move(hooks));
  STILL_TRY_STATUS(core->listen());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(core)));
}

void HttpServer::start() {
  core_->start();
}
std::uint16_t HttpServer::port() const {
  return core_->port();
}
void HttpServer::drain() {
  core_->drain();
}
bool HttpServer::wait_idle(std::chrono::milliseconds timeout) {
  return core_->wait_idle(timeout);
}
void HttpServer::stop() {
  core_->stop();
}
HttpServerStats HttpServer::stats() const {
  return core_->stats();
}
void HttpServer::hold_wakes() {
  core_->hold_wakes();
}
void HttpServer::let_wakes_go() {
  core_->let_wakes_go();
}

}  // namespace still
