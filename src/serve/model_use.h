// Work with a loaded model that is no generation: tokenising, counting, embedding.
#pragma once

#include <functional>
#include <string>

#include "serve/context.h"

namespace still {

// Calls `use` once, on a thread of the pool, with the model and what keeps it loaded, or with the error of
// ModelPool::acquire (a model that can never fit is kInternal: kResourceExhausted is for prompts). Never waits.
void use_model(ServeContext& context, ModelWish wish, std::function<void(Result<std::shared_ptr<ModelLease>>)> use);

// The name to use where a client may leave it out: `name`, else the model that was loaded last, else the only one in
// the library. kInvalidArgument where that is not one.
Result<std::string> model_or_default(ServeContext& context, std::string_view name);

// Whether the request's key may change and stop models; without keys everybody may.
bool may_change_models(const ServeContext& context, const HttpRequest& request);

// Of a request whose key may not change models: it takes models as this server loads them, for as long as this server
// keeps them. What to tell the client where it asked for another time; empty: nothing. That its context is another is
// told once the model is there.
std::string limit_wish(const ServeContext& context, const HttpRequest& request, ModelWish& wish);

// The library as this server's options say.
Result<Library> open_library(const ServeContext& context);

}  // namespace still
