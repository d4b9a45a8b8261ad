// Session: one connection. Reads requests one after the other, keeps what a client sends ahead, hands each to the
// server, and sends its response. Everything here happens on the I/O thread.
#pragma once

#include <boost/beast/core/buffers_range.hpp>
#include <boost/beast/http/parser.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "serve/http/asio.h"
#include "serve/http/exchange.h"
#include "serve/http/server.h"
#include "serve/http/transport.h"

namespace still {

// What a session needs of its server.
class SessionHost {
 public:
  virtual ~SessionHost() = default;
  virtual const HttpServerOptions& options() const = 0;
  virtual std::shared_ptr<ExchangeLoop> loop() = 0;
  virtual std::uint64_t next_request_id() = 0;
  virtual HttpResponse refusal(const HttpRequest& request, int status, const std::string& sentence) = 0;
  virtual BodyPlan plan_body(const HttpRequest& request) = 0;
  virtual void work(std::function<void()> task) = 0;  // on a worker thread; may be dropped when the server stops
  virtual void dispatch(std::shared_ptr<HttpRequest> request, std::shared_ptr<Exchange> exchange) = 0;
  virtual void done(const HttpRecord& record) = 0;
  virtual void active_changed(int change) = 0;
};

// A body in a string, whose memory grows with the bytes that come, not with those that a header promises.
struct GrowingBody {
  using value_type = std::string;
  class reader {
   public:
    template <bool is_request, class Fields>
    reader(boost::beast::http::header<is_request, Fields>&, value_type& body) : body_(body) {}
    void init(const boost::optional<std::uint64_t>&, ErrorCode& problem) { problem = {}; }
    template <class Buffers>
    std::size_t put(const Buffers& buffers, ErrorCode& problem) {
      problem = {};
      const std::size_t had = body_.size();
      for (const auto buffer : boost::beast::buffers_range_ref(buffers)) {
        body_.append(static_cast<const char*>(buffer.data()), buffer.size());
      }
      return body_.size() - had;
    }
    void finish(ErrorCode& problem) { problem = {}; }

   private:
    value_type& body_;
  };
};

class Session : public std::enable_shared_from_this<Session>, public ExchangeOwner {
 public:
  using Clock = std::chrono::steady_clock;

  Session(SessionHost& host, std::unique_ptr<Transport> transport);
  ~Session() override;

  void start(bool is_refused);  // refused: there are too many connections; it gets a 503
  void on_ready(Exchange& exchange) override;
  void tick(Clock::time_point now);  // time-outs
  void drain();                      // closes if idle, once it has asked for something
  void close(bool is_abrupt);        // whatever it does
  bool is_closed() const { return phase_ == Phase::kClosed; }

 private:
  enum class Phase : std::uint8_t { kHandshake, kIdle, kHead, kBody, kHandling, kLinger, kClosed };
  using Parser = boost::beast::http::request_parser<GrowingBody>;

  void set_phase(Phase phase);
  void set_deadline(std::chrono::milliseconds from_now);
  void want_read();
  void on_read(const ErrorCode& problem, std::string_view bytes);
  void on_end();
  void parse();
  bool parse_some();  // false: more bytes are needed, or something else comes first
  bool begin_body();
  bool plan_body();
  void drop_sink();
  void sink_body(bool is_end);
  void on_sunk(const Status& status);
  void handle_request();
  std::shared_ptr<HttpRequest> take_request();
  std::shared_ptr<HttpRequest> request_head() const;
  void make_exchange(std::shared_ptr<HttpRequest> request, bool keep_alive);
  void refuse(int status, const std::string& sentence);
  void pump();
  void write_some();
  void complete(bool keep_alive);
  void end_exchange(HttpOutcome outcome);
  void lost(HttpOutcome outcome);
  void linger();
  void watch();

  SessionHost& host_;
  std::unique_ptr<Transport> transport_;
  Phase phase_ = Phase::kHandshake;
  std::optional<Clock::time_point> deadline_;
  bool is_reading_ = false, is_writing_ = false, is_ended_ = false, is_watched_ = false, is_interim_ = false;
  bool had_request_ = false;
  bool is_sinking_ = false;  // a part of the body is being taken: nothing is read meanwhile
  std::string in_;           // received, not yet parsed
  std::optional<Parser> parser_;
  std::shared_ptr<BodySink> sink_;
  Clock::time_point arrived_;
  std::int64_t n_in_ = 0, n_out_ = 0, n_head_ = 0, n_since_deadline_ = 0, n_lingered_ = 0;
  std::shared_ptr<Exchange> exchange_;
  std::optional<Clock::time_point> first_byte_;
  Exchange::Taken out_;  // being written
  std::size_t n_written_ = 0;
};

}  // namespace still
