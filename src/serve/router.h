// Routes: method and path pattern to a handler. A path that exists with other methods answers 405 with Allow, an
// unknown one 404, each in the shape of the API that the path belongs to.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "serve/http/message.h"

namespace still {

// What may reach a route without an API key, and what is counted as work of a client.
enum class RouteClass : std::uint8_t {
  kOpen,     // "/", "/health", assets of the page: no key
  kRead,     // lists and facts: a key, no rate limit
  kCompute,  // generations, embeddings: a key and its limits of rate, concurrency and tokens
  kAdmin,    // pull, create, copy, delete, stop: a key that is allowed to
};

struct Route {
  // Takes the bodies of large uploads as they come. On the I/O thread, for requests whose key allows the route; fast.
  // Null: the handler needs no body for its answer.
  using OpenBody = std::function<std::shared_ptr<BodySink>(const HttpRequest&)>;
  std::string method;   // "POST"; "GET" serves HEAD too
  std::string pattern;  // "/v1/models/{model...}": a capture of one segment {x}, or of all that is left {x...}
  RouteClass route_class = RouteClass::kRead;
  HttpHandler handler;
  OpenBody open_body = {};  // empty: bodies are gathered in memory, up to the server's limit
};

class Router {
 public:
  void add(Route route);
  struct Match {
    const Route* route = nullptr;              // null: none
    std::vector<std::string> allowed_methods;  // of the path, where only the method is wrong
    std::vector<std::pair<std::string, std::string>> captures;
  };
  Match find(std::string_view method, std::string_view path) const;
  const std::vector<Route>& routes() const { return routes_; }

 private:
  std::vector<Route> routes_;
};

}  // namespace still
