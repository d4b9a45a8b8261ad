// Embedding routes of the OpenAI API: none yet, for no model here computes embeddings.
#include "serve/context.h"

namespace still {

void add_embedding_routes(Router&, ServeContext&) {}

}  // namespace still
