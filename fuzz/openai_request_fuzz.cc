// Requests of OpenAI's API: the body, every field, messages, tools and formats. The first byte chooses which.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "serve/api/openai_request.h"

using namespace still;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  Result<JsonObject> object = parse_body(body);
  if (!object) {
    STILL_CHECK(object.error().code == Code::kInvalidArgument);
    return 0;
  }
  JsonFields fields(*object);
  if ((data[0] & 1) != 0) {
    const ChatCall call = read_chat_call(fields);
    if (fields.is_ok()) {
      STILL_CHECK(!std::get<ChatInput>(call.input.prompt).messages.empty());
      STILL_CHECK(call.input.n >= 1 && !call.input.model.name.empty());
    }
  } else {
    const CompletionCall call = read_completion_call(fields);
    if (fields.is_ok()) STILL_CHECK(!call.prompts.empty() && call.n >= 1 && call.input.n >= call.n);
  }
  // A mistake names its place.
  if (!fields.is_ok())
    STILL_CHECK(!fields.wrong_field().empty() && fields.status().error().code == Code::kInvalidArgument);
  // What is written is JSON again.
  std::string text;
  append_json_bytes(text, body);
  STILL_CHECK(parse_json(text, "text"));
  return 0;
}
