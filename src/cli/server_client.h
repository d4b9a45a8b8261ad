// What commands ask a running server.
#pragma once

#include <string>

#include "base/json.h"
#include "base/result.h"
#include "cli/serve_environment.h"

namespace still {

// method GET or POST; body: JSON text of a POST. The parsed answer. kUnavailable where no server answers; an error of
// the server becomes kNotFound (404), kPermissionDenied (401, 403) or kInternal, with the server's own sentence.
Result<Json> call_server(const ServeEnvironment& environment, const std::string& path, const std::string& body = "");

}  // namespace still
