// Transport: a connected byte stream (TCP, TLS over TCP, a unix socket) as the session sees it. All calls and handlers
// on the I/O thread. A connection that is idle holds no buffer, unless it is encrypted.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "serve/http/asio.h"

namespace boost::asio::ssl {
class context;
}

namespace still {

class Transport {
 public:
  // Bytes are valid during the call. An end of the stream is asio::error::eof.
  using ReadHandler = std::function<void(const ErrorCode& problem, std::string_view bytes)>;
  using WriteHandler = std::function<void(const ErrorCode& problem, std::size_t n_written)>;

  virtual ~Transport() = default;
  virtual void handshake(std::function<void(const ErrorCode&)> done) = 0;  // TLS; others: done at once
  // One read and one write at a time. A write may take only a part.
  virtual void read(ReadHandler handler) = 0;
  virtual void write(std::string_view bytes, WriteHandler handler) = 0;  // bytes live until the handler is called
  // Completes when the connection is broken in both directions, or with an error when it is closed here.
  virtual void wait_broken(std::function<void()> handler) = 0;
  virtual void shutdown_send() = 0;
  // is_abrupt: the peer sees a reset instead of an end, and takes nothing for whole.
  virtual void close(bool is_abrupt) = 0;
  virtual std::string peer() const = 0;
  virtual bool can_half_close() const = 0;  // an end of the peer's sending need not mean that it stopped reading
};

// Listens; new connections come as transports. Stops at destruction.
class Listener {
 public:
  using Accepted = std::function<void(std::unique_ptr<Transport>)>;
  virtual ~Listener() = default;
  virtual void start(Accepted accepted) = 0;
  virtual void stop() = 0;
  virtual std::uint16_t port() const = 0;
};

// PEM files. Null for no TLS.
Result<std::shared_ptr<asio::ssl::context>> load_tls(const std::string& certificate_file, const std::string& key_file);

// host: an address, a name, or "" for every address. port 0: any free one. kUnavailable where it is taken,
// kPermissionDenied where it may not be taken.
Result<std::unique_ptr<Listener>> listen_tcp(asio::io_context& io, const std::string& host, std::uint16_t port,
                                             std::shared_ptr<asio::ssl::context> tls);
// A socket file that nobody listens on is replaced; mode 0600.
Result<std::unique_ptr<Listener>> listen_unix(asio::io_context& io, const std::string& path);

}  // namespace still
