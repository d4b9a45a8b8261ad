#include "serve/http/transport.h"

#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <filesystem>

namespace still {
namespace {

constexpr std::size_t kReadBytes = 64 << 10;
constexpr std::size_t kTlsReadBytes = 16 << 10;  // a TLS record
constexpr int kListenBacklog = 1024;

using Tcp = asio::ip::tcp;
using Unix = asio::local::stream_protocol;

std::string name_of(const Tcp::socket& socket) {
  ErrorCode problem;
  const Tcp::endpoint end = socket.remote_endpoint(problem);
  if (problem) return "";
  const std::string address = end.address().to_string();
  return fmt::format(fmt::runtime(end.address().is_v6() ? "[{}]:{}" : "{}:{}"), address, end.port());
}
std::string name_of(const Unix::socket&) {
  return "unix";
}

void set_abrupt(Tcp::socket& socket) {
  ErrorCode ignored;
  socket.set_option(asio::socket_base::linger(true, 0), ignored);
}
void set_abrupt(Unix::socket&) {}

template <class Socket>
class PlainTransport : public Transport {
 public:
  explicit PlainTransport(Socket socket) : socket_(std::move(socket)), peer_(name_of(socket_)) {
    ErrorCode ignored;
    socket_.non_blocking(true, ignored);
  }

  void handshake(std::function<void(const ErrorCode&)> done) override { done({}); }

  void read(ReadHandler handler) override {
    // Waits without a buffer, then reads into one that all connections share: an idle connection holds no memory.
    socket_.async_wait(Socket::wait_read, [this, handler = std::move(handler)](const ErrorCode& problem) {
      if (problem) return handler(problem, {});
      static thread_local std::array<char, kReadBytes> buffer;
      ErrorCode read_problem;
      const std::size_t n = socket_.read_some(asio::buffer(buffer), read_problem);
      if (read_problem == asio::error::would_block) return read(handler);
      handler(read_problem, {buffer.data(), n});
    });
  }

  void write(std::string_view bytes, WriteHandler handler) override {
    socket_.async_write_some(asio::buffer(bytes.data(), bytes.size()), std::move(handler));
  }

  void wait_broken(std::function<void()> handler) override {
    socket_.async_wait(Socket::wait_error, [handler = std::move(handler)](const ErrorCode&) { handler(); });
  }

  void shutdown_send() override {
    ErrorCode ignored;
    socket_.shutdown(Socket::shutdown_send, ignored);
  }

  void close(bool is_abrupt) override {
    if (is_abrupt) set_abrupt(socket_);
    ErrorCode ignored;
    socket_.close(ignored);
  }

  std::string peer() const override { return peer_; }
  bool can_half_close() const override { return true; }

 private:
  Socket socket_;
  std::string peer_;
};

class TlsTransport : public Transport {
 public:
  TlsTransport(Tcp::socket socket, std::shared_ptr<asio::ssl::context> context)
      : context_(std::move(context)), peer_(name_of(socket)), stream_(std::move(socket), *context_) {}

  void handshake(std::function<void(const ErrorCode&)> done) override {
    stream_.async_handshake(asio::ssl::stream_base::server, std::move(done));
  }

  void read(ReadHandler handler) override {
    if (buffer_.empty()) buffer_.resize(kTlsReadBytes);
    stream_.async_read_some(asio::buffer(buffer_),
                            [this, handler = std::move(handler)](ErrorCode problem, std::size_t n) {
                              if (problem == asio::ssl::error::stream_truncated) problem = asio::error::eof;
                              handler(problem, {buffer_.data(), n});
                            });
  }

  void write(std::string_view bytes, WriteHandler handler) override {
    stream_.async_write_some(asio::buffer(bytes.data(), bytes.size()), std::move(handler));
  }

  void wait_broken(std::function<void()> handler) override {
    stream_.lowest_layer().async_wait(Tcp::socket::wait_error,
                                      [handler = std::move(handler)](const ErrorCode&) { handler(); });
  }

  // No close_notify of our own: a response says where it ends, and the connection is closed at once.
  void shutdown_send() override {
    ErrorCode ignored;
    stream_.lowest_layer().shutdown(Tcp::socket::shutdown_send, ignored);
  }

  void close(bool is_abrupt) override {
    ErrorCode ignored;
    if (is_abrupt) stream_.lowest_layer().set_option(asio::socket_base::linger(true, 0), ignored);
    stream_.lowest_layer().close(ignored);
  }

  std::string peer() const override { return peer_; }
  bool can_half_close() const override { return false; }

 private:
  std::shared_ptr<asio::ssl::context> context_;
  std::string peer_;
  asio::ssl::stream<Tcp::socket> stream_;
  std::vector<char> buffer_;
};

void prepare(Tcp::socket& socket) {
  ErrorCode ignored;
  socket.set_option(Tcp::no_delay(true), ignored);
  socket.set_option(asio::socket_base::keep_alive(true), ignored);
}
void prepare(Unix::socket&) {}

template <class Protocol>
class AsioListener : public Listener {
 public:
  using Socket = typename Protocol::socket;
  AsioListener(typename Protocol::acceptor acceptor, std::shared_ptr<asio::ssl::context> tls, std::string file)
      : acceptor_(std::move(acceptor)),
        retry_(acceptor_.get_executor()),
        tls_(std::move(tls)),
        file_(std::move(file)) {}
  ~AsioListener() override { AsioListener::stop(); }

  void start(Accepted accepted) override {
    accepted_ = std::move(accepted);
    accept();
  }

