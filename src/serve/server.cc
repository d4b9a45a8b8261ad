#include "serve/server.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>

#include "hub/file_io.h"
#include "hub/store.h"
#include "serve/access_log.h"
#include "serve/api/errors.h"
#include "serve/auth.h"
#include "serve/cors.h"
#include "serve/generation_registry.h"
#include "serve/http/exchange.h"
#include "serve/http/server.h"
#include "serve/http/text.h"
#include "serve/metrics.h"

namespace still {
namespace {

constexpr std::chrono::hours kKeepPartials{24 * 14};

std::string machine_name() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "";
}

std::string join(const std::vector<std::string>& words) {
  return fmt::format("{}", fmt::join(words, ", "));
}

HttpServerOptions http_options(const ServeOptions& options) {
  return {.host = options.host,
          .port = options.port,
          .unix_socket = options.unix_socket.string(),
          .tls_certificate = options.tls_certificate.string(),
          .tls_key = options.tls_key.string(),
          .max_body_bytes = options.max_body_bytes,
          .max_connections = options.max_connections,
          .max_backlog_bytes = options.max_backlog_bytes,
          .header_timeout = options.header_timeout,
          .body_timeout = options.body_timeout,
          .idle_timeout = options.idle_timeout,
          .write_timeout = options.write_timeout};
}

void set_headers(ExchangeWriter& writer, std::vector<HttpHeader> headers) {
  for (HttpHeader& header : headers) writer.add_header(std::move(header));
}

}  // namespace

struct Server::State {
  std::unique_ptr<AccessLog> log;
  std::unique_ptr<Auth> auth;
  ServeContext context;
  Router router;
  bool is_loopback = true;
  std::string machine;
  std::unique_ptr<HttpServer> http;

  bool is_host_good(const HttpRequest& request) const;
  bool is_origin_good(const HttpRequest& request) const;
  // Whether the request may go on; otherwise it was answered.
  bool check_origin(HttpRequest& request, ExchangeWriter& writer);
  bool check_key(HttpRequest& request, const Route& route, ExchangeWriter& writer);
  BodyPlan plan_body(const HttpRequest& request);
  void handle(const std::shared_ptr<HttpRequest>& request, const std::shared_ptr<ExchangeWriter>& writer);
  void done(const HttpRecord& record);
};

bool Server::State::is_host_good(const HttpRequest& request) const {
  return !is_loopback || request.peer == "unix" || is_host_allowed_on_loopback(request.header("Host"), machine);
}

bool Server::State::is_origin_good(const HttpRequest& request) const {
  const std::string_view origin = request.header("Origin");
  return is_host_good(request) && (origin.empty() || is_same_origin(origin, request.header("Host")) ||
                                   is_origin_allowed(origin, context.options.origins));
}

bool Server::State::check_origin(HttpRequest& request, ExchangeWriter& writer) {
  const ApiShape shape = api_shape_of(request.path);
  const std::string_view host = request.header("Host");
  if (!is_host_good(request)) {
    writer.send(error_response(shape, 403, "this server listens on loopback and answers only to local names"));
    return false;
  }
  const std::string_view origin = request.header("Origin");
  if (!origin.empty() && !is_same_origin(origin, host)) {
    if (!is_origin_allowed(origin, context.options.origins)) {
      writer.send(error_response(shape, 403,
                                 "pages of this origin may not use the server; OLLAMA_ORIGINS lists those that may"));
      return false;
    }
    set_headers(writer, cors_headers(origin));
  }
  if (request.method == "OPTIONS") {
    set_headers(writer, preflight_headers(request));
    writer.send({.status = 204, .content_type = ""});
    return false;
  }
  return true;
}

bool Server::State::check_key(HttpRequest& request, const Route& route, ExchangeWriter& writer) {
  const Auth::Verdict verdict = auth->admit(request, route.route_class);
  request.key = verdict.key;
  if (verdict.status == 0) return true;
  if (verdict.status == 401) {
    context.metrics->count_refused_key();
    writer.add_header({"WWW-Authenticate", "Bearer"});
  }
  if (verdict.status == 429) context.metrics->count_limited(verdict.key, verdict.limit);
  HttpResponse response = error_response(api_shape_of(request.path), verdict.status, verdict.sentence);
  if (verdict.retry_after.count() > 0) {
    std::erase_if(response.headers, [](const HttpHeader& header) { return header.name == "Retry-After"; });
    response.headers.push_back({"Retry-After", std::to_string(verdict.retry_after.count())});
  }
  writer.send(std::move(response));
  return false;
}

// For routes that take large bodies: only from those who may send them, and unpacked.
BodyPlan Server::State::plan_body(const HttpRequest& request) {
  Router::Match match = router.find(request.method, request.path);
  if (match.route == nullptr || !match.route->open_body) return {};
  const std::string_view encoding = trim_spaces(request.header("Content-Encoding"));
  if (!encoding.empty() && !equals_without_case(encoding, "identity")) return {};
  HttpRequest head = request;
  head.captures = std::move(match.captures);
  if (!is_origin_good(head) || auth->admit(head, match.route->route_class).status != 0) return {.answers_now = true};
  BodyPlan plan{.sink = match.route->open_body(head)};
  plan.answers_now = plan.sink == nullptr;
  return plan;
}

