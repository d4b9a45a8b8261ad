#include "serve/api/errors.h"

#include "serve/api/json_fields.h"

namespace still {

ApiShape api_shape_of(std::string_view path) {
  if (path == "/api" || path.starts_with("/api/")) return ApiShape::kOllama;
  if (path == "/v1/messages" || path.starts_with("/v1/messages/")) return ApiShape::kAnthropic;
  return ApiShape::kOpenAi;
}

int http_status(const Error& error) {
  switch (error.code) {
    case Code::kInvalidArgument:
    case Code::kUnsupported:
    case Code::kResourceExhausted:
      return 400;
    case Code::kNotFound:
      return 404;
    case Code::kPermissionDenied:
      return 403;
    case Code::kCancelled:
      return 499;
    case Code::kUnavailable:
      return 503;
    case Code::kCorrupt:
    case Code::kInternal:
      return 500;
  }
  return 500;
}

namespace {

std::string_view openai_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string_view openai_code(int status) {
  switch (status) {
    case 401:
      return "invalid_api_key";
    case 429:
      return "rate_limit_exceeded";
    case 503:
      return "overloaded";
    default:
      return "";
  }
}

std::string_view anthropic_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 499:
      return "api_error";
    case 429:
      return "rate_limit_error";
    case 503:
    case 529:
      return "overloaded_error";
    default:
      return status >= 500 ? "api_error" : "invalid_request_error";
  }
}

ErrorDetail detail_of(const Error& error, ErrorDetail detail) {
  if (!detail.code.empty()) return detail;
  if (error.code == Code::kResourceExhausted) detail.code = "context_length_exceeded";
  if (error.code == Code::kNotFound) detail.code = "model_not_found";
  return detail;
}

}  // namespace

std::string error_body(ApiShape shape, int status, std::string_view message, const ErrorDetail& detail) {
  std::string out;
  const auto text_or_null = [&out](std::string_view text) {
    if (text.empty())
      out += "null";
    else
      append_json_bytes(out, text);
  };
  switch (shape) {
    case ApiShape::kOllama:
      out += "{\"error\":";
      append_json_bytes(out, message);
      break;
    case ApiShape::kOpenAi:
      out += "{\"error\":{\"message\":";
      append_json_bytes(out, message);
      out += ",\"type\":";
      append_json_string(out, openai_type(status));
      out += ",\"param\":";
      text_or_null(detail.param);
      out += ",\"code\":";
      text_or_null(detail.code.empty() ? openai_code(status) : detail.code);
      out += '}';
      break;
    case ApiShape::kAnthropic:
      out += "{\"type\":\"error\",\"error\":{\"type\":";
      append_json_string(out, anthropic_type(status));
      out += ",\"message\":";
      append_json_bytes(out, message);
      out += '}';
      break;
  }
  out += '}';
  return out;
}

std::string error_body(ApiShape shape, const Error& error, const ErrorDetail& detail) {
  return error_body(shape, http_status(error), error.message, detail_of(error, detail));
}

HttpResponse error_response(ApiShape shape, int status, std::string_view message, const ErrorDetail& detail) {
  HttpResponse response{.status = status, .body = error_body(shape, status, message, detail)};
  if (status == 429 || status == 503) response.headers.push_back({"Retry-After", "1"});
  return response;
}

HttpResponse error_response(ApiShape shape, const Error& error, const ErrorDetail& detail) {
  return error_response(shape, http_status(error), error.message, detail_of(error, detail));
}

void send_openai_error(ResponseWriter& writer, const Error& error, std::string_view param) {
  writer.send(error_response(ApiShape::kOpenAi, error, {.param = std::string(param)}));
}

}  // namespace still
