// /tokenize, /detokenize and /tokenizer_info as vLLM and llama-server speak them (evaluation harnesses count with
// them).
#pragma once

#include "serve/context.h"

namespace still {

void add_tokenize_routes(Router& router, ServeContext& context);

}  // namespace still
