// OpenAI's API: models, chat/completions, completions; under /v1, and without it where DeepSeek's base URL leads.
#include <fmt/format.h>

#include "serve/api/errors.h"
#include "serve/api/ollama_facts.h"
#include "serve/api/openai_chat.h"
#include "serve/api/openai_completions.h"
#include "serve/api/openai_schema.h"
#include "serve/api/tokenize.h"
#include "serve/context.h"
#include "serve/model_use.h"

namespace still {

namespace {

using Writer = std::shared_ptr<ResponseWriter>;

void chat_completions(ServeContext& context, const HttpRequest& request, const Writer& writer) {
  Result<JsonObject> body = parse_body(request.body);
  if (!body) return send_openai_error(*writer, body.error());
  JsonFields fields(*body);
  ChatCall call = read_chat_call(fields);
  if (Status status = fields.status(); !status) return send_openai_error(*writer, status.error(), fields.wrong_field());
  if (std::string warning = limit_wish(context, request, call.input.model); !warning.empty())
    call.input.warnings.push_back(std::move(warning));
  set_asker(call.input, request);
  call.input.wants_progress = call.stream.is_on;
  auto sink = std::make_shared<OpenAiChatSink>(call, writer);
  const auto generation = start_generation(context, std::move(call.input), std::move(sink));
  writer->on_closed([weak = std::weak_ptr(generation)] {
    if (const auto open = weak.lock()) open->cancel();
  });
}

void completions(ServeContext& context, const HttpRequest& request, const Writer& writer) {
  Result<JsonObject> body = parse_body(request.body);
  if (!body) return send_openai_error(*writer, body.error());
  JsonFields fields(*body);
  CompletionCall call = read_completion_call(fields);
  if (Status status = fields.status(); !status) return send_openai_error(*writer, status.error(), fields.wrong_field());
  if (std::string warning = limit_wish(context, request, call.input.model); !warning.empty())
    call.input.warnings.push_back(std::move(warning));
  set_asker(call.input, request);
  start_completions(context, std::move(call), writer);
}

struct ModelsService {
  explicit ModelsService(ServeContext& serve) : context(serve) {}
  ServeContext& context;
  ModelFactsCache facts;
};
using ModelsServicePtr = std::shared_ptr<ModelsService>;

JsonObject model_entry(ModelsService& service, const LibraryModel& model) {
  const auto created = std::chrono::duration_cast<std::chrono::seconds>(model.modified.time_since_epoch()).count();
  JsonObject entry{{"id", model.name}, {"object", "model"}, {"created", created}, {"owned_by", "library"}};
  std::int64_t context = 0;
  JsonObject meta{{"size", model.size}, {"digest", model.digest}};
  if (const auto facts = service.facts.get(model)) {
    context = (*facts)->context;
    meta["n_params"] = (*facts)->n_parameters;
    meta["n_ctx_train"] = (*facts)->context;
    meta["quantization"] = (*facts)->quantization;
    meta["family"] = (*facts)->family;
  }
  // Of a loaded model: what a request may really use.
  for (const LoadedModelInfo& info : service.context.pool->loaded())
    if (info.name == model.name && info.context > 0) context = info.context;
  if (context > 0) entry["max_model_len"] = context;
  entry["meta"] = std::move(meta);
  return entry;
}

void list_models(ModelsService& service, const HttpRequest&, const Writer& writer) {
  const Result<Library> library = open_library(service.context);
  if (!library) return send_openai_error(*writer, library.error());
  JsonArray data;
  for (const LibraryModel& model : library->list().models) data.push_back(model_entry(service, model));
  writer->send({.body = to_json(JsonObject{{"object", "list"}, {"data", std::move(data)}})});
}

void show_model(ModelsService& service, const HttpRequest& request, const Writer& writer) {
  const Result<Library> library = open_library(service.context);
  if (!library) return send_openai_error(*writer, library.error());
  const Result<LibraryModel> model = library->find_stored(request.capture("model"));
  if (!model) {
    // A name that cannot be one is no model either.
    const bool is_unknown = model.error().code == Code::kInvalidArgument || model.error().code == Code::kNotFound;
    if (!is_unknown) return send_openai_error(*writer, model.error(), "model");
    return send_openai_error(*writer, {Code::kNotFound, library->not_found_sentence(request.capture("model"))},
                             "model");
  }
  writer->send({.body = to_json(model_entry(service, *model))});
}

}  // namespace

void add_openai_routes(Router& router, ServeContext& context) {
  const auto add = [&router](std::string method, std::string pattern, RouteClass route_class, HttpHandler handler) {
    router.add({std::move(method), std::move(pattern), route_class, std::move(handler)});
  };
  const HttpHandler chat = [&context](std::shared_ptr<const HttpRequest> request, Writer writer) {
    chat_completions(context, *request, writer);
  };
  const HttpHandler complete = [&context](std::shared_ptr<const HttpRequest> request, Writer writer) {
    completions(context, *request, writer);
  };
  // DeepSeek's clients have a base URL without /v1, and /beta for prefix completion.
  for (const std::string prefix : {"/v1", "", "/beta"}) {
    add("POST", prefix + "/chat/completions", RouteClass::kCompute, chat);
    add("POST", prefix + "/completions", RouteClass::kCompute, complete);
  }
  const auto service = std::make_shared<ModelsService>(context);
  const HttpHandler list = [service](std::shared_ptr<const HttpRequest> request, Writer writer) {
    list_models(*service, *request, writer);
  };
  const HttpHandler show = [service](std::shared_ptr<const HttpRequest> request, Writer writer) {
    show_model(*service, *request, writer);
  };
  for (const std::string prefix : {"/v1", ""}) {
    add("GET", prefix + "/models", RouteClass::kRead, list);
    add("GET", prefix + "/models/{model...}", RouteClass::kRead, show);
  }
  add_tokenize_routes(router, context);
  add("GET", "/openapi.json", RouteClass::kOpen, [](std::shared_ptr<const HttpRequest>, Writer writer) {
    writer->send({.body = std::string(openapi_document())});
  });
}

}  // namespace still
