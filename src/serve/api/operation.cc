// Routes about the server itself: the root that Ollama's clients look for, health, metrics, and the steering of
// generations while they run.
#include "base/json.h"
#include "serve/access_log.h"
#include "serve/api/errors.h"
#include "serve/auth.h"
#include "serve/context.h"
#include "serve/generation.h"
#include "serve/generation_registry.h"
#include "serve/http/server.h"
#include "serve/metrics.h"

namespace still {
namespace {

using Call = std::shared_ptr<const HttpRequest>;
using Writer = std::shared_ptr<ResponseWriter>;

void send_object(ResponseWriter& writer, const JsonObject& object, int status = 200) {
  writer.send({.status = status, .body = to_json(object)});
}

void send_root(const Writer& writer) {
  // Clients compare this text.
  writer->send({.content_type = "text/plain; charset=utf-8", .body = "Ollama is running"});
}

void send_health(const ServeContext& context, const Writer& writer) {
  if (context.is_draining) return send_object(*writer, {{"status", "draining"}}, 503);
  send_object(*writer, {{"status", "ok"}});
}

void send_metrics(const ServeContext& context, const Writer& writer) {
  PoolSnapshot models = context.pool ? context.pool->snapshot() : PoolSnapshot{};
  const Metrics::Facts facts{
      .models = std::move(models.loaded),
      .ended = std::move(models.ended),
      .http = context.http ? context.http->stats() : HttpServerStats{},
      .n_generations = context.generations->size(),
      .n_log_lost = context.access_log ? context.access_log->n_lost() : 0,
  };
  writer->send({.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = context.metrics->render(facts)});
}

std::string_view name_of(GenerationState::Phase phase) {
  switch (phase) {
    case GenerationState::Phase::kLoading:
      return "loading";
    case GenerationState::Phase::kWaiting:
      return "waiting";
    case GenerationState::Phase::kPrefill:
      return "prefill";
    case GenerationState::Phase::kRunning:
      return "running";
  }
  return "";
}

JsonObject describe(const Generation& generation) {
  const GenerationState state = generation.state();
  return {{"id", generation.id()},
          {"object", "generation"},
          {"model", state.model},
          {"status", name_of(state.phase)},
          {"queue_position", state.queue_position},
          {"prompt_tokens", state.n_prompt},
          {"prefilled_tokens", state.n_prefilled},
          {"completion_tokens", state.n_completion}};
}

// A key that may not change models may not touch others' generations either.
bool may_see(const ServeContext& context, const HttpRequest& request, const Generation& generation) {
  if (request.key.empty() || context.auth == nullptr || context.auth->is_admin(request.key)) return true;
  return generation.state().user == request.key;
}

void list_generations(const ServeContext& context, const Call& request, const Writer& writer) {
  JsonArray data;
  for (const auto& generation : context.generations->all()) {
    if (may_see(context, *request, *generation)) data.push_back(describe(*generation));
  }
  send_object(*writer, {{"object", "list"}, {"data", std::move(data)}});
}

// Finds the generation that the path names and does `act` with it.
template <class Act>
void steer(const ServeContext& context, const Call& request, const Writer& writer, Act act) {
  const std::string id(request->capture("id"));
  const std::shared_ptr<Generation> generation = context.generations->find(id);
  if (!generation || !may_see(context, *request, *generation)) {
    writer->send(error_response(ApiShape::kOpenAi, 404,
                                "no generation \"" + id + "\" is running: it has ended, or there was none"));
    return;
  }
  act(*generation);
  send_object(*writer, describe(*generation));
}

}  // namespace

void add_operation_routes(Router& router, ServeContext& context) {
  const auto add = [&](const char* method, const char* pattern, RouteClass route_class, auto handler) {
    router.add({.method = method, .pattern = pattern, .route_class = route_class, .handler = handler});
  };
  ServeContext* c = &context;
  add("GET", "/", RouteClass::kOpen, [](const Call&, const Writer& writer) { send_root(writer); });
  for (const char* path : {"/health", "/healthz", "/ping", "/v1/health"}) {
    add("GET", path, RouteClass::kOpen, [c](const Call&, const Writer& writer) { send_health(*c, writer); });
  }
  // vLLM's: what it is, and how many requests are under way.
  add("GET", "/version", RouteClass::kRead,
      [](const Call&, const Writer& writer) { send_object(*writer, {{"version", STILL_VERSION}}); });
  add("GET", "/load", RouteClass::kRead,
      [c](const Call&, const Writer& writer) { send_object(*writer, {{"server_load", c->generations->size()}}); });
  add("GET", "/metrics", RouteClass::kRead, [c](const Call&, const Writer& writer) { send_metrics(*c, writer); });
  add("GET", "/v1/generations", RouteClass::kRead,
      [c](const Call& request, const Writer& writer) { list_generations(*c, request, writer); });
  add("GET", "/v1/generations/{id}", RouteClass::kRead,
      [c](const Call& request, const Writer& writer) { steer(*c, request, writer, [](Generation&) {}); });
  add("POST", "/v1/generations/{id}/stop_thinking", RouteClass::kRead, [c](const Call& request, const Writer& writer) {
    steer(*c, request, writer, [](Generation& generation) { generation.stop_thinking(); });
  });
  add("POST", "/v1/generations/{id}/cancel", RouteClass::kRead, [c](const Call& request, const Writer& writer) {
    steer(*c, request, writer, [](Generation& generation) { generation.cancel(); });
  });
}

}  // namespace still
