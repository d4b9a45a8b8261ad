// Chat templates: any bytes may be parsed and rendered, within the limits, over a small chat.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "text/chat_template.h"

using namespace still;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Json context = *parse_json(
      R"({"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi <|im_end|>"},{"role":"assistant","content":"<think>a</think>b",)"
      R"("tool_calls":[{"type":"function","function":{"name":"f","arguments":{"x":1.5,"y":[null,true]}}}]},{"role":"tool","content":"r"}],)"
      R"("tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"add_generation_prompt":true,"bos_token":"<s>","n":3})",
      "context");
  const auto parsed = ChatTemplate::parse({reinterpret_cast<const char*>(data), size}, "input");
  if (!parsed) {
    STILL_CHECK(parsed.error().message.starts_with("chat template of input: "));
    return 0;
  }
  (void)parsed->render(context);
  return 0;
}
