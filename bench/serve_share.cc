// still_serve_bench: what the server's front costs. One process holds the server and its model; rounds of the same
// chats alternate between clients on loopback sockets and sinks that only count, so that both meet the same machine.
//
//   still_serve_bench STORE MODEL [--streams 1,64] [--rounds 8] [--skip 16] [--tokens 64] [--prompt 100] [--threads 2]
//
// STORE is a store's folder, MODEL a name in it, --prompt words. Greedy chats without an end, the same in every round,
// so that their prompts are in the prefix cache after the first. Timed is the first stream from its token --skip on,
// over --tokens more; by then all streams decode. A line a round: seconds in the process, over HTTP, and their ratio in
// percent (the share), then the median. The clients run in this process too, and their time counts as the front's.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/rng.h"
#include "engine/engine.h"
#include "serve/api/openai_request.h"
#include "serve/prompt.h"
#include "serve/server.h"

namespace still {
namespace {

using Clock = std::chrono::steady_clock;

struct Settings {
  std::string store, model;
  std::vector<std::int64_t> streams = {1, 64};
  std::int64_t rounds = 8, skip = 16, tokens = 64, prompt = 100, threads = 2;
};

// When each token of the first stream came; where its text was empty, no client can see it.
struct Token {
  Clock::time_point at;
  bool has_text = false;
};

std::string chat_body(const Settings& settings, std::int64_t stream) {
  std::string words;
  for (std::int64_t i = 0; i < settings.prompt; ++i)
    words +=
        fmt::format("{} ", counter_random(static_cast<std::uint64_t>(stream), static_cast<std::uint64_t>(i)) % 999);
  return fmt::format(R"({{"model":"{}","messages":[{{"role":"user","content":"{}"}}],"temperature":0,)"
                     R"("ignore_eos":true,"stream":true,"max_tokens":{}}})",
                     settings.model, words, settings.skip + settings.tokens + 400);
}

// Waits until `n` tokens of the first stream and one of each other have come.
class Progress {
 public:
  explicit Progress(std::size_t n_streams) : has_begun_(n_streams) {}
  void token(std::size_t stream, bool has_text) {
    const std::lock_guard lock(mutex_);
    if (!has_begun_[stream]) {
      has_begun_[stream] = true;
      ++n_begun_;
      if (n_begun_ == has_begun_.size()) all_begun_ = Clock::now();
    }
    if (stream == 0) tokens_.push_back({Clock::now(), has_text});
    changed_.notify_all();
  }
  bool wait(std::size_t n) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::minutes(4),
                             [&] { return tokens_.size() >= n && n_begun_ == has_begun_.size(); });
  }
  std::vector<Token> tokens() const {
    const std::lock_guard lock(mutex_);
    return tokens_;
  }
  Clock::time_point all_begun() const { return all_begun_; }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<bool> has_begun_;
  std::size_t n_begun_ = 0;
  std::vector<Token> tokens_;
  Clock::time_point all_begun_;
};

class CountingSink : public EventSink {
 public:
  CountingSink(std::shared_ptr<Progress> progress, std::size_t stream)
      : progress_(std::move(progress)), stream_(stream) {}
  void on_event(const Event& event) override {
    const auto* token = std::get_if<TokenEvent>(&event);
    if (token != nullptr && (stream_ == 0 || !has_begun_)) progress_->token(stream_, !token->text.empty());
    has_begun_ = has_begun_ || token != nullptr;
  }

 private:
  std::shared_ptr<Progress> progress_;
  std::size_t stream_;
  bool has_begun_ = false;
};

[[noreturn]] void fail(const std::string& sentence) {
  fmt::print(stderr, "still_serve_bench: {}\n", sentence);
  std::exit(1);
}

void wait_until_idle(const Engine& engine) {
  while (engine.stats().n_running + engine.stats().n_waiting > 0)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

// Runs the chats in the engine itself until the first has so many tokens and all have begun.
std::shared_ptr<Progress> start_and_cancel(const ServedModel& served, const std::vector<std::string>& bodies,
                                           std::int64_t n_tokens) {
  auto progress = std::make_shared<Progress>(bodies.size());
  std::vector<RequestId> ids;
  for (std::size_t i = 0; i < bodies.size(); ++i) {
    Result<JsonObject> body = parse_body(bodies[i]);
    if (!body) fail(body.error().message);
    JsonFields fields(*body);
    const ChatCall call = read_chat_call(fields);
    Result<Request> request = prepare_prompt(call.input, served);
    if (!request) fail(request.error().message);
    Result<RequestId> id = served.engine->submit(std::move(*request), std::make_shared<CountingSink>(progress, i));
    if (!id) fail(id.error().message);
    ids.push_back(*id);
  }
  if (!progress->wait(static_cast<std::size_t>(n_tokens))) fail("no tokens came");
  for (const RequestId id : ids) served.engine->cancel(id);
  wait_until_idle(*served.engine);
  return progress;
}

// The tokens of the first stream.
std::vector<Token> run_inside(const Settings& settings, const ServedModel& served,
                              const std::vector<std::string>& bodies) {
  const auto progress = start_and_cancel(served, bodies, settings.skip + settings.tokens + 1);
  std::vector<Token> tokens = progress->tokens();
  if (progress->all_begun() > tokens[static_cast<std::size_t>(settings.skip)].at)
    fail("--skip: the last stream began later");
  return tokens;
}

int connect_to(std::uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) fail("cannot connect");
  return fd;
}

// Pieces of text in what came.
std::size_t count_texts(std::string_view bytes) {
  constexpr std::string_view kContent = "\"delta\":{\"content\":\"";
  std::size_t n = 0;
  for (std::size_t at = bytes.find(kContent); at != bytes.npos; at = bytes.find(kContent, at + 1))
    if (bytes.substr(at + kContent.size(), 1) != "\"") ++n;
  return n;
}

