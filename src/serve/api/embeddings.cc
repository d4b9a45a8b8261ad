// /v1/embeddings (OpenAI) and /v1/rerank (Jina's and Cohere's shape): vectors of texts, and documents in the order of
// how near their vectors come to that of a query.
#include <openssl/evp.h>

#include <algorithm>
#include <numeric>

#include "serve/api/errors.h"
#include "serve/api/json_fields.h"
#include "serve/api/openai_request.h"
#include "serve/context.h"
#include "serve/embedding.h"
#include "serve/model_use.h"

namespace still {

namespace {

using Writer = std::shared_ptr<ResponseWriter>;
constexpr std::size_t kMaxTexts = 2048;

// A string, several, ids, or several lists of ids.
void read_input(JsonFields& fields, EmbedInput& input) {
  const Json* given = fields.find("input");
  const auto fail = [&] {
    fields.fail("input", "must be a string, an array of strings, of token ids, or of arrays of token ids");
  };
  const auto read_ids = [&](const JsonArray& list) {
    std::vector<TokenId> ids;
    for (const Json& id : list) {
      if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > std::numeric_limits<TokenId>::max()) return false;
      ids.push_back(static_cast<TokenId>(id.get_int64()));
    }
    input.ids.push_back(std::move(ids));
    return true;
  };
  if (given == nullptr) return fields.fail("input", "is required");
  if (const auto* text = given->if_string()) {
    input.texts.emplace_back(*text);
    return;
  }
  const JsonArray* list = given->if_array();
  if (list == nullptr) return fail();
  if (list->empty()) return fields.fail("input", "is empty: expected one text or more");
  if (list->size() > kMaxTexts && !list->front().is_number())
    return fields.fail("input", fmt::format("has {} texts: expected at most {}", list->size(), kMaxTexts));
  if (list->front().is_number()) {
    if (!read_ids(*list)) fail();
    return;
  }
  for (const Json& item : *list) {
    const auto* text = item.if_string();
    const JsonArray* ids = item.if_array();
    if (text != nullptr && input.ids.empty())
      input.texts.emplace_back(*text);
    else if (ids == nullptr || ids->empty() || !input.texts.empty() || !read_ids(*ids))
      return fail();
  }
}

// Little-endian f32, as OpenAI's clients ask for it.
void append_base64(std::string& out, std::span<const float> row) {
  std::string text(4 * ((row.size_bytes() + 2) / 3) + 1, '\0');
  const int n = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                                reinterpret_cast<const unsigned char*>(row.data()), static_cast<int>(row.size_bytes()));
  text.resize(static_cast<std::size_t>(n));
  append_json_string(out, text);
}

std::string embeddings_json(const Embeddings& embeddings, const std::string& model, bool is_base64) {
  std::string out = "{\"object\":\"list\",\"data\":[";
  for (std::int64_t i = 0; i < embeddings.n_texts; ++i) {
    out += fmt::format("{}{{\"object\":\"embedding\",\"index\":{},\"embedding\":", i == 0 ? "" : ",", i);
    const std::span<const float> row = embeddings.row(i);
    if (is_base64) {
      append_base64(out, row);
    } else {
      out += '[';
      for (std::size_t k = 0; k < row.size(); ++k) {
        if (k > 0) out += ',';
        append_json_number(out, row[k]);
      }
      out += ']';
    }
    out += '}';
  }
  out += "],\"model\":";
  append_json_string(out, model);
  return out + fmt::format(",\"usage\":{{\"prompt_tokens\":{0},\"total_tokens\":{0}}}}}", embeddings.n_tokens);
}

void create_embeddings(EmbeddingService& service, ServeContext& context, const HttpRequest& request,
                       const Writer& writer) {
  Result<JsonObject> body = parse_body(request.body);
  if (!body) return send_openai_error(*writer, body.error());
  JsonFields fields(*body);
  EmbedInput input;
  read_openai_model(fields, input.model);
  limit_wish(context, request, input.model);
  read_input(fields, input);
  const std::string format = fields.text("encoding_format").value_or("float");
  if (format != "float" && format != "base64")
    fields.fail("encoding_format", fmt::format("is \"{}\": expected float or base64", format));
  input.options.dimensions = fields.integer_in("dimensions", 1, 1 << 20).value_or(0);
  // Nothing is cut in silence: a text that is too long is an error, unless the client wants it cut.
  input.options.truncate = fields.has("truncate_prompt_tokens") || fields.boolean("truncate").value_or(false);
  if (Status status = fields.status(); !status) return send_openai_error(*writer, status.error(), fields.wrong_field());
  input.user = request.key;
  input.options.is_cancelled = [writer] { return writer->is_closed(); };
  const std::string model = input.model.name;
  service.embed(context, std::move(input),
                [writer, model, is_base64 = format == "base64"](Result<Embeddings> embeddings) {
                  if (!embeddings) return send_openai_error(*writer, embeddings.error());
                  writer->send({.body = embeddings_json(*embeddings, model, is_base64)});
                });
}

