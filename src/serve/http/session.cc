#include "serve/http/session.h"

#include <fmt/format.h>

#include "serve/http/text.h"

namespace still {
namespace {

namespace http = boost::beast::http;

// After a last response the client gets so long, and so many bytes of a request that nobody wants, before the
// connection is closed: a close with unread bytes would reset it, and the response could be lost on its way.
constexpr std::chrono::milliseconds kLingerTime{2000};
constexpr std::int64_t kMaxLingerBytes = 64 << 20;
// A body that comes more slowly than this many bytes each body_timeout is given up.
constexpr std::int64_t kBodyStep = 64 << 10;
// What a sink gets at a time.
constexpr std::size_t kSinkBytes = 256 << 10;

struct Refusal {
  int status;
  std::string sentence;
};

Refusal refusal_of(const ErrorCode& problem, const HttpServerOptions& options) {
  using http::error;
  if (problem == error::header_limit || problem == error::buffer_overflow) {
    return {431, fmt::format("the request's headers are larger than {} bytes", options.max_header_bytes)};
  }
  if (problem == error::body_limit) {
    return {413, fmt::format("the request's body is larger than {} bytes", options.max_body_bytes)};
  }
  if (problem == error::bad_version) return {505, "this server speaks HTTP/1.1 and HTTP/1.0"};
  return {400, "not an HTTP request: " + problem.message()};
}

}  // namespace

Session::Session(SessionHost& host, std::unique_ptr<Transport> transport)
    : host_(host), transport_(std::move(transport)) {}

Session::~Session() {
  if (exchange_) exchange_->close();
}

void Session::set_phase(Phase phase) {
  const auto is_active = [](Phase p) { return p == Phase::kHead || p == Phase::kBody || p == Phase::kHandling; };
  host_.active_changed(int{is_active(phase)} - int{is_active(phase_)});
  phase_ = phase;
}

void Session::set_deadline(std::chrono::milliseconds from_now) {
  deadline_ = Clock::now() + from_now;
}

void Session::start(bool is_refused) {
  set_deadline(host_.options().header_timeout);
  transport_->handshake([self = shared_from_this(), is_refused](const ErrorCode& problem) {
    if (self->is_closed()) return;
    if (problem) return self->close(false);
    self->set_phase(Phase::kIdle);
    self->set_deadline(self->host_.options().idle_timeout);
    if (is_refused) return self->refuse(503, "too many connections");
    self->want_read();
  });
}

void Session::want_read() {
  if (is_reading_ || is_ended_ || is_sinking_ || is_closed()) return;
  if (phase_ == Phase::kHandling && static_cast<std::int64_t>(in_.size()) >= host_.options().max_pipelined_bytes) {
    return watch();
  }
  is_reading_ = true;
  transport_->read([self = shared_from_this()](const ErrorCode& problem, std::string_view bytes) {
    self->is_reading_ = false;
    self->on_read(problem, bytes);
  });
}

void Session::watch() {
  if (is_watched_) return;
  is_watched_ = true;
  transport_->wait_broken([self = shared_from_this()] {
    self->is_watched_ = false;
    if (self->phase_ == Phase::kHandling) self->lost(HttpOutcome::kClientGone);
  });
}

void Session::on_read(const ErrorCode& problem, std::string_view bytes) {
  if (is_closed()) return;
  if (is_end_of_stream(problem)) return on_end();
  if (problem) return lost(HttpOutcome::kClientGone);
  if (phase_ == Phase::kLinger) {
    n_lingered_ += static_cast<std::int64_t>(bytes.size());
    if (n_lingered_ > kMaxLingerBytes) return close(false);
    return want_read();
  }
  in_ += bytes;
  n_in_ += static_cast<std::int64_t>(bytes.size());
  if (phase_ == Phase::kBody) {
    n_since_deadline_ += static_cast<std::int64_t>(bytes.size());
    if (n_since_deadline_ >= kBodyStep) {
      n_since_deadline_ = 0;
      set_deadline(host_.options().body_timeout);
    }
  }
  parse();
  want_read();
}

void Session::on_end() {
  is_ended_ = true;
  switch (phase_) {
    case Phase::kHead:
    case Phase::kBody:
      return refuse(400, "the request ended before it was complete");
    case Phase::kHandling:
      // The client may have closed only its sending side. If it is gone, the next bytes sent to it show that.
      if (!transport_->can_half_close()) return lost(HttpOutcome::kClientGone);
      watch();
      exchange_->probe();
      return pump();
    default:
      return close(false);
  }
}

void Session::parse() {
  while (parse_some()) {
  }
}

bool Session::parse_some() {
  const HttpServerOptions& options = host_.options();
  if (phase_ == Phase::kIdle) {
    // Empty lines before a request: RFC 9112, section 2.2.
    in_.erase(0, std::min(in_.find_first_not_of("\r\n"), in_.size()));
    if (in_.empty()) return false;
    arrived_ = Clock::now();
    had_request_ = true;
    n_in_ = static_cast<std::int64_t>(in_.size());
    n_out_ = n_head_ = 0;
    first_byte_.reset();
    parser_.emplace();
    parser_->header_limit(static_cast<std::uint32_t>(options.max_header_bytes));
    parser_->body_limit(boost::none);  // until begin_body() knows where it goes
    set_phase(Phase::kHead);
    set_deadline(options.header_timeout);
  }
  if ((phase_ != Phase::kHead && phase_ != Phase::kBody) || is_sinking_) return false;
  ErrorCode problem;
  const std::size_t n_used = parser_->put(asio::buffer(in_), problem);
  in_.erase(0, n_used);
  // The parser limits the line that it reads, not all lines of a header together, and neither the extension of a chunk
  // nor what comes behind the last one. Within a body only those are left over.
  if (phase_ == Phase::kHead) n_head_ += static_cast<std::int64_t>(n_used);
  const std::int64_t n_pending = phase_ == Phase::kHead ? n_head_ : 0;
  const bool is_over = n_pending + static_cast<std::int64_t>(in_.size()) > options.max_header_bytes;
  if (n_pending > options.max_header_bytes || (is_over && problem == http::error::need_more)) {
    problem = http::error::header_limit;
  }
  if (sink_ && !problem && parser_->is_done()) {
    sink_body(true);
    return false;
  }
  if (sink_ && (!problem || problem == http::error::need_more) && parser_->get().body().size() >= kSinkBytes) {
    sink_body(false);
    return false;
  }
  if (problem == http::error::need_more) return false;
  if (problem) {
    const Refusal refusal = refusal_of(problem, options);
    refuse(refusal.status, refusal.sentence);
    return false;
  }
  if (phase_ == Phase::kHead && parser_->is_header_done()) {
    if (!begin_body()) return false;
  }
  if (parser_->is_done()) {
    handle_request();
    return false;
  }
  return n_used > 0 && !in_.empty();
}

bool Session::begin_body() {
  const auto& message = parser_->get();
  if (message.version() >= 11 && message.count(http::field::host) != 1) {
    refuse(400, "expected one Host header");
    return false;
  }
  if (!parser_->is_done() && !plan_body()) return false;
  set_phase(Phase::kBody);
  n_since_deadline_ = 0;
  set_deadline(host_.options().body_timeout);
  parser_->eager(true);
  if (parser_->is_done()) return true;
  const auto expect = message[http::field::expect];
  if (!expect.empty()) {
    if (!equals_without_case({expect.data(), expect.size()}, "100-continue")) {
      refuse(417, "expected \"100-continue\" in the Expect header");
      return false;
    }
    // The buffer is empty here, or the client did not wait.
    if (in_.empty() && message.version() >= 11) {
      out_ = {.bytes = "HTTP/1.1 100 Continue\r\n\r\n"};
      n_written_ = 0;
      is_interim_ = true;
      write_some();
    }
  }
  return true;
}

// Where the body goes. False: it is not wanted, and the request was answered or is being handled.
bool Session::plan_body() {
  const HttpServerOptions& options = host_.options();
  BodyPlan plan = host_.plan_body(*request_head());
  if (plan.answers_now) {
    std::shared_ptr<HttpRequest> request = take_request();
    make_exchange(request, false);
    host_.dispatch(std::move(request), exchange_);
    return false;
  }
  sink_ = std::move(plan.sink);
  if (sink_) return true;
  const auto limit = static_cast<std::uint64_t>(options.max_body_bytes);
  if (parser_->content_length().value_or(0) > limit) {
    const Refusal refusal = refusal_of(http::error::body_limit, options);
    refuse(refusal.status, refusal.sentence);
    return false;
  }
  parser_->body_limit(limit);
  return true;
}

// What it took goes where a file may be removed without keeping others waiting.
void Session::drop_sink() {
  if (sink_) host_.work([sink = std::move(sink_)] {});
  sink_ = nullptr;
}

// Hands over what came since the last time. Reading and parsing go on once it is taken.
void Session::sink_body(bool is_end) {
  is_sinking_ = true;
  deadline_.reset();
  auto bytes = std::make_shared<std::string>();
  bytes->swap(parser_->get().body());
  host_.work([self = shared_from_this(), sink = sink_, loop = host_.loop(), bytes, is_end] {
    const Status status = bytes->empty() ? ok() : sink->write(*bytes);
    bytes->clear();
    loop->post([self, status] { self->on_sunk(status); });
  });
}

void Session::on_sunk(const Status& status) {
  is_sinking_ = false;
  if (is_closed()) return;
  if (!status) {
    const bool is_full = status.error().code == Code::kResourceExhausted;
    return refuse(is_full ? 507 : 500, status.error().message);
  }
  if (parser_->is_done()) return handle_request();
  set_deadline(host_.options().body_timeout);
  parse();
  want_read();
}

std::shared_ptr<HttpRequest> Session::request_head() const {
  auto request = std::make_shared<HttpRequest>();
  request->peer = transport_->peer();
  request->arrived = arrived_;
  if (!parser_) return request;
  const auto& message = parser_->get();
  request->method = std::string(message.method_string());
  for (const auto& field : message) {
    request->headers.push_back({std::string(field.name_string()), std::string(field.value())});
  }
  const std::string_view target(message.target().data(), message.target().size());
  if (auto parsed = parse_target(target)) {
    request->path = std::move(parsed->path);
    request->query = std::move(parsed->query);
  }
  return request;
}

std::shared_ptr<HttpRequest> Session::take_request() {
  std::shared_ptr<HttpRequest> request = request_head();
  request->id = host_.next_request_id();
  request->facts = std::make_shared<RequestFacts>();
  if (parser_) request->body = std::move(parser_->get().body());
  request->sink = std::move(sink_);
  sink_ = nullptr;
  return request;
}

void Session::make_exchange(std::shared_ptr<HttpRequest> request, bool keep_alive) {
  const bool is_http10 = parser_ && parser_->is_header_done() && parser_->get().version() < 11;
  exchange_ = std::make_shared<Exchange>(ExchangeSetup{.request = std::move(request),
                                                       .is_http10 = is_http10,
                                                       .keep_alive = keep_alive,
                                                       .max_backlog_bytes = host_.options().max_backlog_bytes,
                                                       .loop = host_.loop()});
  exchange_->set_owner(weak_from_this());
  parser_.reset();
  set_phase(Phase::kHandling);
  deadline_.reset();
}

void Session::handle_request() {
  const bool keep_alive = parser_->keep_alive();
  std::shared_ptr<HttpRequest> request = take_request();
  if (request->path.empty()) {
    make_exchange(request, false);
    exchange_->send(host_.refusal(*request, 400, "the request's target cannot be read"));
    return;
  }
  make_exchange(request, keep_alive);
  host_.dispatch(std::move(request), exchange_);
}

void Session::refuse(int status, const std::string& sentence) {
  const bool was_idle = phase_ == Phase::kIdle;
  if (was_idle) arrived_ = Clock::now();
  // Only a whole header says what was asked for.
  if (parser_ && !parser_->is_header_done()) parser_.reset();
  drop_sink();
  std::shared_ptr<HttpRequest> request = take_request();
  request->body.clear();
  make_exchange(request, false);
  exchange_->send(host_.refusal(*request, status, sentence));
}

void Session::on_ready(Exchange& exchange) {
  if (&exchange == exchange_.get()) pump();
}

void Session::pump() {
  if (!exchange_ || is_closed()) return;
  if (is_writing_) {
    if (exchange_->is_abrupt()) lost(HttpOutcome::kTooSlow);
    return;
  }
  out_ = exchange_->take();
  n_written_ = 0;
  if (out_.is_abrupt) return lost(HttpOutcome::kTooSlow);
  if (!out_.bytes.empty()) {
    set_deadline(host_.options().write_timeout);
    return write_some();
  }
  deadline_.reset();
  if (out_.is_cut) return lost(HttpOutcome::kAborted);
  if (out_.is_last) complete(out_.keep_alive);
}

void Session::write_some() {
  is_writing_ = true;
  const std::string_view rest = std::string_view(out_.bytes).substr(n_written_);
  transport_->write(rest, [self = shared_from_this()](const ErrorCode& problem, std::size_t n) {
    self->is_writing_ = false;
    if (self->is_closed()) return;
    if (problem) return self->lost(HttpOutcome::kClientGone);
    self->n_written_ += n;
    const bool is_interim = self->is_interim_;
    if (!is_interim) {
      self->n_out_ += static_cast<std::int64_t>(n);
      if (!self->first_byte_) self->first_byte_ = Clock::now();
      if (self->exchange_) self->exchange_->on_written(n);
      self->set_deadline(self->host_.options().write_timeout);
    }
    if (self->n_written_ < self->out_.bytes.size()) return self->write_some();
    self->is_interim_ = false;
    if (is_interim) return self->pump();
    if (self->out_.is_cut) return self->lost(HttpOutcome::kAborted);
    if (self->out_.is_last) return self->complete(self->out_.keep_alive);
    self->pump();
  });
}

void Session::end_exchange(HttpOutcome outcome) {
  if (!exchange_) return;
  HttpRecord record{.request = exchange_->shared_request(),
                    .status = exchange_->status(),
                    .outcome = outcome,
                    .n_in = n_in_,
                    .n_out = n_out_,
                    .first_byte = first_byte_.value_or(Clock::now()) - arrived_,
                    .total = Clock::now() - arrived_};
  if (record.status == 0) record.status = 499;
  const std::shared_ptr<Exchange> exchange = std::move(exchange_);
  exchange_ = nullptr;
  exchange->close();
  host_.done(record);
}

void Session::complete(bool keep_alive) {
  end_exchange(HttpOutcome::kDone);
  out_ = {};
  if (!keep_alive || is_ended_) return linger();
  in_.shrink_to_fit();
  set_phase(Phase::kIdle);
  set_deadline(host_.options().idle_timeout);
  parse();
  // It may have been drained while this response was written.
  if (phase_ == Phase::kIdle && host_.loop()->is_draining()) return linger();
  want_read();
}

void Session::linger() {
  if (is_ended_) return close(false);
  transport_->shutdown_send();
  in_ = {};
  set_phase(Phase::kLinger);
  set_deadline(kLingerTime);
  want_read();
}

void Session::lost(HttpOutcome outcome) {
  end_exchange(outcome);
  close(outcome == HttpOutcome::kTooSlow);
}

void Session::close(bool is_abrupt) {
  if (is_closed()) return;
  set_phase(Phase::kClosed);
  drop_sink();
  deadline_.reset();
  end_exchange(HttpOutcome::kAborted);
  transport_->close(is_abrupt);
}

// A client that has just connected has sent a request, or is about to: it is told so instead of losing it.
void Session::drain() {
  if (phase_ == Phase::kIdle && had_request_) close(false);
}

void Session::tick(Clock::time_point now) {
  if (is_ended_ && phase_ == Phase::kHandling) {
    exchange_->probe();
    pump();
  }
  if (!deadline_ || now < *deadline_) return;
  switch (phase_) {
    case Phase::kHead:
      return refuse(408, "the request's headers did not come in time");
    case Phase::kBody:
      return refuse(408, "the request's body did not come in time");
    case Phase::kHandling:
      return lost(HttpOutcome::kTooSlow);
    default:
      return close(false);
  }
}

}  // namespace still
