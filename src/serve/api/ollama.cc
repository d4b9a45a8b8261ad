// Ollama's API: its routes put together, and those that generate. The contract is that of Ollama 0.33.
#include <fmt/format.h>

#include "serve/api/json_fields.h"
#include "serve/api/ollama_generate.h"
#include "serve/api/ollama_service.h"
#include "serve/api/ollama_wire.h"
#include "serve/auth.h"
#include "serve/model_use.h"

namespace still {

namespace {

using RequestPtr = std::shared_ptr<const HttpRequest>;
using WriterPtr = std::shared_ptr<ResponseWriter>;

// The version of Ollama whose contract this is: clients compare it to know what a server can do.
constexpr std::string_view kOllamaVersion = "0.33.0";

// {"model": ..., "created_at": ..., "response": "", "done": true, "done_reason": "load"}
std::string idle_answer(const OllamaCall& call, std::string_view reason, std::chrono::nanoseconds load_duration) {
  std::string out = "{\"model\":";
  append_json_string(out, call.model);
  out += ",\"created_at\":\"";
  append_rfc3339(out, std::chrono::system_clock::now());
  out += call.route == OllamaRoute::kChat ? "\",\"message\":{\"role\":\"assistant\",\"content\":\"\"}"
                                          : "\",\"response\":\"\"";
  out += fmt::format(",\"done\":true,\"done_reason\":\"{}\"", reason);
  if (load_duration.count() > 0) out += fmt::format(",\"load_duration\":{}", load_duration.count());
  return out + "}";
}

void unload_model(OllamaService& service, const OllamaCall& call, ResponseWriter& writer) {
  const Result<LibraryModel> model = service.find(call.model);
  if (!model && model.error().code == Code::kNotFound) return send_model_not_found(writer, service, call.model);
  if (!model) return send_ollama_error(writer, model.error(), call.model);
  const Status status = service.context.pool->unload(model->name);
  if (!status && status.error().code != Code::kNotFound) return send_ollama_error(writer, status.error(), call.model);
  writer.send({.body = idle_answer(call, "unload", {})});
}

// Keeps the ticket of a load until it is done or the client leaves.
struct Loading {
  std::mutex mutex;
  std::shared_ptr<void> ticket;
  bool is_over = false;
};

void load_model(const OllamaServicePtr& service, const OllamaCall& call, const WriterPtr& writer) {
  const auto loading = std::make_shared<Loading>();
  const auto forget = [loading] {
    std::shared_ptr<void> ticket;  // destroyed outside the lock
    const std::lock_guard lock(loading->mutex);
    loading->is_over = true;
    ticket.swap(loading->ticket);
  };
  const auto ready = [service, call, writer, loading](Result<std::shared_ptr<ModelLease>> lease) {
    if (!lease) {
      if (lease.error().code == Code::kNotFound) return send_model_not_found(*writer, *service, call.model);
      return send_ollama_error(*writer, lease.error(), call.model);
    }
    (*lease)->set_keep_alive(call.input.model.keep_alive);
    writer->send({.body = idle_answer(call, "load", (*lease)->load_duration())});
  };
  std::shared_ptr<void> ticket = service->context.pool->acquire(call.input.model, ready);
  {
    const std::lock_guard lock(loading->mutex);
    if (!loading->is_over) loading->ticket = std::move(ticket);
  }
  writer->on_closed(forget);
}

// A model's own messages come before those of every chat that does not go on from a context.
void prepend_messages(const JsonArray& messages, GenerationInput& input) {
  ChatInput* chat = std::get_if<ChatInput>(&input.prompt);
  if (chat == nullptr || !chat->prefix_ids.empty() || messages.empty()) return;
  // A system prompt stays first.
  const bool has_system = !chat->messages.empty() && chat->messages.front().at("role") == "system";
  chat->messages.insert(chat->messages.begin() + (has_system ? 1 : 0), messages.begin(), messages.end());
}

void generate(const OllamaServicePtr& service, Result<OllamaCall> call, const HttpRequest& request,
              const WriterPtr& writer) {
  if (!call) return send_ollama_error(*writer, call.error(), "");
  if (call->is_load) {
    const auto& keep_alive = call->input.model.keep_alive;
    if (keep_alive && keep_alive->count() == 0) {
      if (!may_change_models(service->context, request)) return send_ollama_error(*writer, 403, kMayNotChangeModels);
      return unload_model(*service, *call, *writer);
    }
    limit_wish(service->context, request, call->input.model);
    return load_model(service, *call, writer);
  }
  if (std::string warning = limit_wish(service->context, request, call->input.model); !warning.empty())
    call->warnings.push_back(std::move(warning));
  set_asker(call->input, request);
  const Result<LibraryModel> model = service->find(call->model);
  if (!model && model.error().code == Code::kNotFound) return send_model_not_found(*writer, *service, call->model);
  if (model) {
    prepend_messages(model->messages, call->input);
    const auto facts = service->facts.get(*model);
    if (facts && !(*facts)->can("completion")) {
      return send_ollama_error(*writer, 400,
                               fmt::format("\"{}\" does not support {}", call->model,
                                           call->route == OllamaRoute::kChat ? "chat" : "generate"));
    }
    if (facts && call->input.thinking.must_support && !(*facts)->can("thinking")) {
      return send_ollama_error(*writer, 400, fmt::format("\"{}\" does not support thinking", call->model));
    }
    if (facts && !call->input.tools.tools.empty() && !(*facts)->can("tools")) {
      return send_ollama_error(*writer, 400, fmt::format("\"{}\" does not support tools", call->model));
    }
  }
  GenerationInput input = call->input;
  const auto sink = std::make_shared<OllamaSink>(std::move(*call), writer);
  const std::shared_ptr<Generation> generation = start_generation(service->context, std::move(input), sink);
  writer->on_closed([weak = std::weak_ptr(generation)] {
    if (const auto alive = weak.lock()) alive->cancel();
  });
}

void add_refusal(Router& router, std::string method, std::string path, int status, std::string text) {
  router.add(
      {std::move(method), std::move(path), RouteClass::kRead,
       [status, text](const RequestPtr&, const WriterPtr& writer) { send_ollama_error(*writer, status, text); }});
}

}  // namespace

Result<Library> OllamaService::library() const {
  return Library::open({.store = context.options.models, .ollama = context.options.ollama_models});
}

Result<LibraryModel> OllamaService::find(std::string_view name) const {
  STILL_TRY(const Library all, library());
  return all.find_stored(name);
}

void add_ollama_routes(Router& router, ServeContext& context) {
  const auto service = std::make_shared<OllamaService>(context);
  router.add({"GET", "/api/version", RouteClass::kRead, [](const RequestPtr&, const WriterPtr& writer) {
                send_json(*writer, JsonObject{{"version", kOllamaVersion}, {"still", STILL_VERSION}});
              }});
  add_ollama_model_routes(router, service);
  add_ollama_create_routes(router, service);
  add_ollama_pull_routes(router, service);
  add_ollama_embed_routes(router, service);
  const auto add_generation = [&](std::string path, Result<OllamaCall> (*read)(const OllamaFields&)) {
    router.add({"POST", std::move(path), RouteClass::kCompute,
                [service, read](const RequestPtr& request, const WriterPtr& writer) {
                  const Result<OllamaFields> fields = OllamaFields::parse(request->body);
                  if (!fields) return send_ollama_error(*writer, fields.error(), "");
                  generate(service, read(*fields), *request, writer);
                }});
  };
  add_generation("/api/generate", read_ollama_generate);
  add_generation("/api/chat", read_ollama_chat);
  add_refusal(router, "POST", "/api/push", 501, "this server does not push models to a registry");
  add_refusal(router, "POST", "/api/me", 501, "this server has no accounts");
  add_refusal(router, "POST", "/api/signout", 501, "this server has no accounts");
  add_refusal(router, "GET", "/api/status", 404, "this server has no cloud");
}

}  // namespace still
