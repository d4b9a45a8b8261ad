// Tool calls: the first byte chooses the format, the second the length of the pieces; the rest is what a model says.
// However it is cut, the events are the same, and text without calls comes out whole.
#include <algorithm>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "text/tool_call_parser.h"

using namespace still;

namespace {

std::string run(ToolCallFormat format, std::string_view text, std::size_t piece) {
  ToolCallParser parser(format);
  std::string out;
  const auto add = [&](const std::vector<ToolCallEvent>& events) {
    for (const ToolCallEvent& event : events) {
      STILL_CHECK(event.kind == ToolCallEvent::Kind::kContent ? !event.text.empty() : !event.name.empty());
      out += event.kind == ToolCallEvent::Kind::kContent ? event.text : "\xff#" + event.name + event.arguments;
    }
  };
  for (std::size_t begin = 0; begin < text.size(); begin += piece) add(parser.feed(text.substr(begin, piece)));
  add(parser.finish());
  STILL_CHECK(parser.n_calls() > 0 || out == text);
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const auto format = static_cast<ToolCallFormat>(data[0] % 6);
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  STILL_CHECK(run(format, text, std::max<std::size_t>(text.size(), 1)) == run(format, text, 1 + data[1] % 16));
  return 0;
}
