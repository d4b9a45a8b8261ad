// Exchange: one request's response between the threads that write it and the I/O thread that sends it. Bytes are framed
// (status line, headers, chunks) by the writers' threads, gathered until flush(), and taken by the I/O thread in one
// piece. Knows no socket.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "serve/http/message.h"

namespace still {

class Exchange;

// Who sends an exchange's bytes: a session. Called on the I/O thread.
class ExchangeOwner {
 public:
  virtual ~ExchangeOwner() = default;
  virtual void on_ready(Exchange& exchange) = 0;
};

// The I/O thread as the writers see it. Thread-safe.
class ExchangeLoop {
 public:
  virtual ~ExchangeLoop() = default;
  virtual void wake(std::shared_ptr<Exchange> exchange) = 0;  // there is something to take
  virtual void post(std::function<void()> task) = 0;          // on the I/O thread; dropped once the server is stopped
  virtual bool is_draining() const = 0;                       // responses say "Connection: close"
};

struct ExchangeSetup {
  std::shared_ptr<const HttpRequest> request;
  bool is_http10 = false;
  bool keep_alive = true;
  std::int64_t max_backlog_bytes = 4 << 20;
  std::shared_ptr<ExchangeLoop> loop;
};

class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  explicit Exchange(ExchangeSetup setup) : setup_(std::move(setup)) {}

  void set_owner(std::weak_ptr<ExchangeOwner> owner) { owner_ = std::move(owner); }  // before others know of it
  std::shared_ptr<ExchangeOwner> owner() const { return owner_.lock(); }

  // Any thread; the functions of ResponseWriter.
  void add_header(HttpHeader header);  // before send() or start()
  void send(HttpResponse response);
  void start(int status, std::string_view content_type, std::vector<HttpHeader> headers);
  void write(std::string_view bytes);
  void flush();
  void finish();
  void abort();
  void on_closed(std::function<void()> gone);
  bool is_closed() const;
  // The last handle is gone: a 500, or a cut stream, where the response is not complete.
  void abandon();

  // The I/O thread.
  struct Taken {
    std::string bytes;
    bool is_last = false;     // the response is complete with these
    bool is_cut = false;      // the connection ends with these bytes, before the response does
    bool is_abrupt = false;   // and at once: the client is too slow
    bool keep_alive = false;  // with is_last
  };
  Taken take();
  void on_written(std::size_t n);  // bytes that the socket has taken
  // The client is gone (or the server stops): writers are told, what is unsent is dropped.
  void close();
  // Bytes that mean nothing to a client that waits, but make the system of one that is gone answer so: an interim
  // response before the status line, a leading zero of the next chunk's size within a stream. For clients that have
  // closed their sending side, where a close of the other side cannot be seen otherwise.
  void probe();

  const HttpRequest& request() const { return *setup_.request; }
  std::shared_ptr<const HttpRequest> shared_request() const { return setup_.request; }
  int status() const;  // 0: none yet
  bool is_abrupt() const;

 private:
  enum class Phase : std::uint8_t { kNew, kStarted, kFinished };
  std::string head_of(int status, std::string_view content_type, const std::vector<HttpHeader>& headers,
                      std::int64_t length);  // length -1: a stream. Locked
  void gather();                             // staged_ to pending_. Locked
  void wake();

  const ExchangeSetup setup_;
  std::weak_ptr<ExchangeOwner> owner_;
  mutable std::mutex mutex_;
  Phase phase_ = Phase::kNew;
  int status_ = 0;
  bool is_chunked_ = false, has_body_ = true, keep_alive_ = true, is_cut_ = false, is_abrupt_ = false,
       is_closed_ = false;
  int n_probes_ = 0;
  std::vector<HttpHeader> headers_;
  std::string staged_, pending_;
  std::int64_t n_in_flight_ = 0;  // taken, not yet written
  std::function<void()> gone_;
};

// The handle that handlers get; the server's own part of it.
class ExchangeWriter : public ResponseWriter {
 public:
  explicit ExchangeWriter(std::shared_ptr<Exchange> exchange) : exchange_(std::move(exchange)) {}
  ~ExchangeWriter() override { exchange_->abandon(); }
  void add_header(HttpHeader header) { exchange_->add_header(std::move(header)); }
  void send(HttpResponse response) override { exchange_->send(std::move(response)); }
  void start(int status, std::string_view content_type, std::vector<HttpHeader> headers) override {
    exchange_->start(status, content_type, std::move(headers));
  }
  void write(std::string_view bytes) override { exchange_->write(bytes); }
  void flush() override { exchange_->flush(); }
  void finish() override { exchange_->finish(); }
  void abort() override { exchange_->abort(); }
  void on_closed(std::function<void()> gone) override { exchange_->on_closed(std::move(gone)); }
  bool is_closed() const override { return exchange_->is_closed(); }

 private:
  std::shared_ptr<Exchange> exchange_;
};

}  // namespace still