// When each of the first stream's pieces of text came, over sockets that one thread reads.
std::vector<Clock::time_point> run_over_http(std::uint16_t port, const Engine& engine,
                                             const std::vector<std::string>& bodies, std::size_t n_pieces) {
  std::vector<pollfd> polls;
  for (const std::string& body : bodies) {
    polls.push_back({.fd = connect_to(port), .events = POLLIN, .revents = 0});
    const std::string request = fmt::format(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n{}", body.size(), body);
    if (::send(polls.back().fd, request.data(), request.size(), 0) != static_cast<ssize_t>(request.size()))
      fail("cannot send");
  }
  std::vector<Clock::time_point> pieces;
  std::vector<char> buffer(65536);
  while (pieces.size() < n_pieces) {
    if (::poll(polls.data(), polls.size(), 60000) <= 0) fail("no pieces came");
    const Clock::time_point now = Clock::now();
    for (pollfd& poll : polls) {
      if (poll.revents == 0) continue;
      const ssize_t n = ::recv(poll.fd, buffer.data(), buffer.size(), 0);
      if (n <= 0) fail("a stream ended");
      if (&poll == &polls[0])
        pieces.insert(pieces.end(), count_texts({buffer.data(), static_cast<std::size_t>(n)}), now);
    }
  }
  for (const pollfd& poll : polls) ::close(poll.fd);
  wait_until_idle(engine);
  return pieces;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

void measure(const Settings& settings, std::int64_t n_streams) {
  ServeOptions options;
  options.port = 0;
  options.models = settings.store;
  options.access_log = "/dev/null";
  options.engine.n_threads = static_cast<int>(settings.threads);
  options.engine.max_seqs = n_streams;
  options.keep_alive = std::chrono::nanoseconds(-1);
  Result<std::unique_ptr<Server>> server = Server::create(std::move(options));
  if (!server) fail(server.error().message);
  (*server)->start();
  std::promise<Result<std::shared_ptr<ModelLease>>> promise;
  const auto ticket = (*server)->context().pool->acquire(
      {.name = settings.model},
      [&](Result<std::shared_ptr<ModelLease>> lease) { promise.set_value(std::move(lease)); });
  const Result<std::shared_ptr<ModelLease>> lease = promise.get_future().get();
  if (!lease) fail(lease.error().message);
  const ServedModel& served = (*lease)->model();

  std::vector<std::string> bodies;
  for (std::int64_t i = 0; i < n_streams; ++i) bodies.push_back(chat_body(settings, i));
  auto first = static_cast<std::size_t>(settings.skip);
  auto last = static_cast<std::size_t>(settings.skip + settings.tokens);
  start_and_cancel(served, bodies, 2);  // the prompts into the cache

  // Tokens whose text is held back make no piece: the same ones in every round.
  const std::vector<Token> known = run_inside(settings, served, bodies);
  const auto piece_of = [&](std::size_t token) {
    return static_cast<std::size_t>(std::count_if(known.begin(), known.begin() + static_cast<std::ptrdiff_t>(token),
                                                  [](const Token& t) { return t.has_text; }));
  };
  while (first < last && !known[first].has_text) ++first;
  while (first < last && !known[last].has_text) --last;
  if (first == last) fail("the first stream has no text");

  std::vector<double> shares;
  for (std::int64_t round = 0; round < settings.rounds; ++round) {
    std::vector<Token> tokens;
    if (round % 2 == 0) tokens = run_inside(settings, served, bodies);
    const auto pieces = run_over_http((*server)->port(), *served.engine, bodies, piece_of(last) + 1);
    if (round % 2 == 1) tokens = run_inside(settings, served, bodies);
    const double inside = std::chrono::duration<double>(tokens[last].at - tokens[first].at).count();
    const double http = std::chrono::duration<double>(pieces[piece_of(last)] - pieces[piece_of(first)]).count();
    shares.push_back(100 * inside / http);
    fmt::print("{} streams, round {}: {:.3f} s in the process, {:.3f} s over HTTP, {:.1f} %\n", n_streams, round + 1,
               inside, http, shares.back());
    std::fflush(stdout);
  }
  fmt::print("{} streams: share over HTTP {:.1f} % (median of {} rounds; {:.1f} to {:.1f})\n", n_streams,
             median(shares), shares.size(), *std::min_element(shares.begin(), shares.end()),
             *std::max_element(shares.begin(), shares.end()));
  (*server)->drain();
}

}  // namespace
}  // namespace still

int main(int argc, char** argv) {
  still::Settings settings;
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (!word.starts_with("--")) {
      names.push_back(word);
      continue;
    }
    if (++i == argc) still::fail(word + ": a value is missing");
    const std::string value = argv[i];
    if (word == "--streams") {
      settings.streams.clear();
      for (std::size_t at = 0; at < value.size(); at = std::min(value.find(',', at), value.size() - 1) + 1)
        settings.streams.push_back(std::atoll(value.c_str() + at));
    } else {
      std::int64_t* number = word == "--rounds"    ? &settings.rounds
                             : word == "--skip"    ? &settings.skip
                             : word == "--tokens"  ? &settings.tokens
                             : word == "--prompt"  ? &settings.prompt
                             : word == "--threads" ? &settings.threads
                                                   : nullptr;
      if (number == nullptr) still::fail(word + ": no such option");
      *number = std::atoll(value.c_str());
    }
  }
  if (names.size() != 2) still::fail("expected STORE MODEL");
  settings.store = names[0];
  settings.model = names[1];
  for (const std::int64_t n : settings.streams) still::measure(settings, n);
  return 0;
}
