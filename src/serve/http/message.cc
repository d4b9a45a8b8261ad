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

}  // namespace still
