// /v1/completions: one generation for each prompt, a bounded number of them at a time, joined to one answer or to one
// stream of chunks. Choice i * n + j is answer j to prompt i.
#pragma once

#include <memory>

#include "serve/api/openai_request.h"
#include "serve/api/openai_wire.h"
#include "serve/context.h"

namespace still {

// Takes over from the handler; the writer hears everything.
void start_completions(ServeContext& context, CompletionCall call, std::shared_ptr<ResponseWriter> writer);

}  // namespace still
