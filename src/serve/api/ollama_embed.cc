// /api/embed, /api/embeddings and /api/rerank. No engine here computes embeddings yet: each answers in one sentence.
#include "serve/api/ollama_service.h"
#include "serve/api/ollama_wire.h"

namespace still {

void add_ollama_embed_routes(Router& router, const OllamaServicePtr& service) {
  for (const char* path : {"/api/embed", "/api/embeddings", "/api/rerank"}) {
    router.add(
        {"POST", path, RouteClass::kCompute,
         [service](const std::shared_ptr<const HttpRequest>& request, const std::shared_ptr<ResponseWriter>& writer) {
           const Result<OllamaFields> fields = OllamaFields::parse(request->body);
           if (!fields) return send_ollama_error(*writer, fields.error(), "");
           const Result<std::string> name = fields->model();
           if (!name) return send_ollama_error(*writer, name.error(), "");
           if (!service->find(*name)) {
             return send_ollama_error(*writer, 404, "model \"" + *name + "\" not found, try pulling it first");
           }
           send_ollama_error(*writer, 501, "\"" + *name + "\" does not support embedding here");
         }});
  }
}

}  // namespace still
