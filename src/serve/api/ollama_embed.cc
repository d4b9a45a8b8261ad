// /api/embed, /api/embeddings (the older one, not normalised) and /api/rerank, which Ollama lacks and its clients call:
// documents in the order of the cosine between their vectors and the query's.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "serve/api/json_fields.h"
#include "serve/api/ollama_service.h"
#include "serve/api/ollama_wire.h"
#include "serve/embedding.h"
#include "serve/model_use.h"

namespace still {

namespace {

using RequestPtr = std::shared_ptr<const HttpRequest>;
using WriterPtr = std::shared_ptr<ResponseWriter>;
using Clock = std::chrono::steady_clock;

void append_row(std::string& out, std::span<const float> row) {
  out += '[';
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (i > 0) out += ',';
    append_json_number(out, row[i]);
  }
  out += ']';
}

void send_failure(ResponseWriter& writer, const OllamaService& service, const Error& error, const std::string& model) {
  if (error.code == Code::kNotFound) {
    return send_model_not_found(writer, service, model,
                                fmt::format("model \"{}\" not found, try pulling it first", model));
  }
  if (error.code == Code::kResourceExhausted) return send_ollama_error(writer, 400, error.message);
  send_ollama_error(writer, error, model);
}

// What all three routes read: model, keep_alive, options (num_ctx), truncate, dimensions.
Result<EmbedInput> read_common(const OllamaService& service, const OllamaFields& fields, const HttpRequest& request,
                               const WriterPtr& writer) {
  EmbedInput input{.user = request.key};
  input.options.is_cancelled = [writer] { return writer->is_closed(); };
  STILL_TRY(input.model.name, fields.model());
  STILL_TRY(input.model.keep_alive, fields.keep_alive());
  limit_wish(service.context, request, input.model);  // vectors have no place for a warning
  STILL_TRY(const JsonObject options, fields.object("options"));
  GenerationInput checked;
  std::vector<std::string> ignored;
  STILL_TRY_STATUS(apply_ollama_options(options, checked, ignored));
  input.model.context = checked.model.context;
  STILL_TRY(const std::optional<bool> truncate, fields.flag("truncate"));
  input.options.truncate = truncate.value_or(true);
  STILL_TRY(const std::optional<std::int64_t> dimensions, fields.integer("dimensions"));
  input.options.dimensions = std::max<std::int64_t>(0, dimensions.value_or(0));
  return input;
}

// A string or an array of strings; empty or absent: no texts.
Result<std::vector<std::string>> read_texts(const Json* given) {
  std::vector<std::string> texts;
  if (given == nullptr) return texts;
  if (given->is_string()) {
    if (!given->get_string().empty()) texts.emplace_back(given->get_string());
    return texts;
  }
  if (!given->is_array()) return error(Code::kInvalidArgument, "invalid input type");
  for (const Json& item : given->get_array()) {
    if (!item.is_string()) return error(Code::kInvalidArgument, "invalid input type");
    texts.emplace_back(item.get_string());
  }
  return texts;
}

// The answers below come while the service lives: the server stops what calls them first.
void handle_embed(OllamaService& service, const OllamaFields& fields, const HttpRequest& request,
                  const WriterPtr& writer) {
  Result<EmbedInput> input = read_common(service, fields, request, writer);
  if (!input) return send_ollama_error(*writer, input.error(), "");
  Result<std::vector<std::string>> texts = read_texts(fields.find("input"));
  if (!texts) return send_ollama_error(*writer, texts.error(), "");
  input->texts = std::move(*texts);
  const std::string model = input->model.name;
  const auto begin = Clock::now();
  service.embeddings.embed(
      service.context, std::move(*input), [&service, writer, model, begin](Result<Embeddings> made) {
        if (!made) return send_failure(*writer, service, made.error(), model);
        std::string out = "{\"model\":";
        append_json_string(out, model);
        out += ",\"embeddings\":[";
        for (std::int64_t i = 0; i < made->n_texts; ++i) {
          if (i > 0) out += ',';
          append_row(out, made->row(i));
        }
        const std::chrono::nanoseconds total = Clock::now() - begin;
        out += fmt::format("],\"total_duration\":{},\"prompt_eval_count\":{}", total.count(), made->n_tokens);
        if (!made->truncated.empty()) {
          out += fmt::format(",\"warnings\":[\"texts longer than the context were cut: number {}\"]",
                             fmt::join(made->truncated, ", "));
        }
        writer->send({.body = out + "}"});
      });
}

void handle_embeddings(OllamaService& service, const OllamaFields& fields, const HttpRequest& request,
                       const WriterPtr& writer) {
  Result<EmbedInput> input = read_common(service, fields, request, writer);
  if (!input) return send_ollama_error(*writer, input.error(), "");
  const Result<std::string> prompt = fields.text("prompt");
  if (!prompt) return send_ollama_error(*writer, prompt.error(), "");
  if (!prompt->empty()) input->texts.push_back(*prompt);
  input->options.normalize = false;
  const std::string model = input->model.name;
  service.embeddings.embed(service.context, std::move(*input), [&service, writer, model](Result<Embeddings> made) {
    if (!made) return send_failure(*writer, service, made.error(), model);
    std::string out = "{\"embedding\":";
    append_row(out, made->n_texts > 0 ? made->row(0) : std::span<const float>());
    writer->send({.body = out + "}"});
  });
}

void handle_rerank(OllamaService& service, const OllamaFields& fields, const HttpRequest& request,
                   const WriterPtr& writer) {
  Result<EmbedInput> input = read_common(service, fields, request, writer);
  if (!input) return send_ollama_error(*writer, input.error(), "");
  const Result<std::string> query = fields.text("query");
  if (!query) return send_ollama_error(*writer, query.error(), "");
  Result<std::vector<std::string>> documents = read_texts(fields.find("documents"));
  if (!documents) return send_ollama_error(*writer, documents.error(), "");
  const Result<std::optional<std::int64_t>> top_n = fields.integer("top_n");
  if (!top_n) return send_ollama_error(*writer, top_n.error(), "");
  if (query->empty()) return send_ollama_error(*writer, 400, "field \"query\" is required");
  const auto n_best = static_cast<std::size_t>(std::max<std::int64_t>(1, top_n->value_or(1 << 20)));
  input->texts = *documents;
  input->texts.push_back(*query);
  const std::string model = input->model.name;
  service.embeddings.embed(
      service.context, std::move(*input),
      [&service, writer, model, n_best, documents = std::move(*documents)](Result<Embeddings> made) {
        if (!made) return send_failure(*writer, service, made.error(), model);
        const std::span<const float> query_row = made->row(made->n_texts - 1);
        std::vector<std::pair<float, std::size_t>> scores;  // vectors have length 1: the product is the cosine
        for (std::size_t i = 0; i < documents.size(); ++i) {
          const std::span<const float> row = made->row(static_cast<std::int64_t>(i));
          scores.emplace_back(std::inner_product(row.begin(), row.end(), query_row.begin(), 0.0f), i);
        }
        std::ranges::stable_sort(scores, std::greater(), &std::pair<float, std::size_t>::first);
        scores.resize(std::min(scores.size(), n_best));
        std::string out = "{\"model\":";
        append_json_string(out, model);
        out += ",\"results\":[";
        for (std::size_t k = 0; k < scores.size(); ++k) {
          out += fmt::format("{}{{\"index\":{},\"relevance_score\":", k > 0 ? "," : "", scores[k].second);
          append_json_number(out, scores[k].first);
          out += ",\"document\":";
          append_json_string(out, documents[scores[k].second]);
          out += '}';
        }
        writer->send({.body = out + "]}"});
      });
}

}  // namespace

void add_ollama_embed_routes(Router& router, const OllamaServicePtr& service) {
  const auto add = [&](const char* path, auto handle) {
    router.add(
        {"POST", path, RouteClass::kCompute, [service, handle](const RequestPtr& request, const WriterPtr& writer) {
           const Result<OllamaFields> fields = OllamaFields::parse(request->body);
           if (!fields) return send_ollama_error(*writer, fields.error(), "");
           handle(*service, *fields, *request, writer);
         }});
  };
  add("/api/embed", handle_embed);
  add("/api/embeddings", handle_embeddings);
  add("/api/rerank", handle_rerank);
}

}  // namespace still
