// What the routes of Ollama's API share: the library, facts of its models, transfers under way.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "hub/library.h"
#include "serve/api/ollama_facts.h"
#include "serve/api/ollama_pull.h"
#include "serve/context.h"
#include "serve/embedding.h"

namespace still {

struct OllamaService {
  explicit OllamaService(ServeContext& serve) : context(serve) {}
  ServeContext& context;
  ModelFactsCache facts;
  OllamaPulls pulls;
  EmbeddingService embeddings;

  Result<Library> library() const;
  // As the server's other APIs find it. kNotFound otherwise.
  Result<LibraryModel> find(std::string_view name) const;
};
using OllamaServicePtr = std::shared_ptr<OllamaService>;

// Routes by subject, one file each.
void add_ollama_model_routes(Router& router, const OllamaServicePtr& service);   // tags, show, ps, copy, delete
void add_ollama_create_routes(Router& router, const OllamaServicePtr& service);  // blobs, create
void add_ollama_pull_routes(Router& router, const OllamaServicePtr& service);
void add_ollama_embed_routes(Router& router, const OllamaServicePtr& service);  // embed, embeddings, rerank

// The text of a Modelfile that would make this model again.
std::string modelfile_text(const LibraryModel& model, std::string_view chat_template);
// 404 with Ollama's text (or that of a route which says it otherwise), and the closest names in a field of its own.
void send_model_not_found(ResponseWriter& writer, const OllamaService& service, std::string_view name,
                          std::string sentence = {});

}  // namespace still
