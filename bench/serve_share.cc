// still_serve_bench: what the server's front costs. One process holds the server and its model; rounds of the same
// chats alternate between clients on loopback sockets and sinks that only count, so that both meet the same machine.
//
//   still_serve_bench STORE MODEL [--streams 1,64] [--rounds 30] [--seconds 250] [--skip 4] [--tokens 16] [--prompt 30]
//                     [--threads 2] [--block 0]
//
// STORE is a store's folder, MODEL a name in it, --prompt words. Greedy chats without an end, the same in every round,
// so that their prompts are in the prefix cache after the first. Timed is the first stream over --tokens tokens, from
// --skip tokens after all streams have begun. A round is one run of each kind, in turn the one and the other first;
// rounds are short, since the speed of a machine that is shared swings from second to second, and many. Told are the
// median of the rounds' ratios (the share in percent) with the interval that 95 % of resampled medians lie in, and the
// ratio of the quartiles' mean times. The clients run in this process too, and their time counts as the front's; what
// they take of a processor is told.
//
// With --block N there is one run over HTTP, in which the front is given N steps' news, then none for N steps, and so
// on: a step apart, so that even less of the machine's swings is between the two. A step's time is from its end to the
// next one's on the engine's thread; the first of each N is left out, since it has the other kind's work in it. The
// share is the median of the ratios of neighbours. Left in both kinds is what stands between the engine and an API's
// encoder (serve/generation.cc), well below a microsecond a token. Each piece that the front was given must have come
// to its client.
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
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "engine/engine.h"
#include "serve/api/openai_chat.h"
#include "serve/generation_registry.h"
#include "serve/http/exchange.h"
#include "serve/http/server.h"
#include "serve/metrics.h"
#include "serve/prompt.h"
#include "serve/server.h"

