#include "serve/router.h"

#include <algorithm>

namespace still {

namespace {

std::vector<std::string_view> segments_of(std::string_view path) {
  std::vector<std::string_view> segments;
  while (!path.empty() && path.front() == '/') path.remove_prefix(1);
  while (!path.empty()) {
    const std::size_t end = std::min(path.find('/'), path.size());
    segments.push_back(path.substr(0, end));
    path.remove_prefix(std::min(end + 1, path.size()));
  }
  return segments;
}

bool matches(std::string_view pattern, std::string_view path,
             std::vector<std::pair<std::string, std::string>>& captures) {
  const auto want = segments_of(pattern), have = segments_of(path);
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (i >= have.size()) return false;
    if (want[i].size() < 2 || want[i].front() != '{' || want[i].back() != '}') {
      if (want[i] != have[i]) return false;
      continue;
    }
    std::string_view name = want[i].substr(1, want[i].size() - 2);
    if (name.ends_with("...")) {
      const char* begin = have[i].data();
      captures.emplace_back(name.substr(0, name.size() - 3), std::string(begin, path.data() + path.size()));
      return true;
    }
    captures.emplace_back(name, have[i]);
  }
  return want.size() == have.size();
}

}  // namespace

void Router::add(Route route) {
  routes_.push_back(std::move(route));
}

Router::Match Router::find(std::string_view method, std::string_view path) const {
  Match match;
  for (const Route& route : routes_) {
    std::vector<std::pair<std::string, std::string>> captures;
    if (!matches(route.pattern, path, captures)) continue;
    if (route.method == method || (route.method == "GET" && method == "HEAD")) {
      match.route = &route;
      match.captures = std::move(captures);
      match.allowed_methods.clear();
      return match;
    }
    match.allowed_methods.push_back(route.method);
  }
  return match;
}

}  // namespace still
