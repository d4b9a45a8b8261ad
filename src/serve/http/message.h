// HTTP as the handlers see it: a whole request, and a writer for its response. No handler knows of sockets, TLS or
// Beast, and the HTTP front (http/server.h) knows no API.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace still {

struct HttpHeader {
  std::string name, value;
};

// Takes a body that is too large for memory, as it comes. Calls come one at a time, on worker threads; they may wait
// for a disk. Destroyed before its request was handled: the client went away.
class BodySink {
 public:
  virtual ~BodySink() = default;
  virtual Status write(std::string_view bytes) = 0;
};

// What an API tells the access log of a request, from any thread.
struct RequestFacts {
  std::mutex mutex;
  std::string model, generation;  // empty: none was used
  std::int64_t n_prompt = 0, n_completion = 0;
};

struct HttpRequest {
  std::string method;                                         // "GET", upper case
  std::string path;                                           // percent-decoded, without the query: "/api/chat"
  std::vector<std::pair<std::string, std::string>> query;     // decoded
  std::vector<std::pair<std::string, std::string>> captures;  // of the route: {"name", "qwen2.5:0.5b"}
  std::string route;                                          // the pattern that matched; empty: none
  std::vector<HttpHeader> headers;
  std::string body;  // decoded (gzip, zstd and chunks are undone); the server's limit holds for the decoded size
  std::shared_ptr<BodySink> sink;  // took the body; null: it is in `body`
  std::string peer;                // "127.0.0.1:50312"
  std::string key;                 // name of the API key that was used; empty: none was needed
  std::uint64_t id = 0;  // of this request in the access log; answered as X-Request-Id, unless the client has one
  std::shared_ptr<RequestFacts> facts;  // null: nobody asks
  std::chrono::steady_clock::time_point arrived;

  // Empty where absent; names are compared without case.
  std::string_view header(std::string_view name) const;
  std::string_view capture(std::string_view name) const;
  // The client's own X-Request-Id; empty where there is none, or none that may be repeated (1 to 128 of A-Z a-z 0-9
  // ._:-).
  std::string_view client_id() const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<HttpHeader> headers;
};

// The response of one request. All functions may be called from any thread (the engine's too), never block, and do
// nothing once the client is gone. Exactly one of send() and start() is called, once; destroying a writer that was not
// answered sends a 500.
class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;

  virtual void send(HttpResponse response) = 0;

  // A stream of unknown length: start, then any number of write/flush, then finish. Bytes written are handed to the
  // socket at flush(), all that gathered in one write: call it once per engine step.
  virtual void start(int status, std::string_view content_type, std::vector<HttpHeader> headers = {}) = 0;
  virtual void write(std::string_view bytes) = 0;
  virtual void flush() = 0;
  virtual void finish() = 0;
  // A stream that cannot go on: the connection is cut so that the client does not take it for whole.
  virtual void abort() = 0;

  // Called once, on an I/O thread, when the client is gone before finish() (or at once, if it is already): cancel the
  // work. A client that reads too slowly counts as gone (the server's backlog limit).
  virtual void on_closed(std::function<void()> gone) = 0;
  virtual bool is_closed() const = 0;
};

// Runs on one of the server's worker threads, where it may take some milliseconds (tokenising a prompt) but does not
// wait for an answer of the engine: it hands the writer on to an EventSink and returns.
using HttpHandler = std::function<void(std::shared_ptr<const HttpRequest>, std::shared_ptr<ResponseWriter>)>;

}  // namespace still
