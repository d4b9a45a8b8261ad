#include "serve/http/message.h"

#include "serve/http/text.h"

namespace still {

std::string_view HttpRequest::header(std::string_view name) const {
  for (const HttpHeader& header : headers) {
    if (equals_without_case(header.name, name)) return header.value;
  }
  return {};
}

std::string_view HttpRequest::capture(std::string_view name) const {
  for (const auto& [key, value] : captures) {
    if (key == name) return value;
  }
  return {};
}

std::string_view HttpRequest::client_id() const {
  constexpr std::size_t kMaxSize = 128;
  constexpr std::string_view kAllowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-";
  const std::string_view given = header("X-Request-Id");
  return given.size() > kMaxSize || given.find_first_not_of(kAllowed) != std::string_view::npos ? std::string_view()
                                                                                                : given;
}

}  // namespace still
