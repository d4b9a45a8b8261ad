#include "serve/http/exchange.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

#include "serve/http/text.h"

namespace still {
namespace {

// Statuses without a body: RFC 9110, section 6.4.1.
bool may_have_body(int status) {
  return status >= 200 && status != 204 && status != 304;
}

// A chunk's size has at most 8 digits of its own; parsers take 16.
constexpr int kMaxZeros = 8;

}  // namespace

std::string Exchange::head_of(int status, std::string_view content_type, const std::vector<HttpHeader>& headers,
                              std::int64_t length) {
  status_ = status;
  has_body_ = may_have_body(status) && setup_.request->method != "HEAD";
  is_chunked_ = length < 0 && !setup_.is_http10;
  keep_alive_ = setup_.keep_alive && !setup_.loop->is_draining() && (length >= 0 || is_chunked_);
  std::string head;
  head.reserve(512);
  auto out = std::back_inserter(head);
  const std::string_view client_id = setup_.request->client_id();
  fmt::format_to(out, "HTTP/1.1 {} {}\r\nServer: still/{}\r\nDate: {}\r\nX-Request-Id: {}\r\n", status,
                 reason_phrase(status), STILL_VERSION, http_date(std::chrono::system_clock::now()),
                 client_id.empty() ? fmt::format("{:016x}", setup_.request->id) : client_id);
  if (!content_type.empty()) fmt::format_to(out, "Content-Type: {}\r\n", header_safe(content_type));
  for (const std::vector<HttpHeader>* list : {&std::as_const(headers_), &headers}) {
    for (const HttpHeader& header : *list) {
      fmt::format_to(out, "{}: {}\r\n", header_safe(header.name), header_safe(header.value));
    }
  }
  if (may_have_body(status)) {
    if (length >= 0) {
      fmt::format_to(out, "Content-Length: {}\r\n", length);
    } else if (is_chunked_) {
      head += "Transfer-Encoding: chunked\r\n";
    }
  }
  // An HTTP/1.0 client must be told that the connection stays, an HTTP/1.1 client that it does not.
  if (!keep_alive_) {
    head += "Connection: close\r\n";
  } else if (setup_.is_http10) {
    head += "Connection: keep-alive\r\n";
  }
  head += "\r\n";
  return head;
}

void Exchange::wake() {
  setup_.loop->wake(shared_from_this());
}

void Exchange::add_header(HttpHeader header) {
  const std::lock_guard lock(mutex_);
  headers_.push_back(std::move(header));
}

void Exchange::send(HttpResponse response) {
  std::function<void()> gone;
  {
    const std::lock_guard lock(mutex_);
    if (phase_ != Phase::kNew) return;
    phase_ = Phase::kFinished;
    gone.swap(gone_);
    if (is_closed_) {
      status_ = response.status;
      return;
    }
    pending_ += head_of(response.status, response.content_type, response.headers,
                        static_cast<std::int64_t>(response.body.size()));
    if (has_body_) pending_ += response.body;
  }
  wake();
}

void Exchange::start(int status, std::string_view content_type, std::vector<HttpHeader> headers) {
  const std::lock_guard lock(mutex_);
  if (phase_ != Phase::kNew) return;
  phase_ = Phase::kStarted;
  if (is_closed_) {
    status_ = status;
    return;
  }
  pending_ += head_of(status, content_type, headers, -1);
}

void Exchange::write(std::string_view bytes) {
  const std::lock_guard lock(mutex_);
  if (phase_ != Phase::kStarted || is_closed_ || is_cut_ || !has_body_) return;
  staged_ += bytes;
}

void Exchange::gather() {
  if (staged_.empty()) return;
  if (is_chunked_) {
    fmt::format_to(std::back_inserter(pending_), "{:x}\r\n", staged_.size());
    pending_ += staged_;
    pending_ += "\r\n";
    n_probes_ = 0;
  } else {
    pending_ += staged_;
  }
  staged_.clear();
}

void Exchange::flush() {
  {
    const std::lock_guard lock(mutex_);
    if (phase_ != Phase::kStarted || is_closed_ || is_cut_) return;
    gather();
    if (pending_.empty()) return;
    if (static_cast<std::int64_t>(pending_.size()) + n_in_flight_ > setup_.max_backlog_bytes) {
      is_cut_ = is_abrupt_ = true;
      pending_.clear();
    }
  }
  wake();
}

void Exchange::finish() {
  std::function<void()> gone;
  {
    const std::lock_guard lock(mutex_);
    if (phase_ != Phase::kStarted) return;
    phase_ = Phase::kFinished;
    gone.swap(gone_);
    if (is_closed_ || is_cut_) return;
    gather();
    if (is_chunked_ && has_body_) pending_ += "0\r\n\r\n";
  }
  wake();
}

void Exchange::abort() {
  std::function<void()> gone;
  {
    const std::lock_guard lock(mutex_);
    if (phase_ == Phase::kFinished) return;
    gone.swap(gone_);
    if (phase_ == Phase::kStarted) gather();  // what was said stays said; only the end is missing
    phase_ = Phase::kFinished;
    if (is_closed_) return;
    is_cut_ = true;
  }
  wake();
}

void Exchange::on_closed(std::function<void()> gone) {
  {
    const std::lock_guard lock(mutex_);
    if (phase_ == Phase::kFinished) return;
    if (!is_closed_) {
      gone_ = std::move(gone);
      return;
    }
  }
  setup_.loop->post(std::move(gone));
}

bool Exchange::is_closed() const {
  const std::lock_guard lock(mutex_);
  return is_closed_ || is_cut_;
}

void Exchange::abandon() {
  Phase phase;
  {
    const std::lock_guard lock(mutex_);
    phase = phase_;
  }
  if (phase == Phase::kNew) {
    send({.status = 500, .content_type = "application/json", .body = R"({"error":"the request was not answered"})"});
  } else if (phase == Phase::kStarted) {
    abort();
  }
}

Exchange::Taken Exchange::take() {
  const std::lock_guard lock(mutex_);
  Taken taken;
  taken.bytes.swap(pending_);
  n_in_flight_ += static_cast<std::int64_t>(taken.bytes.size());
  taken.is_cut = is_cut_;
  taken.is_abrupt = is_abrupt_;
  taken.is_last = phase_ == Phase::kFinished && !is_cut_;
  taken.keep_alive = keep_alive_;
  return taken;
}

void Exchange::on_written(std::size_t n) {
  const std::lock_guard lock(mutex_);
  n_in_flight_ -= static_cast<std::int64_t>(n);
}

void Exchange::close() {
  std::function<void()> gone;
  {
    const std::lock_guard lock(mutex_);
    if (is_closed_) return;
    is_closed_ = true;
    gone.swap(gone_);
    staged_ = {};
    pending_ = {};
  }
  if (gone) gone();
}

void Exchange::probe() {
  const std::lock_guard lock(mutex_);
  if (setup_.is_http10 || is_closed_ || is_cut_ || !pending_.empty() || n_in_flight_ > 0) return;
  if (phase_ == Phase::kNew) {
    pending_ = "HTTP/1.1 100 Continue\r\n\r\n";
  } else if (phase_ == Phase::kStarted && is_chunked_ && has_body_ && n_probes_ < kMaxZeros) {
    pending_ = "0";
    ++n_probes_;
  }
}

int Exchange::status() const {
  const std::lock_guard lock(mutex_);
  return status_;
}

bool Exchange::is_abrupt() const {
  const std::lock_guard lock(mutex_);
  return is_abrupt_;
}

}  // namespace still
