// Errors as each API tells them: the HTTP status, and the body in its shape.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "serve/http/message.h"

namespace still {

enum class ApiShape : std::uint8_t { kOllama, kOpenAi, kAnthropic };

// Of the API that a path belongs to: /api/...: Ollama; /v1/messages...: Anthropic; all others: OpenAI.
ApiShape api_shape_of(std::string_view path);

// 400, 404, 403, 499, 500 or 503. kResourceExhausted is a prompt too long (400): see GenerationSink::on_failed.
int http_status(const Error& error);

// What is told beside status and sentence where the API has a place for it.
struct ErrorDetail {
  std::string param;  // OpenAI: the field that is wrong
  std::string code;   // OpenAI: "model_not_found"; empty: by the error's code
};

// One line of JSON, no line end. Ollama {"error":"..."}; OpenAI {"error":{"message","type","param","code"}};
// Anthropic {"type":"error","error":{"type","message"}}.
std::string error_body(ApiShape shape, int status, std::string_view message, const ErrorDetail& detail = {});
std::string error_body(ApiShape shape, const Error& error, const ErrorDetail& detail = {});
// With Retry-After where trying again may help (429, 503).
HttpResponse error_response(ApiShape shape, int status, std::string_view message, const ErrorDetail& detail = {});
HttpResponse error_response(ApiShape shape, const Error& error, const ErrorDetail& detail = {});
void send_openai_error(ResponseWriter& writer, const Error& error, std::string_view param = {});

}  // namespace still