  void stop() override {
    ErrorCode ignored;
    acceptor_.close(ignored);
    retry_.cancel();
    if (!file_.empty()) ::unlink(file_.c_str());
    file_.clear();
  }

  std::uint16_t port() const override {
    ErrorCode ignored;
    if constexpr (std::is_same_v<Protocol, Tcp>) return acceptor_.local_endpoint(ignored).port();
    return 0;
  }

 private:
  void accept() {
    acceptor_.async_accept([this](const ErrorCode& problem, Socket socket) {
      if (problem == asio::error::operation_aborted || !acceptor_.is_open()) return;
      if (problem) {
        // Out of file descriptors, or a connection that went away meanwhile: others will end, so try again soon.
        retry_.expires_after(std::chrono::milliseconds(50));
        retry_.async_wait([this](const ErrorCode& stopped) {
          if (!stopped) accept();
        });
        return;
      }
      prepare(socket);
      accepted_(make_transport(std::move(socket)));
      accept();
    });
  }

  std::unique_ptr<Transport> make_transport(Socket socket) {
    if constexpr (std::is_same_v<Protocol, Tcp>) {
      if (tls_) return std::make_unique<TlsTransport>(std::move(socket), tls_);
    }
    return std::make_unique<PlainTransport<Socket>>(std::move(socket));
  }

  typename Protocol::acceptor acceptor_;
  asio::steady_timer retry_;
  std::shared_ptr<asio::ssl::context> tls_;
  std::string file_;
  Accepted accepted_;
};

tl::unexpected<Error> listen_error(const std::string& where, const ErrorCode& problem) {
  if (problem == asio::error::address_in_use) {
    return error(Code::kUnavailable, "{}: another program listens there already", where);
  }
  if (problem == asio::error::access_denied) {
    return error(Code::kPermissionDenied, "{}: this user may not listen there", where);
  }
  return error(Code::kInvalidArgument, "{}: cannot listen: {}", where, problem.message());
}

Result<Tcp::endpoint> resolve(const std::string& host, std::uint16_t port) {
  std::string name = host;
  if (name.size() > 2 && name.front() == '[' && name.back() == ']') name = name.substr(1, name.size() - 2);
  if (name.empty() || name == "*") return Tcp::endpoint(Tcp::v4(), port);
  if (name == "localhost") name = "127.0.0.1";
  ErrorCode problem;
  const asio::ip::address address = asio::ip::make_address(name, problem);
  if (!problem) return Tcp::endpoint(address, port);
  asio::io_context io;
  Tcp::resolver resolver(io);
  const auto found = resolver.resolve(name, std::to_string(port), problem);
  if (problem || found.empty()) {
    return error(Code::kInvalidArgument, "host \"{}\": no address of this machine ({})", host, problem.message());
  }
  return found.begin()->endpoint();
}

}  // namespace

Result<std::shared_ptr<asio::ssl::context>> load_tls(const std::string& certificate_file, const std::string& key_file) {
  auto context = std::make_shared<asio::ssl::context>(asio::ssl::context::tls_server);
  ErrorCode problem;
  context->set_options(asio::ssl::context::no_tlsv1 | asio::ssl::context::no_tlsv1_1, problem);
  context->use_certificate_chain_file(certificate_file, problem);
  if (problem) {
    return error(Code::kInvalidArgument, "TLS certificate {}: {}", certificate_file, problem.message());
  }
  context->use_private_key_file(key_file, asio::ssl::context::pem, problem);
  if (problem) return error(Code::kInvalidArgument, "TLS key {}: {}", key_file, problem.message());
  return context;
}

Result<std::unique_ptr<Listener>> listen_tcp(asio::io_context& io, const std::string& host, std::uint16_t port,
                                             std::shared_ptr<asio::ssl::context> tls) {
  STILL_TRY(const Tcp::endpoint end, resolve(host, port));
  const std::string where = fmt::format("{}:{}", host.empty() ? "*" : host, port);
  Tcp::acceptor acceptor(io);
  ErrorCode problem;
  acceptor.open(end.protocol(), problem);
  if (problem) return listen_error(where, problem);
  acceptor.set_option(asio::socket_base::reuse_address(true), problem);
  acceptor.bind(end, problem);
  if (problem) return listen_error(where, problem);
  acceptor.listen(kListenBacklog, problem);
  if (problem) return listen_error(where, problem);
  return std::make_unique<AsioListener<Tcp>>(std::move(acceptor), std::move(tls), "");
}

Result<std::unique_ptr<Listener>> listen_unix(asio::io_context& io, const std::string& path) {
  if (path.size() >= sizeof(sockaddr_un::sun_path)) {
    return error(Code::kInvalidArgument, "socket {}: a path of at most {} bytes is possible", path,
                 sizeof(sockaddr_un::sun_path) - 1);
  }
  ErrorCode problem;
  if (std::filesystem::is_socket(path)) {
    Unix::socket trial(io);
    trial.connect(Unix::endpoint(path), problem);
    if (!problem) return listen_error(path, asio::error::address_in_use);
    ::unlink(path.c_str());
  }
  Unix::acceptor acceptor(io);
  acceptor.open(Unix(), problem);
  if (problem) return listen_error(path, problem);
  acceptor.bind(Unix::endpoint(path), problem);
  if (problem) return listen_error(path, problem);
  ::chmod(path.c_str(), 0600);
  acceptor.listen(kListenBacklog, problem);
  if (problem) return listen_error(path, problem);
  return std::make_unique<AsioListener<Unix>>(std::move(acceptor), nullptr, path);
}

}  // namespace still
