// For tests: an HTTP/1.1 server on 127.0.0.1 with sockets and threads, one connection a request, that can be told to
// misbehave: ignore ranges, cut a connection, stall, drip, change its mind about an entity. Header only; never shipped.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/rng.h"

namespace still::test {

struct Request {
  std::string path;                            // with the query
  std::map<std::string, std::string> headers;  // names in lower case
  std::string header(const std::string& name) const {
    const auto it = headers.find(name);
    return it == headers.end() ? "" : it->second;
  }
};

struct Reply {
  int status = 200;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  bool has_length = true;         // false: the end of the connection is the end of the body
  std::int64_t cut_after = -1;    // bytes of the body, then the connection is closed
  std::int64_t stall_after = -1;  // bytes of the body, then silence until the client leaves
  std::int64_t bytes_per_s = 0;   // 0: as fast as it goes
};

// What a proper server answers for `body`, honouring Range and If-Range.
inline Reply reply_with(const Request& request, const std::string& body, const std::string& etag = "\"v1\"") {
  Reply reply{.headers = {{"ETag", etag}, {"Accept-Ranges", "bytes"}}, .body = body};
  const std::string range = request.header("range");
  const std::string if_range = request.header("if-range");
  if (!range.starts_with("bytes=") || (!if_range.empty() && if_range != etag)) return reply;
  const auto dash = range.find('-');
  const std::size_t begin = std::stoull(range.substr(6, dash - 6));
  const std::size_t end = std::min(body.size(), static_cast<std::size_t>(std::stoull(range.substr(dash + 1))) + 1);
  if (begin >= body.size()) return {.status = 416};
  reply.status = 206;
  reply.headers.emplace_back("Content-Range", "bytes " + std::to_string(begin) + "-" + std::to_string(end - 1) + "/" +
                                                  std::to_string(body.size()));
  reply.body = body.substr(begin, end - begin);
  return reply;
}

class TestServer {
 public:
  using Handler = std::function<Reply(const Request&)>;

  // Listens at once, so that url() is known; serves from start() on (threads must not exist before a fork).
  explicit TestServer(Handler handler, bool start_now = true) : handler_(std::move(handler)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    STILL_CHECK(::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    STILL_CHECK(::listen(listener_, 64) == 0);
    STILL_CHECK(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    port_ = ntohs(address.sin_port);
    if (start_now) start();
  }
  ~TestServer() {
    stopping_ = true;
    if (acceptor_.joinable()) acceptor_.join();
    for (std::thread& thread : threads_) thread.join();
    ::close(listener_);
  }
  void start() {
    acceptor_ = std::thread([this] { accept_all(); });
  }
  std::string url(const std::string& path = "") const { return "http://127.0.0.1:" + std::to_string(port_) + path; }
  std::vector<Request> requests() const {
    std::lock_guard lock(mutex_);
    return requests_;
  }
  std::size_t n_requests() const { return requests().size(); }
  std::int64_t sent_bytes() const { return sent_bytes_; }  // of bodies
  void reset_counts() {
    std::lock_guard lock(mutex_);
    requests_.clear();
    sent_bytes_ = 0;
  }

 private:
  void accept_all() {
    while (!stopping_) {
      pollfd waiting{listener_, POLLIN, 0};
      if (::poll(&waiting, 1, 20) <= 0) continue;
      const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd >= 0)
        threads_.emplace_back([this, fd] {
          serve(fd);
          ::close(fd);
        });
    }
  }

  void serve(int fd) {
    std::string head;
    char buffer[4096];
    while (head.find("\r\n\r\n") == std::string::npos) {
      if (!wait_for(fd, POLLIN)) return;
      const ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
      if (n <= 0) return;
      head.append(buffer, static_cast<std::size_t>(n));
    }
    const Request request = parse(head);
    {
      std::lock_guard lock(mutex_);
      requests_.push_back(request);
    }
    const Reply reply = handler_(request);
    std::string start = "HTTP/1.1 " + std::to_string(reply.status) + " X\r\nConnection: close\r\n";
    if (reply.has_length) start += "Content-Length: " + std::to_string(reply.body.size()) + "\r\n";
    for (const auto& [name, value] : reply.headers) start += name + ": " + value + "\r\n";
    if (!send_all(fd, start + "\r\n", 0)) return;
    std::string body = reply.body;
    if (reply.cut_after >= 0) body.resize(std::min(body.size(), static_cast<std::size_t>(reply.cut_after)));
    if (reply.stall_after >= 0) body.resize(std::min(body.size(), static_cast<std::size_t>(reply.stall_after)));
    if (!send_all(fd, body, reply.bytes_per_s, &sent_bytes_)) return;
    if (reply.stall_after >= 0) wait_for(fd, POLLIN);  // readable: the client closed
    ::shutdown(fd, SHUT_WR);
  }

  static Request parse(const std::string& head) {
    Request request;
    const auto first = head.find(' ');
    request.path = head.substr(first + 1, head.find(' ', first + 1) - first - 1);
    for (auto at = head.find("\r\n") + 2; at < head.size();) {
      const auto end = head.find("\r\n", at);
      const std::string line = head.substr(at, end - at);
      const auto colon = line.find(": ");
      if (colon != std::string::npos) {
        std::string name = line.substr(0, colon);
        std::transform(name.begin(), name.end(), name.begin(),
                       [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
        request.headers[name] = line.substr(colon + 2);
      }
      at = end + 2;
    }
    return request;
  }

  bool wait_for(int fd, short events) {
    while (!stopping_) {
      pollfd waiting{fd, events, 0};
      if (::poll(&waiting, 1, 20) > 0) return true;
    }
    return false;
  }

  bool send_all(int fd, const std::string& bytes, std::int64_t bytes_per_s,
                std::atomic<std::int64_t>* count = nullptr) {
    const std::size_t step =
        bytes_per_s > 0 ? std::max<std::size_t>(1, static_cast<std::size_t>(bytes_per_s / 50)) : 1 << 16;
    for (std::size_t at = 0; at < bytes.size();) {
      if (!wait_for(fd, POLLOUT)) return false;
      const ssize_t n = ::send(fd, bytes.data() + at, std::min(step, bytes.size() - at), MSG_NOSIGNAL);
      if (n <= 0) return false;
      at += static_cast<std::size_t>(n);
      if (count != nullptr) *count += n;
      if (bytes_per_s > 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return true;
  }

  Handler handler_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<std::int64_t> sent_bytes_{0};
  mutable std::mutex mutex_;
  std::vector<Request> requests_;
  std::vector<std::thread> threads_;
  std::thread acceptor_;
};

// A folder of its own, removed at the end.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "still_hub_test_XXXXXX").string();
    STILL_CHECK(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~TempFolder() {
    std::error_code failure;
    std::filesystem::remove_all(path_, failure);
  }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline std::string random_bytes(std::size_t size, std::uint64_t seed) {
  Rng rng(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(rng.next() >> 56);
  return bytes;
}

// Bytes that a pull takes for a GGUF.
inline std::string fake_gguf(std::size_t size, std::uint64_t seed) {
  return "GGUF" + random_bytes(size - 4, seed);
}

}  // namespace still::test
