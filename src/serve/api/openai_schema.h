// The OpenAPI document of the server (openapi.json beside this file), linked into the program.
#pragma once

#include <string_view>

namespace still {

std::string_view openapi_document();

}  // namespace still
