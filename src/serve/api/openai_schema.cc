#include "serve/api/openai_schema.h"

// The assembler looks the file up in the include path.
asm(".pushsection .rodata\n"
    ".global still_openapi_begin\n"
    "still_openapi_begin:\n"
    ".incbin \"serve/api/openapi.json\"\n"
    ".global still_openapi_end\n"
    "still_openapi_end:\n.byte 0\n"
    ".popsection\n");
extern "C" const char still_openapi_begin[];
extern "C" const char still_openapi_end[];

namespace still {

std::string_view openapi_document() {
  return {still_openapi_begin, static_cast<std::size_t>(still_openapi_end - still_openapi_begin)};
}

}  // namespace still
