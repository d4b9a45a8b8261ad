// HttpServer: the HTTP/1.1 front. One I/O thread owns all connections; requests are handled on a few worker threads,
// and their responses come back from any thread through ResponseWriter. Knows limits, time-outs and broken clients,
// but no route and no API: what a request means is its owner's (serve/server.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "serve/http/message.h"

namespace still {

class ExchangeWriter;

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;   // 0: any free one
  std::string unix_socket;  // path; empty: TCP only
  std::string tls_certificate, tls_key;
  int n_workers = 4;
  std::int64_t max_header_bytes = 64 << 10;
  std::int64_t max_body_bytes = 32 << 20;  // unpacked
  std::int64_t max_connections = 4096;     // the next gets a 503
  std::int64_t max_backlog_bytes = 4 << 20;
  std::int64_t max_pipelined_bytes = 64 << 10;  // read ahead while a request is being answered
  std::chrono::milliseconds header_timeout{30000};
  std::chrono::milliseconds body_timeout{120000};  // for each 64 KiB of it
  std::chrono::milliseconds idle_timeout{300000};
  std::chrono::milliseconds write_timeout{60000};  // without a byte taken
  std::chrono::milliseconds tick{500};             // how exactly time-outs are kept
};

enum class HttpOutcome : std::uint8_t { kDone, kClientGone, kTooSlow, kAborted };

// One finished exchange, for the access log and the metrics.
struct HttpRecord {
  std::shared_ptr<const HttpRequest> request;  // of a request that could not be read: what is known of it
  int status = 0;                              // 499: the client left before there was one
  HttpOutcome outcome = HttpOutcome::kDone;
  std::int64_t n_in = 0, n_out = 0;  // bytes
  std::chrono::nanoseconds first_byte{}, total{};
};

// Where the body of a request goes, decided by its headers.
struct BodyPlan {
  std::shared_ptr<BodySink> sink;  // null: into memory, up to max_body_bytes. With a sink there is no limit here
  bool answers_now = false;        // the request is handled without its body, and the connection ends with the response
};

struct HttpHooks {
  // On the I/O thread, for a request with a body; fast. May be empty.
  std::function<BodyPlan(const HttpRequest&)> plan_body;
  // On a worker thread, once for each whole request. The request may be changed until it is handed on.
  std::function<void(std::shared_ptr<HttpRequest>, std::shared_ptr<ExchangeWriter>)> handle;
  // The body of a refusal by the front itself (limits, bad syntax). Any thread; fast.
  std::function<HttpResponse(const HttpRequest&, int status, const std::string& sentence)> refuse;
  std::function<void(const HttpRecord&)> done;  // the I/O thread; fast
};

struct HttpServerStats {
  std::int64_t n_connections = 0, n_active = 0;  // active: a request is being read or answered
  std::int64_t n_accepted = 0, n_refused = 0;    // refused: over max_connections
};

class HttpServer {
 public:
  // Listens (connections wait) but answers nothing before start().
  static Result<std::unique_ptr<HttpServer>> listen(HttpServerOptions options, HttpHooks hooks);
  ~HttpServer();  // stop()
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  void start();
  std::uint16_t port() const;
  // Closes idle connections; requests under way go on, and each connection ends with its response. What still comes is
  // handed on: its owner refuses it.
  void drain();
  // True when no request is being read or answered any more.
  bool wait_idle(std::chrono::milliseconds timeout);
  // Cuts what is left and ends the threads. Writers may live on; they do nothing.
  void stop();
  HttpServerStats stats() const;

  // Between the two, what this thread flushes waits for the second, so that the I/O thread is woken once for all of it
  // and does not take the processor from a thread that has more to flush. Not nested.
  void hold_wakes();
  void let_wakes_go();

 private:
  class Core;
  explicit HttpServer(std::shared_ptr<Core> core);
  std::shared_ptr<Core> core_;
};

}  // namespace still