namespace still {
namespace {

using Clock = std::chrono::steady_clock;

struct Settings {
  std::string store, model;
  std::vector<std::int64_t> streams = {1, 64};
  std::int64_t rounds = 30, seconds = 250, skip = 4, tokens = 16, prompt = 30, threads = 2, block = 0;
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
                     settings.model, words, settings.skip + settings.tokens + 24 * settings.block + 600);
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

// The tokens of the first stream up to `last`.
std::shared_ptr<Progress> run_inside(const ServedModel& served, const std::vector<std::string>& bodies,
                                     std::size_t last) {
  return start_and_cancel(served, bodies, static_cast<std::int64_t>(last) + 1);
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

constexpr std::string_view kContent = "\"delta\":{\"content\":\"";

// Pieces of text in what came.
std::size_t count_texts(std::string_view bytes) {
  std::size_t n = 0;
  for (std::size_t at = bytes.find(kContent); at != bytes.npos; at = bytes.find(kContent, at + 1))
    if (at + kContent.size() < bytes.size() && bytes[at + kContent.size()] != '"') ++n;
  return n;
}

struct HttpRun {
  std::vector<Clock::time_point> pieces;  // when each of the first stream's pieces of text came
  Clock::time_point all_begun;            // when each stream had sent one
  double client_seconds = 0;              // of a processor
};

double thread_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

std::vector<pollfd> send_chats(std::uint16_t port, const std::vector<std::string>& bodies) {
  std::vector<pollfd> polls;
  for (const std::string& body : bodies) {
    polls.push_back({.fd = connect_to(port), .events = POLLIN, .revents = 0});
    const std::string request = fmt::format(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n{}", body.size(), body);
    if (::send(polls.back().fd, request.data(), request.size(), 0) != static_cast<ssize_t>(request.size()))
      fail("cannot send");
  }
  return polls;
}

// Over sockets that one thread reads, until the first stream has so many pieces.
HttpRun run_over_http(std::uint16_t port, const Engine& engine, const std::vector<std::string>& bodies,
                      std::size_t n_pieces) {
  std::vector<pollfd> polls = send_chats(port, bodies);
  HttpRun run;
  std::vector<bool> has_begun(bodies.size());
  std::size_t n_begun = 0;
  std::vector<char> buffer(65536);
  const double before = thread_seconds();
  while (run.pieces.size() < n_pieces) {
    if (::poll(polls.data(), polls.size(), 60000) <= 0) fail("no pieces came");
    const Clock::time_point now = Clock::now();
    for (std::size_t i = 0; i < polls.size(); ++i) {
      if (polls[i].revents == 0) continue;
      const ssize_t n = ::recv(polls[i].fd, buffer.data(), buffer.size(), 0);
      if (n <= 0) fail("a stream ended");
      if (i > 0 && has_begun[i]) continue;
      const std::size_t n_texts = count_texts({buffer.data(), static_cast<std::size_t>(n)});
      if (n_texts > 0 && !has_begun[i]) {
        has_begun[i] = true;
        if (++n_begun == polls.size()) run.all_begun = now;
      }
      if (i == 0) run.pieces.insert(run.pieces.end(), n_texts, now);
    }
  }
  run.client_seconds = thread_seconds() - before;
  if (n_begun < polls.size()) run.all_begun = Clock::now();
  for (const pollfd& poll : polls) ::close(poll.fd);
  wait_until_idle(engine);
  return run;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// Of the middle half.
double middle_mean(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t cut = values.size() / 4;
  const auto begin = values.begin() + static_cast<std::ptrdiff_t>(cut);
  const auto end = values.end() - static_cast<std::ptrdiff_t>(cut);
  return std::accumulate(begin, end, 0.0) / static_cast<double>(end - begin);
}

// The interval that 95 of 100 medians of resampled values lie in.
std::pair<double, double> median_interval(const std::vector<double>& values) {
  constexpr std::size_t kResamples = 2000;
  std::vector<double> medians, sample(values.size());
  for (std::size_t i = 0; i < kResamples; ++i) {
    for (std::size_t k = 0; k < sample.size(); ++k) sample[k] = values[counter_random(i, k) % values.size()];
    medians.push_back(median(sample));
  }
  std::sort(medians.begin(), medians.end());
  return {medians[kResamples / 40], medians[kResamples - kResamples / 40 - 1]};
}

void print_shares(std::int64_t n_streams, const std::vector<double>& shares, const char* what) {
  const auto [low, high] = median_interval(shares);
  fmt::print(
      "{} streams: share over HTTP {:.1f} % (median of {} {}, 95 % interval {:.1f} to {:.1f}; all {:.1f} to {:.1f})\n",
      n_streams, median(shares), shares.size(), what, low, high, *std::ranges::min_element(shares),
      *std::ranges::max_element(shares));
}

// The model, kept loaded while the lease lives.
std::shared_ptr<ModelLease> lease_of(ModelPool& pool, const std::string& name) {
  std::promise<Result<std::shared_ptr<ModelLease>>> promise;
  const auto ticket =
      pool.acquire({.name = name}, [&](Result<std::shared_ptr<ModelLease>> lease) { promise.set_value(lease); });
  const Result<std::shared_ptr<ModelLease>> lease = promise.get_future().get();
  if (!lease) fail(lease.error().message);
  return *lease;
}

void measure_runs(const Settings& settings, std::int64_t n_streams) {
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
  const auto lease = lease_of(*(*server)->context().pool, settings.model);
  const ServedModel& served = lease->model();

  std::vector<std::string> bodies;
  for (std::int64_t i = 0; i < n_streams; ++i) bodies.push_back(chat_body(settings, i));
  start_and_cancel(served, bodies, 2);  // the prompts into the cache

  // Tokens whose text is held back make no piece: the same ones in every round.
  const auto trial = run_inside(served, bodies, static_cast<std::size_t>(settings.skip + settings.tokens));
  const auto begun = static_cast<std::size_t>(
      std::ranges::count_if(trial->tokens(), [&](const Token& token) { return token.at < trial->all_begun(); }));
  std::size_t first = begun + static_cast<std::size_t>(settings.skip);
  std::size_t last = first + static_cast<std::size_t>(settings.tokens);
  const std::vector<Token> known = run_inside(served, bodies, last)->tokens();
  const auto piece_of = [&](std::size_t token) {
    return static_cast<std::size_t>(std::count_if(known.begin(), known.begin() + static_cast<std::ptrdiff_t>(token),
                                                  [](const Token& t) { return t.has_text; }));
  };
  while (first < last && !known[first].has_text) ++first;
  while (first < last && !known[last].has_text) --last;
  if (first == last) fail("the first stream has no text");

  const Clock::time_point end = Clock::now() + std::chrono::seconds(settings.seconds);
  const auto n_tokens = static_cast<double>(last - first);
  std::vector<double> shares, insides, https;
  double client_seconds = 0, http_seconds = 0;
  std::int64_t n_late = 0;
  for (std::int64_t round = 0; round < settings.rounds && Clock::now() < end; ++round) {
    std::shared_ptr<Progress> progress;
    if (round % 2 == 0) progress = run_inside(served, bodies, last);
    const Clock::time_point begin = Clock::now();
    const HttpRun run = run_over_http((*server)->port(), *served.engine, bodies, piece_of(last) + 1);
    http_seconds += std::chrono::duration<double>(Clock::now() - begin).count();
    client_seconds += run.client_seconds;
    if (round % 2 == 1) progress = run_inside(served, bodies, last);
    const std::vector<Token> tokens = progress->tokens();
    const Clock::time_point first_piece = run.pieces[piece_of(first)];
    if (progress->all_begun() > tokens[first].at || run.all_begun > first_piece) {
      ++n_late;
      continue;
    }
    insides.push_back(std::chrono::duration<double>(tokens[last].at - tokens[first].at).count() / n_tokens);
    https.push_back(std::chrono::duration<double>(run.pieces[piece_of(last)] - first_piece).count() / n_tokens);
    shares.push_back(100 * insides.back() / https.back());
  }
  if (shares.empty()) fail("--skip: in each round a stream began later");
  print_shares(n_streams, shares, "rounds");
  fmt::print(
      "  a step of {} tokens: {:.2f} ms in the process, {:.2f} ms over HTTP (means of the middle halves: {:.1f} %); "
      "the clients took {:.1f} % of a processor{}\n",
      n_streams, 1e3 * middle_mean(insides), 1e3 * middle_mean(https), 100 * middle_mean(insides) / middle_mean(https),
      100 * client_seconds / http_seconds,
      n_late == 0 ? "" : fmt::format("; {} rounds left out: a stream began late", n_late));
  std::fflush(stdout);
  (*server)->drain();
}

// Lets steps' news through to the front, or not, in turn, and takes the time.
class Gate {
 public:
  explicit Gate(std::int64_t block) : block_(block) {}
  struct Step {
    Clock::time_point end;
    bool is_open = true;
    bool is_first = true;  // of its block
  };

  // The engine's thread.
  bool is_open() const { return is_open_; }
  void sent() { ++n_sent_; }
  void step_ended() {
    if (!is_measuring_) return;
    const std::lock_guard lock(mutex_);
    steps_.push_back({.end = Clock::now(), .is_open = is_open_, .is_first = n_in_block_ == 0});
    if (++n_in_block_ < block_) return;
    n_in_block_ = 0;
    is_open_ = !is_open_ && !is_over_;
  }

  // The client's thread. Before measure() and after the end of over() nothing is counted.
  void measure() { is_measuring_ = true; }
  std::size_t n_steps() const {
    const std::lock_guard lock(mutex_);
    return steps_.size();
  }
  std::vector<Step> end() {  // nothing more is let through
    const std::lock_guard lock(mutex_);
    is_over_ = true;
    is_open_ = is_measuring_ = false;
    n_in_block_ = 0;
    return std::exchange(steps_, {});
  }
  void begin_again() {
    is_over_ = false;
    is_open_ = true;
    n_sent_ = 0;
  }
  std::int64_t n_sent() const { return n_sent_; }

 private:
  const std::int64_t block_;
  std::atomic<bool> is_open_{true}, is_measuring_{false}, is_over_{false};
  std::atomic<std::int64_t> n_sent_{0};
  mutable std::mutex mutex_;
  std::int64_t n_in_block_ = 0;
  std::vector<Step> steps_;
};

class GatedSink : public GenerationSink {
 public:
  GatedSink(std::shared_ptr<GenerationSink> sink, Gate& gate) : sink_(std::move(sink)), gate_(gate) {}
  void on_begun(const GenerationBegun& begun) override { sink_->on_begun(begun); }
  void on_progress(const ProgressEvent& event, int answer) override { sink_->on_progress(event, answer); }
  void on_piece(GenerationPiece&& piece) override {
    if (!gate_.is_open()) return;
    if (!piece.content.empty()) gate_.sent();
    sink_->on_piece(std::move(piece));
  }
  void on_done(const GenerationDone& done) override { sink_->on_done(done); }
  void on_step_end() override {
    if (gate_.is_open()) sink_->on_step_end();
  }
  void on_end() override { sink_->on_end(); }
  void on_failed(const Error& error) override { fail(error.message); }

 private:
  std::shared_ptr<GenerationSink> sink_;
  Gate& gate_;
};

// One generation of each chat, for so many steps from when all have begun.
std::vector<Gate::Step> run_gated(Gate& gate, std::uint16_t port, const Engine& engine,
                                  const std::vector<std::string>& bodies, std::size_t n_steps) {
  gate.begin_again();
  std::vector<pollfd> polls = send_chats(port, bodies);
  std::vector<std::string> tails(bodies.size());  // what a piece may have begun in
  std::vector<bool> has_begun(bodies.size());
  std::vector<char> buffer(65536);
  std::size_t n_begun = 0;
  std::int64_t n_received = 0;
  std::vector<Gate::Step> steps;
  bool is_over = false;
  const Clock::time_point limit = Clock::now() + std::chrono::minutes(4);
  while (!is_over || n_received < gate.n_sent()) {
    if (Clock::now() > limit) fail("pieces were lost");
    if (!is_over && gate.n_steps() >= n_steps) {
      steps = gate.end();
      is_over = true;
    }
    if (::poll(polls.data(), polls.size(), 200) < 0) fail("cannot poll");
    for (std::size_t i = 0; i < polls.size(); ++i) {
      if (polls[i].revents == 0) continue;
      const ssize_t n = ::recv(polls[i].fd, buffer.data(), buffer.size(), 0);
      if (n <= 0) fail("a stream ended");
      tails[i].append(buffer.data(), static_cast<std::size_t>(n));
      const std::size_t n_texts = count_texts(tails[i]);
      tails[i].erase(0, tails[i].size() - std::min(tails[i].size(), kContent.size()));
      n_received += static_cast<std::int64_t>(n_texts);
      if (n_texts > 0 && !has_begun[i]) {
        has_begun[i] = true;
        if (++n_begun == polls.size()) gate.measure();
      }
    }
  }
  if (n_received != gate.n_sent()) fail("more pieces came than were sent");
  for (const pollfd& poll : polls) ::close(poll.fd);
  wait_until_idle(engine);
  return steps;
}

void measure_gated(const Settings& settings, std::int64_t n_streams) {
  constexpr std::size_t kBlocksOfARun = 24;
  Gate gate(settings.block);
  std::unique_ptr<HttpServer> http;
  ServeContext context;
  context.generations = std::make_unique<GenerationRegistry>();
  Result<std::unique_ptr<ModelPool>> pool =
      make_model_pool({.library = {.store = settings.store, .ollama = {}},
                       .engine = {.n_threads = static_cast<int>(settings.threads), .max_seqs = n_streams},
                       .keep_alive = std::chrono::nanoseconds(-1),
                       .around_step_ends = [&](bool begins) {
                         if (gate.is_open()) begins ? http->hold_wakes() : http->let_wakes_go();
                         if (!begins) gate.step_ended();
                       }});
  if (!pool) fail(pool.error().message);
  context.pool = std::move(*pool);
  // As the server's own handler (serve/api/openai.cc), but for the gate.
  const auto handle = [&](const std::shared_ptr<const HttpRequest>& request, std::shared_ptr<ResponseWriter> writer) {
    Result<JsonObject> body = parse_body(request->body);
    if (!body) fail(body.error().message);
    JsonFields fields(*body);
    ChatCall call = read_chat_call(fields);
    call.input.wants_progress = true;
    auto sink = std::make_shared<GatedSink>(std::make_shared<OpenAiChatSink>(call, writer), gate);
    const auto generation = start_generation(context, std::move(call.input), std::move(sink));
    writer->on_closed([weak = std::weak_ptr(generation)] {
      if (const auto open = weak.lock()) open->cancel();
    });
  };
  Result<std::unique_ptr<HttpServer>> listening = HttpServer::listen(
      {}, {.plan_body = {},
           .handle = handle,
           .refuse = [](const HttpRequest&, int status,
                        const std::string& sentence) { return HttpResponse{.status = status, .body = sentence}; },
           .done = [](const HttpRecord&) {}});
  if (!listening) fail(listening.error().message);
  http = std::move(*listening);
  http->start();
  auto lease = lease_of(*context.pool, settings.model);
  const Engine& engine = *lease->model().engine;
  std::vector<std::string> bodies;
  for (std::int64_t i = 0; i < n_streams; ++i) bodies.push_back(chat_body(settings, i));
  const auto n_steps = static_cast<std::size_t>(settings.block) * kBlocksOfARun;
  const auto n_warm = static_cast<std::size_t>(settings.block) * 2;
  run_gated(gate, http->port(), engine, bodies, n_warm);  // the prompts into the cache

  std::vector<double> shares, opens, closeds;
  const Clock::time_point end = Clock::now() + std::chrono::seconds(settings.seconds);
  for (std::int64_t round = 0; round < settings.rounds && Clock::now() < end; ++round) {
    std::vector<Gate::Step> steps = run_gated(gate, http->port(), engine, bodies, n_steps);
    double last = 0;  // the block before, a step's mean
    for (std::size_t first = 0; first + static_cast<std::size_t>(settings.block) <= steps.size();
         first += static_cast<std::size_t>(settings.block)) {
      const std::size_t back = first + static_cast<std::size_t>(settings.block) - 1;
      if (!steps[first].is_first || steps[first].is_open != steps[back].is_open) fail("a block is not whole");
      const double mean = std::chrono::duration<double>(steps[back].end - steps[first].end).count() /
                          static_cast<double>(settings.block - 1);
      const bool is_open = steps[first].is_open;
      (is_open ? opens : closeds).push_back(mean);
      if (last > 0) shares.push_back(100 * (is_open ? last / mean : mean / last));
      last = mean;
    }
  }
  if (shares.empty()) fail("no blocks");
  print_shares(n_streams, shares, "neighbours");
  fmt::print("  a step: {:.2f} ms without the front, {:.2f} ms with it (means of the middle halves: {:.1f} %)\n",
             1e3 * middle_mean(closeds), 1e3 * middle_mean(opens), 100 * middle_mean(closeds) / middle_mean(opens));
  std::fflush(stdout);
  http->drain();
  lease = nullptr;
  context.pool->stop();  // what it calls is then still there
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
                             : word == "--seconds" ? &settings.seconds
                             : word == "--block"   ? &settings.block
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
  if (settings.block == 1) still::fail("--block 1: expected 0 (whole runs), or 2 steps or more");
  for (const std::int64_t n : settings.streams)
    settings.block > 0 ? still::measure_gated(settings, n) : still::measure_runs(settings, n);
  return 0;
}
