#include "serve/tool_calls.h"

#include <algorithm>
#include <random>

#include "text/tool_call_parser.h"

namespace still {

namespace {

std::string new_call_id() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  std::string id = "call_";
  for (int i = 0; i < 24; ++i) id += "0123456789abcdefghijklmnopqrstuv"[random() & 31];
  return id;
}

class ParserReader final : public ToolCallReader {
 public:
  ParserReader(ToolCallFormat format, std::vector<std::string> names, bool is_parallel, const Tokenizer& tokenizer)
      : parser_(format, std::move(names)),
        marks_(tool_call_marks(format)),
        is_parallel_(is_parallel),
        tokenizer_(tokenizer) {}

  void add(const TokenEvent& event, GenerationPiece& piece) override {
    if (!event.text.empty()) put(parser_.feed(event.text), piece);
    // Control tokens have no text of their own.
    const bool is_hidden_mark = event.id >= 0 && !event.is_end && tokenizer_.is_special(event.id) &&
                                std::find(marks_.begin(), marks_.end(), event.bytes) != marks_.end();
    if (is_hidden_mark) put(parser_.feed(event.bytes), piece);
  }
  void finish(GenerationPiece& piece) override { put(parser_.finish(), piece); }

 private:
  void put(std::vector<ToolCallEvent> events, GenerationPiece& piece) {
    for (ToolCallEvent& event : events) {
      if (event.kind == ToolCallEvent::Kind::kContent) {
        piece.content += event.text;
      } else if (is_parallel_ || event.index == 0) {
        piece.tool_calls.push_back({.index = event.index,
                                    .id = event.id.empty() ? new_call_id() : std::move(event.id),
                                    .name = std::move(event.name),
                                    .arguments = std::move(event.arguments)});
      }
    }
  }

  ToolCallParser parser_;
  std::vector<std::string_view> marks_;
  bool is_parallel_;
  const Tokenizer& tokenizer_;
};

class ParserPlan final : public ToolCallPlan {
 public:
  ParserPlan(ToolCallFormat format, std::vector<std::string> names, bool is_parallel,
             std::shared_ptr<const Model> model)
      : format_(format), names_(std::move(names)), is_parallel_(is_parallel), model_(std::move(model)) {}
  std::unique_ptr<ToolCallReader> make_reader() const override {
    return std::make_unique<ParserReader>(format_, names_, is_parallel_, model_->tokenizer());
  }

 private:
  ToolCallFormat format_;
  std::vector<std::string> names_;
  bool is_parallel_;
  std::shared_ptr<const Model> model_;
};

// The functions that may be called: all, or the named one.
std::vector<const JsonObject*> wanted_functions(const ToolWish& wish) {
  std::vector<const JsonObject*> functions;
  for (const Json& tool : wish.tools) {
    const JsonObject* object = tool.if_object();
    const Json* function = object != nullptr ? object->if_contains("function") : nullptr;
    if (function == nullptr || !function->is_object()) continue;
    const Json* name = function->get_object().if_contains("name");
    if (name == nullptr || !name->is_string()) continue;
    if (wish.choice == ToolWish::Choice::kNamed && name->get_string() != wish.name) continue;
    functions.push_back(&function->get_object());
  }
  return functions;
}

// References from the root of a schema that becomes a part of another.
void move_references(Json& schema, const std::string& root) {
  if (JsonArray* array = schema.if_array()) {
    for (Json& item : *array) move_references(item, root);
  } else if (JsonObject* object = schema.if_object()) {
    for (auto& [key, member] : *object) {
      if (key == "$ref" && member.is_string() && member.get_string().starts_with("#"))
        member = root + std::string(std::string_view(member.get_string()).substr(1));
      else
        move_references(member, root);
    }
  }
}

Json parameters_of(const JsonObject& function) {
  const Json* parameters = function.if_contains("parameters");
  const bool has_properties =
      parameters != nullptr && parameters->is_object() && parameters->get_object().contains("properties");
  if (has_properties) return *parameters;
  return JsonObject{{"type", "object"}, {"additionalProperties", true}};
}

class RequiredCallReader final : public ToolCallReader {
 public:
  explicit RequiredCallReader(std::string name) : name_(std::move(name)) {}
  void add(const TokenEvent& event, GenerationPiece&) override { text_ += event.text; }
  void finish(GenerationPiece& piece) override {
    if (text_.empty()) return;
    ToolCallDelta call{.index = 0, .id = new_call_id(), .name = name_, .arguments = std::move(text_)};
    if (name_.empty()) {
      Result<Json> json = parse_json(call.arguments, "call");
      if (!json || !json->is_object() || !json->get_object().contains("name") ||
          !json->get_object().contains("arguments") || !json->at("name").is_string()) {
        piece.content += call.arguments;  // cut off before it was whole
        return;
      }
      call.name = json->at("name").get_string();
      call.arguments = to_json(json->at("arguments"));
    }
    piece.tool_calls.push_back(std::move(call));
  }

 private:
  std::string name_;  // empty: the text says it
  std::string text_;
};

class RequiredCallPlan final : public ToolCallPlan {
 public:
  explicit RequiredCallPlan(std::string name) : name_(std::move(name)) {}
  std::unique_ptr<ToolCallReader> make_reader() const override { return std::make_unique<RequiredCallReader>(name_); }

 private:
  std::string name_;
};

}  // namespace

Json required_call_schema(const ToolWish& wish) {
  const std::vector<const JsonObject*> functions = wanted_functions(wish);
  if (functions.size() == 1) return parameters_of(*functions.front());
  JsonObject definitions;
  JsonArray forms;
  for (std::size_t i = 0; i < functions.size(); ++i) {
    const std::string key = fmt::format("tool{}", i), root = "#/$defs/" + key;
    Json parameters = parameters_of(*functions[i]);
    move_references(parameters, root);
    definitions[key] = std::move(parameters);
    forms.push_back(JsonObject{{"type", "object"},
                               {"properties", JsonObject{{"name", JsonObject{{"const", functions[i]->at("name")}}},
                                                         {"arguments", JsonObject{{"$ref", root}}}}},
                               {"required", JsonArray{"name", "arguments"}},
                               {"additionalProperties", false}});
  }
  return JsonObject{{"$defs", std::move(definitions)}, {"anyOf", std::move(forms)}};
}

std::shared_ptr<const ToolCallPlan> plan_required_call(const ToolWish& wish) {
  const std::vector<const JsonObject*> functions = wanted_functions(wish);
  const bool is_one = functions.size() == 1;
  return std::make_shared<RequiredCallPlan>(is_one ? std::string(functions.front()->at("name").as_string())
                                                   : std::string());
}

std::shared_ptr<const ToolCallPlan> plan_tool_calls(const ToolWish& wish, const ChatTemplate& chat_template,
                                                    const std::shared_ptr<const Model>& model) {
  if (wish.tools.empty() || wish.choice == ToolWish::Choice::kNone) return nullptr;
  const ToolCallFormat format = detect_tool_call_format(chat_template);
  if (format == ToolCallFormat::kNone) return nullptr;
  std::vector<std::string> names;
  for (const JsonObject* function : wanted_functions(wish)) names.emplace_back(function->at("name").as_string());
  return std::make_shared<ParserPlan>(format, std::move(names), wish.parallel, model);
}

}  // namespace still
