// See go_template.h.
#include "text/go_template.h"

#include <algorithm>

#include "text/go/interpreter.h"

namespace still::go {

namespace {

constexpr std::string_view kKnownRoles[] = {"system",   "user",    "assistant", "tool",       "developer",
                                            "function", "ipython", "model",     "observation"};

const Json* find_member(const JsonObject& object, std::string_view key) {
  const Json* value = object.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

Text untrusted(std::string_view text) {
  return Text(std::string(text), false);
}

std::string_view string_member(const JsonObject& object, std::string_view key) {
  const Json* value = find_member(object, key);
  return value != nullptr && value->is_string() ? std::string_view(value->get_string()) : std::string_view();
}

// A value that prints as its JSON.
Map with_json(Map map, const Json& json) {
  Text text;
  append_json(text, from_json(json));
  map.json = std::move(text);
  return map;
}

// Members in the order of the API's types, then what they do not know.
JsonObject in_order(const JsonObject& object, std::initializer_list<std::string_view> keys) {
  JsonObject out;
  for (const std::string_view key : keys)
    if (const Json* value = object.if_contains(key)) out.emplace(key, *value);
  for (const auto& [key, value] : object) out.emplace(key, value);
  return out;
}

Map struct_of(std::string type) {
  Map map;
  map.is_struct = true;
  map.type = std::move(type);
  return map;
}

void add(Map& map, std::string_view name, Value value) {
  map.entries.emplace_back(Text(std::string(name), true), std::move(value));
}

// "string", or for several types the JSON list of them.
Value property_type(const JsonObject& property) {
  const Json* type = find_member(property, "type");
  if (type == nullptr) return Text();
  if (type->is_string()) return untrusted(type->get_string());
  if (type->is_array() && type->get_array().size() == 1 && type->get_array()[0].is_string())
    return untrusted(type->get_array()[0].get_string());
  Text text;
  append_json(text, from_json(*type));
  return text;
}

Value property_of(const Json& json) {
  const JsonObject empty;
  const JsonObject object =
      in_order(json.is_object() ? json.get_object() : empty, {"anyOf", "type", "items", "description", "enum"});
  Map map = struct_of("ToolProperty");
  add(map, "Type", property_type(object));
  add(map, "Description", untrusted(string_member(object, "description")));
  const auto member = [&](std::string_view key) {
    const Json* value = find_member(object, key);
    return value != nullptr ? from_json(*value) : Value();
  };
  add(map, "Items", member("items"));
  const Value values = member("enum");
  add(map, "Enum", values.is_nil() ? Value(List()) : values);
  List any_of;
  if (const Json* types = find_member(object, "anyOf"); types != nullptr && types->is_array())
    for (const Json& type : types->get_array()) any_of.items.push_back(from_json(type));
  add(map, "AnyOf", std::move(any_of));
  return with_json(std::move(map), object);
}

Value parameters_of(const JsonObject& object, JsonObject& ordered) {
  ordered = in_order(object, {"type", "$defs", "items", "required", "properties"});
  Map map = struct_of("ToolFunctionParameters");
  add(map, "Type", untrusted(string_member(ordered, "type")));
  List required;
  if (const Json* names = find_member(ordered, "required"); names != nullptr && names->is_array())
    for (const Json& name : names->get_array())
      if (name.is_string()) required.items.emplace_back(untrusted(name.get_string()));
  add(map, "Required", std::move(required));
  Map properties;
  if (Json* members = ordered.if_contains("properties"); members != nullptr && members->is_object())
    for (auto& [key, property] : members->get_object()) {
      properties.entries.emplace_back(untrusted(key), property_of(property));
      if (property.is_object())
        property = in_order(property.get_object(), {"anyOf", "type", "items", "description", "enum"});
    }
  const Json* members = find_member(ordered, "properties");
  add(map, "Properties", with_json(std::move(properties), members != nullptr ? *members : Json(JsonObject())));
  return with_json(std::move(map), ordered);
}

Value tool_of(const Json& json) {
  if (!json.is_object()) fail("a tool is an object");
  JsonObject object = in_order(json.get_object(), {"type", "items", "function"});
  Map function = struct_of("ToolFunction");
  Json* member = object.if_contains("function");
  JsonObject inner = in_order(member != nullptr && member->is_object() ? member->get_object() : JsonObject(),
                              {"name", "description", "parameters"});
  add(function, "Name", untrusted(string_member(inner, "name")));
  add(function, "Description", untrusted(string_member(inner, "description")));
  JsonObject ordered;
  const Json* parameters = find_member(inner, "parameters");
  add(function, "Parameters",
      parameters_of(parameters != nullptr && parameters->is_object() ? parameters->get_object() : JsonObject(),
                    ordered));
  if (parameters != nullptr) inner["parameters"] = ordered;
  Value function_value = with_json(std::move(function), inner);
  if (member != nullptr) *member = inner;
  Map tool = struct_of("Tool");
  add(tool, "Type", untrusted(string_member(object, "type")));
  add(tool, "Function", std::move(function_value));
  return with_json(std::move(tool), object);
}

Value tool_call_of(const Json& json, std::size_t position) {
  if (!json.is_object()) fail("a tool call is an object");
  const JsonObject& object = json.get_object();
  const Json* member = find_member(object, "function");
  const JsonObject& inner = member != nullptr && member->is_object() ? member->get_object() : object;
  Json arguments = JsonObject();
  if (const Json* given = find_member(inner, "arguments")) {
    arguments = *given;
    if (given->is_string()) {
      Result<Json> parsed = parse_json(std::string_view(given->get_string()), "arguments of a tool call");
      if (!parsed) fail("{}", parsed.error().message);
      arguments = std::move(*parsed);
    }
  }
  Map function = struct_of("ToolCallFunction");
  const Json* index = find_member(inner, "index");
  add(function, "Index",
      index != nullptr && index->is_int64() ? index->get_int64() : static_cast<std::int64_t>(position));
  add(function, "Name", untrusted(string_member(inner, "name")));
  const Value plain = from_json(arguments);
  add(function, "Arguments", plain.map() ? Value(with_json(*plain.map(), arguments)) : plain);
  Map call = struct_of("ToolCall");
  add(call, "ID", untrusted(string_member(object, "id")));
  add(call, "Function", std::move(function));
  return call;
}

struct Message {
  std::string role;
  Text content, thinking;
  List tool_calls;
  std::string tool_name, tool_call_id;

  Value value(bool is_last) const {
    const bool is_known = std::ranges::find(kKnownRoles, role) != std::end(kKnownRoles);
    Map map = struct_of("Message");
    add(map, "Role", Text(role, is_known));
    add(map, "Content", content);
    add(map, "Thinking", thinking);
    add(map, "Images", List());
    add(map, "ToolCalls", tool_calls);
    add(map, "ToolName", untrusted(tool_name));
    add(map, "ToolCallID", untrusted(tool_call_id));
    add(map, "Last", is_last);
    return map;
  }
};

// A string, or parts of which the texts count.
Text content_of(const JsonObject& message) {
  const Json* content = find_member(message, "content");
  if (content == nullptr) return untrusted("");
  if (content->is_string()) return untrusted(content->get_string());
  if (!content->is_array()) return untrusted(to_json(*content));
  std::string text;
  for (const Json& part : content->get_array())
    if (part.is_object()) text += string_member(part.get_object(), "text");
  return untrusted(text);
}

// The chat as templates see it: texts of system messages joined, neighbours of one role (but tools) merged.
std::vector<Message> collate(const JsonArray& messages, Text& system) {
  std::vector<Message> collated;
  bool has_system = false;
  for (const Json& json : messages) {
    if (!json.is_object()) fail("a message is an object");
    const JsonObject& object = json.get_object();
    Message message;
    message.role = string_member(object, "role");
    message.content = content_of(object);
    std::string_view thinking = string_member(object, "reasoning_content");
    if (thinking.empty()) thinking = string_member(object, "reasoning");
    if (thinking.empty()) thinking = string_member(object, "thinking");
    message.thinking = untrusted(thinking);
    if (const Json* calls = find_member(object, "tool_calls"); calls != nullptr && calls->is_array())
      for (const Json& call : calls->get_array())
        message.tool_calls.items.push_back(tool_call_of(call, message.tool_calls.items.size()));
    message.tool_name = string_member(object, "tool_name");
    if (message.tool_name.empty()) message.tool_name = string_member(object, "name");
    message.tool_call_id = string_member(object, "tool_call_id");
    if (message.role == "system") {
      if (has_system) system.append("\n\n", true);
      has_system = true;
      system.append(message.content);
    }
    if (!collated.empty() && collated.back().role == message.role && message.role != "tool") {
      Message& before = collated.back();
      before.content.append("\n\n", true);
      before.content.append(message.content);
      for (Value& call : message.tool_calls.items) before.tool_calls.items.push_back(std::move(call));
      if (!message.thinking.empty()) before.thinking = std::move(message.thinking);
    } else {
      collated.push_back(std::move(message));
    }
  }
  return collated;
}

// The members that every rendering has.
Map base_data(const JsonObject& context) {
  Map data;
  const Json* thinking = find_member(context, "enable_thinking");
  if (thinking == nullptr) thinking = find_member(context, "thinking");
  std::string_view level = string_member(context, "think_level");
  if (level.empty()) level = string_member(context, "reasoning_effort");
  const bool is_set = (thinking != nullptr && thinking->is_bool()) || !level.empty();
  add(data, "Think", thinking != nullptr && thinking->is_bool() ? thinking->get_bool() : !level.empty());
  // Levels are words of the API, not text of a message.
  constexpr std::string_view kLevels[] = {"minimal", "low", "medium", "high", "xhigh", "max"};
  add(data, "ThinkLevel", Text(std::string(level), std::ranges::find(kLevels, level) != std::end(kLevels)));
  add(data, "IsThinkSet", is_set);
  return data;
}

// A template without messages runs once for each turn; the last run ends behind .Response, where the answer goes on.
Text render_turns(const ChatTemplate& chat_template, const std::vector<Message>& messages, const Map& base,
                  std::optional<std::chrono::system_clock::time_point> now) {
  Text out, system, prompt, response;
  Limits limits;
  const auto run = [&](bool is_last) {
    Map data = base;
    add(data, "System", std::exchange(system, Text()));
    add(data, "Prompt", std::exchange(prompt, Text()));
    add(data, "Response", std::exchange(response, Text()));
    Environment environment{.data = std::move(data), .limits = limits, .now = now};
    if (is_last && chat_template.response_order > 0) environment.last_order = chat_template.response_order;
    out.append(render(chat_template.parsed, environment));
    limits.max_bytes = std::max<std::int64_t>(Limits().max_bytes - static_cast<std::int64_t>(out.size()), 0);
  };
  for (const Message& message : messages) {
    if (message.role == "system") {
      if (!prompt.empty() || !response.empty()) run(false);
      system = message.content;
    } else if (message.role == "user") {
      if (!response.empty()) run(false);
      prompt = message.content;
    } else if (message.role == "assistant") {
      response = message.content;
    }
  }
  run(true);
  return out;
}

}  // namespace

ChatTemplate parse_chat_template(std::string_view source) {
  ChatTemplate chat_template;
  chat_template.parsed = parse_template(source);
  chat_template.reads_messages = chat_template.parsed.reads("messages");
  chat_template.reads_tools = chat_template.parsed.reads("tools");
  if (!chat_template.reads_messages && !chat_template.parsed.reads("response")) {
    // The answer's place is the end.
    const Template answer = parse_template("{{ .Response }}");
    Node node = answer.body[0];
    node.order = std::numeric_limits<int>::max();
    chat_template.parsed.body.push_back(std::move(node));
  }
  chat_template.response_order = chat_template.parsed.first_response();
  return chat_template;
}

Text render_chat(const ChatTemplate& chat_template, const JsonObject& context,
                 std::optional<std::chrono::system_clock::time_point> now) {
  Map data = base_data(context);
  const std::string_view prompt = string_member(context, "prompt"), suffix = string_member(context, "suffix");
  if (!prompt.empty() && !suffix.empty()) {
    add(data, "Prompt", untrusted(prompt));
    add(data, "Suffix", untrusted(suffix));
    add(data, "Response", Text());
    return render(chat_template.parsed, {.data = std::move(data), .now = now});
  }
  const Json* given = find_member(context, "messages");
  if (given == nullptr || !given->is_array()) fail("the variable messages is no list");
  Text system;
  const std::vector<Message> messages = collate(given->get_array(), system);
  if (!chat_template.reads_messages) return render_turns(chat_template, messages, data, now);
  List list;
  for (std::size_t i = 0; i < messages.size(); ++i) list.items.push_back(messages[i].value(i + 1 == messages.size()));
  add(data, "System", std::move(system));
  add(data, "Messages", std::move(list));
  add(data, "Response", Text());
  if (const Json* tools = find_member(context, "tools");
      tools != nullptr && tools->is_array() && !tools->get_array().empty()) {
    List values;
    Text json;
    json.append("[", true);
    for (const Json& tool : tools->get_array()) {
      values.items.push_back(tool_of(tool));
      if (values.items.size() > 1) json.append(",", true);
      append_json(json, values.items.back());
    }
    json.append("]", true);
    values.json = std::move(json);
    add(data, "Tools", std::move(values));
  } else {
    add(data, "Tools", List());
  }
  return render(chat_template.parsed, {.data = std::move(data), .now = now});
}

}  // namespace still::go
