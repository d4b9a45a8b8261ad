// Modelfiles: any bytes may be read; what was written is read again.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "hub/modelfile.h"

using namespace still;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto parsed = parse_modelfile({reinterpret_cast<const char*>(data), size});
  if (!parsed) return 0;
  const auto again = parse_modelfile(write_modelfile(*parsed));
  // Values with quotes in them may be left out, and the model's name may be one.
  if (again) STILL_CHECK(again->template_text == parsed->template_text || again->template_text.empty());
  return 0;
}
