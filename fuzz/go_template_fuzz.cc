// Go templates: any bytes may be parsed and rendered, within the limits, over a small chat.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "text/chat_template.h"

using namespace still;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Json context = *parse_json(
      R"({"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi <|im_end|>"},{"role":"assistant","content":"b",)"
      R"("reasoning_content":"a","tool_calls":[{"type":"function","function":{"name":"f","arguments":{"x":1.5,"y":[null,true]}}}]},{"role":"tool",)"
      R"("content":"r","name":"f"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"x":{"type":)"
      R"(["number","null"]}}}}}],"enable_thinking":true})",
      "context");
  const auto parsed = ChatTemplate::parse({reinterpret_cast<const char*>(data), size}, "input", TemplateLanguage::kGo);
  if (!parsed) {
    STILL_CHECK(parsed.error().message.starts_with("chat template of input: "));
    return 0;
  }
  (void)parsed->render(context);
  return 0;
}
