#include "serve/api/tokenize.h"

#include <fmt/format.h>

#include "serve/api/errors.h"
#include "serve/api/json_fields.h"
#include "serve/api/openai_request.h"
#include "serve/model_use.h"
#include "serve/prompt.h"
#include "text/detokenizer.h"

namespace still {

namespace {

using Writer = std::shared_ptr<ResponseWriter>;

// Runs `answer` with the model that the client named, or with the one there is, and sends its JSON.
void answer_with_model(ServeContext& context, std::string_view name, const Writer& writer,
                       std::function<Result<std::string>(const ServedModel&)> answer) {
  Result<std::string> model = model_or_default(context, name);
  if (!model) {
    send_openai_error(*writer, model.error(), "model");
    return;
  }
  use_model(context, {.name = *model}, [writer, answer = std::move(answer)](Result<std::shared_ptr<ModelLease>> lease) {
    if (!lease) {
      send_openai_error(*writer, lease.error());
      return;
    }
    Result<std::string> body = answer((*lease)->model());
    if (body)
      writer->send({.body = std::move(*body)});
    else
      send_openai_error(*writer, body.error());
  });
}

std::int64_t context_of(const ServedModel& served) {
  return served.engine != nullptr ? served.engine->context() : served.model->config().max_seq_len;
}

std::string tokens_json(const ServedModel& served, const std::vector<TokenId>& ids, bool with_texts, bool with_pieces) {
  const Tokenizer& tokenizer = served.model->tokenizer();
  std::string out = fmt::format("{{\"count\":{},\"max_model_len\":{},\"tokens\":[", ids.size(), context_of(served));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out += ',';
    if (!with_pieces) {
      out += std::to_string(ids[i]);
      continue;
    }
    out += fmt::format("{{\"id\":{},\"piece\":", ids[i]);
    append_json_bytes(out, tokenizer.token_bytes(ids[i]));
    out += '}';
  }
  out += "],\"token_strs\":";
  if (!with_texts) return out + "null}";
  out += '[';
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out += ',';
    append_json_bytes(out, tokenizer.token_text(ids[i]));
  }
  return out + "]}";
}

void tokenize(ServeContext& context, const HttpRequest& request, const Writer& writer) {
  Result<JsonObject> body = parse_body(request.body);
  if (!body) return send_openai_error(*writer, body.error());
  JsonFields fields(*body);
  const std::string name = fields.text("model").value_or("");
  const bool with_texts = fields.boolean("return_token_strs").value_or(false);
  const bool with_pieces = fields.boolean("with_pieces").value_or(false);
  GenerationInput input;
  input.tools.choice = ToolWish::Choice::kAuto;
  if (fields.has("messages")) {
    ChatInput chat;
    chat.messages = read_openai_messages(fields, chat.continue_final_message);
    if (fields.boolean("continue_final_message").value_or(false)) chat.continue_final_message = true;
    input.prompt = std::move(chat);
    read_openai_thinking(fields, input);
    read_openai_tools(fields, input.tools);
  } else {
    // vLLM's name, or llama-server's, which adds nothing unless asked.
    const bool is_content = fields.has("content") && !fields.has("prompt");
    TextInput text;
    text.text = is_content ? fields.text("content").value_or("") : fields.required_text("prompt");
    const bool adds_special =
        fields.boolean("add_special_tokens").value_or(fields.boolean("add_special").value_or(!is_content));
    text.add_special_tokens = adds_special;
    input.prompt = std::move(text);
  }
  if (Status status = fields.status(); !status) return send_openai_error(*writer, status.error(), fields.wrong_field());
  answer_with_model(
      context, name, writer,
      [input = std::move(input), with_texts, with_pieces](const ServedModel& served) -> Result<std::string> {
        // Text as it is: an empty one has no tokens.
        const auto* text = std::get_if<TextInput>(&input.prompt);
        if (text != nullptr) {
          const Tokenizer& tokenizer = served.model->tokenizer();
          std::vector<TokenId> ids = tokenizer.encode(text->text);
          if (text->add_special_tokens && tokenizer.adds_bos() && tokenizer.bos() >= 0 &&
              (ids.empty() || ids.front() != tokenizer.bos()))
            ids.insert(ids.begin(), tokenizer.bos());
          return tokens_json(served, ids, with_texts, with_pieces);
        }
        STILL_TRY(const std::vector<TokenId> ids, prompt_tokens(input, served));
        return tokens_json(served, ids, with_texts, with_pieces);
      });
}

void detokenize(ServeContext& context, const HttpRequest& request, const Writer& writer) {
  Result<JsonObject> body = parse_body(request.body);
  if (!body) return send_openai_error(*writer, body.error());
  JsonFields fields(*body);
  const std::string name = fields.text("model").value_or("");
  if (!fields.has("tokens")) fields.fail("tokens", "is required");
  const std::vector<std::int64_t> tokens = fields.integers("tokens");
  if (Status status = fields.status(); !status) return send_openai_error(*writer, status.error(), fields.wrong_field());
  answer_with_model(context, name, writer, [tokens](const ServedModel& served) -> Result<std::string> {
    const Tokenizer& tokenizer = served.model->tokenizer();
    std::vector<TokenId> ids;
    for (const std::int64_t id : tokens) {
      if (id < 0 || id >= tokenizer.vocab_size())
        return error(Code::kInvalidArgument, "field \"tokens\": {} is not in the vocabulary of {}", id,
                     tokenizer.vocab_size());
      ids.push_back(static_cast<TokenId>(id));
    }
    // Both names: vLLM's and llama-server's.
    std::string text;
    append_json_bytes(text, tokenizer.decode(ids, false));
    return fmt::format("{{\"prompt\":{},\"content\":{}}}", text, text);
  });
}

void tokenizer_info(ServeContext& context, const HttpRequest& request, const Writer& writer) {
  std::string name;
  for (const auto& [key, value] : request.query)
    if (key == "model") name = value;
  answer_with_model(context, name, writer, [](const ServedModel& served) -> Result<std::string> {
    const Tokenizer& tokenizer = served.model->tokenizer();
    const auto spelling = [&](TokenId id) { return id >= 0 ? Json(tokenizer.token_text(id)) : Json(nullptr); };
    JsonObject info{{"tokenizer_class", "still"},
                    {"model", served.name},
                    {"vocab_size", tokenizer.vocab_size()},
                    {"model_max_length", context_of(served)},
                    {"add_bos_token", tokenizer.adds_bos()},
                    {"add_eos_token", tokenizer.adds_eos()},
                    {"bos_token", spelling(tokenizer.bos())},
                    {"eos_token", spelling(tokenizer.eos())},
                    {"pad_token", spelling(tokenizer.padding())},
                    {"chat_template", nullptr}};
    if (served.chat_template) info["chat_template"] = served.chat_template->source();
    return to_json(info);
  });
}

}  // namespace

void add_tokenize_routes(Router& router, ServeContext& context) {
  const auto add = [&](std::string method, std::string pattern, auto handler) {
    router.add({.method = std::move(method),
                .pattern = std::move(pattern),
                .route_class = RouteClass::kRead,
                .handler = [&context, handler](std::shared_ptr<const HttpRequest> request, Writer writer) {
                  handler(context, *request, writer);
                }});
  };
  add("POST", "/tokenize", tokenize);
  add("POST", "/v1/tokenize", tokenize);
  add("POST", "/detokenize", detokenize);
  add("POST", "/v1/detokenize", detokenize);
  add("GET", "/tokenizer_info", tokenizer_info);
}

}  // namespace still
