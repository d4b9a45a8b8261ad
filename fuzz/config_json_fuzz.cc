// The small JSON files of a model folder: parsing, normalising, the chat template's place.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "files/config_json.h"

using namespace still;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto object = parse_json_object({reinterpret_cast<const char*>(data), size}, "input");
  if (!object) {
    STILL_CHECK(object.error().message.starts_with("input: "));
    return 0;
  }
  (void)chat_template_of(*object);
  const auto config = normalize_config(*object, "input");
  if (config) {
    // What was written is read again. Numbers may differ in their last bit: Boost.JSON 1.81 does not round every
    // decimal of 17 digits to the nearest double.
    const auto again = parse_json_object(to_json(Json(*config)), "again");
    STILL_CHECK(again && again->size() == config->size());
  }
  return 0;
}
