// Server: everything that answers on a port. Joins the HTTP front, the routes of all APIs, who may call them, the pool
// of models, and what is counted and logged.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/result.h"
#include "serve/context.h"
#include "serve/router.h"

namespace still {

class Server {
 public:
  // Opens the store and the port; nothing is answered before start().
  static Result<std::unique_ptr<Server>> create(ServeOptions options);
  ~Server();  // stop()
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  void start();
  std::uint16_t port() const;
  std::string url() const;  // "http://127.0.0.1:11434"
  ServeContext& context();
  const Router& router() const;

  // No new connections and requests; those under way go on. Returns at once.
  void drain();
  bool wait_idle(std::chrono::milliseconds timeout);
  // Ends what still runs, each stream with its last line, then closes everything.
  void stop();

 private:
  struct State;
  explicit Server(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace still