// Texts of documents: strings, or objects with a text.
std::vector<std::string> read_documents(JsonFields& fields) {
  std::vector<std::string> documents;
  const JsonArray* list = fields.array("documents");
  if (list == nullptr || list->empty()) {
    fields.fail("documents", list == nullptr ? "is required" : "is empty: expected one text or more");
    return documents;
  }
  if (list->size() > kMaxTexts) fields.fail("documents", fmt::format("has more than {} texts", kMaxTexts));
  for (const Json& item : *list) {
    const Json* text = item.is_object() ? item.get_object().if_contains("text") : &item;
    if (text == nullptr || !text->is_string()) {
      fields.fail("documents", "must be an array of strings, or of objects with a text");
      return {};
    }
    documents.emplace_back(text->get_string());
  }
  return documents;
}

std::string rerank_json(const Embeddings& embeddings, const std::vector<std::string>& documents,
                        const std::string& model, std::size_t n_best, bool with_documents) {
  // Vectors have length 1: the product is the cosine. The query is the last.
  const std::span<const float> query = embeddings.row(embeddings.n_texts - 1);
  std::vector<float> scores;
  for (std::int64_t i = 0; i + 1 < embeddings.n_texts; ++i) {
    const std::span<const float> row = embeddings.row(i);
    scores.push_back(std::inner_product(row.begin(), row.end(), query.begin(), 0.0f));
  }
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  order.resize(std::min(order.size(), n_best));
  std::string out = "{\"id\":\"rerank\",\"model\":";
  append_json_string(out, model);
  out += ",\"results\":[";
  bool is_first = true;
  for (const std::size_t i : order) {
    if (!std::exchange(is_first, false)) out += ',';
    out += fmt::format("{{\"index\":{},\"relevance_score\":", i);
    append_json_number(out, scores[i]);
    if (with_documents) {
      out += ",\"document\":{\"text\":";
      append_json_string(out, documents[i]);
      out += '}';
    }
    out += '}';
  }
  return out + fmt::format("],\"usage\":{{\"prompt_tokens\":{0},\"total_tokens\":{0}}}}}", embeddings.n_tokens);
}

void rerank(EmbeddingService& service, ServeContext& context, const HttpRequest& request, const Writer& writer) {
  Result<JsonObject> body = parse_body(request.body);
  if (!body) return send_openai_error(*writer, body.error());
  JsonFields fields(*body);
  EmbedInput input;
  read_openai_model(fields, input.model);
  limit_wish(context, request, input.model);
  const std::string query = fields.required_text("query");
  std::vector<std::string> documents = read_documents(fields);
  const auto n_best = fields.integer_in("top_n", 1, 1 << 20).value_or(1 << 20);
  const bool with_documents = fields.boolean("return_documents").value_or(true);
  if (Status status = fields.status(); !status) return send_openai_error(*writer, status.error(), fields.wrong_field());
  input.texts = documents;
  input.texts.push_back(query);
  input.user = request.key;
  input.options.is_cancelled = [writer] { return writer->is_closed(); };
  const std::string model = input.model.name;
  service.embed(
      context, std::move(input),
      [writer, model, documents = std::move(documents), n_best, with_documents](Result<Embeddings> embeddings) {
        if (!embeddings) return send_openai_error(*writer, embeddings.error());
        writer->send(
            {.body = rerank_json(*embeddings, documents, model, static_cast<std::size_t>(n_best), with_documents)});
      });
}

}  // namespace

void add_embedding_routes(Router& router, ServeContext& context) {
  const auto service = std::make_shared<EmbeddingService>();
  for (const std::string prefix : {"/v1", ""}) {
    router.add({"POST", prefix + "/embeddings", RouteClass::kCompute,
                [service, &context](std::shared_ptr<const HttpRequest> request, Writer writer) {
                  create_embeddings(*service, context, *request, writer);
                }});
    router.add({"POST", prefix + "/rerank", RouteClass::kCompute,
                [service, &context](std::shared_ptr<const HttpRequest> request, Writer writer) {
                  rerank(*service, context, *request, writer);
                }});
  }
}

}  // namespace still