void Server::State::handle(const std::shared_ptr<HttpRequest>& request, const std::shared_ptr<ExchangeWriter>& writer) {
  if (!check_origin(*request, *writer)) return;
  Router::Match match = router.find(request->method, request->path);
  const ApiShape shape = api_shape_of(request->path);
  if (!match.route) {
    if (match.allowed_methods.empty()) {
      writer->send(error_response(shape, 404, fmt::format("no such path: {}", request->path)));
    } else {
      const std::string allowed = join(match.allowed_methods);
      writer->add_header({"Allow", allowed});
      writer->send(error_response(shape, 405, fmt::format("method not allowed; {} takes {}", request->path, allowed)));
    }
    return;
  }
  request->route = match.route->pattern;
  request->captures = std::move(match.captures);
  // Those who watch or steer what runs are still served.
  const RouteClass route_class = match.route->route_class;
  if (context.is_draining && (route_class == RouteClass::kCompute || route_class == RouteClass::kAdmin))
    return writer->send(error_response(shape, 503, "the server is shutting down"));
  if (!check_key(*request, *match.route, *writer)) return;
  // Exceptions of libraries (memory, mostly) end this request, not the server.
  try {
    match.route->handler(request, writer);
  } catch (const std::exception& problem) {
    log->event(fmt::format("request {:016x} failed: {}", request->id, problem.what()));
    writer->send(error_response(shape, 500, "the server could not do this; its log says more"));
  }
}

void Server::State::done(const HttpRecord& record) {
  auth->end(record.request->id);
  context.metrics->count_http(record);
  log->request(record);
}

Server::Server(std::unique_ptr<State> state) : state_(std::move(state)) {}

Server::~Server() {
  stop();
}

Result<std::unique_ptr<Server>> Server::create(ServeOptions options) {
  auto state = std::make_unique<State>();
  State* raw = state.get();
  ServeContext& context = state->context;
  STILL_TRY(state->log, AccessLog::open(options.access_log, options.log_prompts));
  STILL_TRY(state->auth, Auth::create(options.keys_file, options.keys));
  context.options = std::move(options);
  context.generations = std::make_unique<GenerationRegistry>();
  context.metrics = std::make_unique<Metrics>();
  context.auth = state->auth.get();
  context.access_log = state->log.get();
  state->is_loopback = is_loopback_host(context.options.host);
  state->machine = machine_name();

  STILL_TRY(context.pool,
            make_model_pool({.library = {.store = context.options.models, .ollama = context.options.ollama_models},
                             .engine = context.options.engine,
                             .device = context.options.device,
                             .speculation = context.options.speculation,
                             .draft = context.options.draft,
                             .keep_alive = context.options.keep_alive,
                             .max_models = context.options.max_models,
                             .max_queue = context.options.max_queue,
                             .around_step_ends =
                                 [raw](bool begins) { begins ? raw->http->hold_wakes() : raw->http->let_wakes_go(); },
                             .on_load = [raw](bool is_ok) { raw->context.metrics->count_load(is_ok); },
                             .log = [raw](const std::string& sentence) { raw->log->event(sentence); }}));
  add_operation_routes(state->router, context);
  add_ollama_routes(state->router, context);
  add_openai_routes(state->router, context);
  add_responses_routes(state->router, context);
  add_anthropic_routes(state->router, context);
  add_embedding_routes(state->router, context);

  STILL_TRY(
      state->http,
      HttpServer::listen(http_options(context.options),
                         {.plan_body = [raw](const HttpRequest& request) { return raw->plan_body(request); },
                          .handle = [raw](const auto& request, const auto& writer) { raw->handle(request, writer); },
                          .refuse =
                              [](const HttpRequest& request, int status, const std::string& sentence) {
                                return error_response(api_shape_of(request.path), status, sentence);
                              },
                          .done = [raw](const HttpRecord& record) { raw->done(record); }}));
  context.http = state->http.get();
  // Uploads that no model was made of, and downloads that nobody went on with.
  if (Result<Store> store = Store::open(context.options.models)) {
    const Result<std::int64_t> freed = store->remove_partials(kKeepPartials);
    if (freed && *freed > 0) state->log->event(fmt::format("removed {} of old partial files", format_bytes(*freed)));
  }
  return std::unique_ptr<Server>(new Server(std::move(state)));
}

void Server::start() {
  state_->http->start();
}

std::uint16_t Server::port() const {
  return state_->http->port();
}

std::string Server::url() const {
  const ServeOptions& options = state_->context.options;
  const bool is_v6 = options.host.find(':') != std::string::npos && !options.host.starts_with('[');
  return fmt::format("{}://{}{}{}:{}", options.tls_certificate.empty() ? "http" : "https", is_v6 ? "[" : "",
                     options.host.empty() ? "0.0.0.0" : options.host, is_v6 ? "]" : "", port());
}

ServeContext& Server::context() {
  return state_->context;
}

const Router& Server::router() const {
  return state_->router;
}

void Server::drain() {
  state_->context.is_draining = true;
  state_->context.pool->drain();
  state_->http->drain();
}

bool Server::wait_idle(std::chrono::milliseconds timeout) {
  return state_->http->wait_idle(timeout);
}

void Server::stop() {
  drain();
  // Each stream that still runs ends with its own last line; then there is a moment to send it.
  state_->context.generations->cancel_all();
  state_->context.grammars.stop();
  wait_idle(std::chrono::seconds(2));
  state_->http->stop();
  state_->context.pool->stop();
}

}  // namespace still
