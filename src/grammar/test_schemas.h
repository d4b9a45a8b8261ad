// For the tests of grammar/ only: random schemas of what is supported, and a validator that shares no code with the
// grammar. tools/check_structured_output.py judges the same pairs with the jsonschema package.
#pragma once

#include <cmath>
#include <regex>
#include <string>

#include "base/json.h"
#include "base/rng.h"
#include "text/unicode.h"

namespace still::test {

class SchemaGenerator {
 public:
  explicit SchemaGenerator(std::uint64_t seed) : rng_(seed) {}

  Json make() {
    JsonObject defs;
    for (const char* name : {"leaf", "node", "tree"}) defs[name] = name == std::string("tree") ? tree() : schema(1);
    JsonObject root = object(3);
    if (chance(5)) root = JsonObject{{"type", "array"}, {"items", schema(3)}, {"minItems", 1}, {"maxItems", 3}};
    root["$defs"] = defs;
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema";
    return root;
  }

 private:
  std::int64_t below(std::int64_t n) { return rng_.below(n); }
  bool chance(int one_in) { return below(one_in) == 0; }

  static Json tree() {
    return *parse_json(
        R"({"type":"object","properties":{"v":{"type":"integer"},"kids":{"type":"array","items":{"$ref":"#/$defs/tree"},
      "maxItems":2}},"required":["v","kids"],"additionalProperties":false})",
        "tree");
  }

  std::string word() {
    constexpr const char* kWords[] = {"a", "ab", "name", "id", "größe", "x/y", "sp ace", "q\"uote", "z", "名前", "na"};
    return kWords[below(11)];
  }

  Json value() {
    switch (below(6)) {
      case 0:
        return Json(word());
      case 1:
        return Json(below(2000) - 1000);
      case 2:
        return Json(static_cast<double>(below(1000)) / 8);
      case 3:
        return Json(chance(2));
      case 4:
        return Json(nullptr);
      default:
        return Json(JsonObject{{word(), JsonArray{Json(below(9)), Json("x")}}});
    }
  }

  JsonObject string() {
    JsonObject s{{"type", "string"}};
    constexpr const char* kPatterns[] = {
        "^[a-z]{2,5}$", "^(foo|bar)+-\\d{1,3}$",    "^\\w+@\\w+\\.(com|org)$",   "^[^\"\\\\]{1,8}$",  "[0-9]{3}",
        "^x.*",         "^\\s?[\\u00e0-\\u00ff]*$", "^(?:a|b(c|d){2})?\\/\\\\$", "^[\\\"'\\n]{1,3}$", "end$"};
    constexpr const char* kFormats[] = {"date", "date-time", "uuid", "ipv4", "email", "time"};
    switch (below(4)) {
      case 0:
        s["pattern"] = kPatterns[below(10)];
        break;
      case 1: {
        const auto min = below(6);
        s["minLength"] = min;
        if (chance(2)) s["maxLength"] = min + below(8);
        break;
      }
      case 2:
        if (chance(2)) s["format"] = kFormats[below(6)];
        break;
      default:
        break;
    }
    return s;
  }

  JsonObject number() {
    const bool is_integer = chance(2);
    JsonObject s{{"type", is_integer ? "integer" : "number"}};
    const auto low = static_cast<double>(below(4000) - 2000) / (is_integer ? 1 : 16);
    const double high = low + static_cast<double>(1 + below(3000)) / (is_integer ? 1 : 8);
    const auto set = [&](const char* key, double bound) {
      is_integer ? s[key] = static_cast<std::int64_t>(bound) : s[key] = bound;
    };
    if (chance(2))
      set("minimum", low);
    else if (chance(3))
      set("exclusiveMinimum", low);
    if (chance(2))
      set("maximum", high);
    else if (chance(3))
      set("exclusiveMaximum", high + 2);
    const bool bounded = s.contains("minimum") && s.contains("maximum");
    const bool free = s.size() == 1;
    if (is_integer && (free || (bounded && high - low > 20)) && chance(3)) s["multipleOf"] = 2 + below(9);
    return s;
  }

  JsonObject array(int depth) {
    JsonObject s{{"type", "array"}};
    if (chance(3)) {
      JsonArray prefix;
      for (auto n = 1 + below(3); n > 0; --n) prefix.push_back(schema(depth - 1));
      const auto n = static_cast<std::int64_t>(prefix.size());
      s["prefixItems"] = prefix;
      if (chance(2)) s["items"] = chance(2) ? Json(false) : schema(depth - 1);
      s["minItems"] = below(n + 1);
      s["maxItems"] = n + (s.contains("items") && !s["items"].is_bool() ? below(3) : 0);
      return s;
    }
    s["items"] = schema(depth - 1);
    if (chance(2)) s["minItems"] = below(3);
    if (chance(2)) s["maxItems"] = 2 + below(3);
    return s;
  }

  JsonObject object(int depth) {
    JsonObject s{{"type", "object"}};
    JsonObject properties;
    JsonArray required;
    for (auto n = 1 + below(4); n > 0; --n) {
      const std::string key = word();
      if (properties.contains(key)) continue;
      properties[key] = schema(depth - 1);
      if (!chance(3)) required.emplace_back(key);
    }
    const auto n = static_cast<std::int64_t>(properties.size()),
               n_required = static_cast<std::int64_t>(required.size());
    s["properties"] = properties;
    s["required"] = required;
    switch (below(4)) {
      case 0:
        s["additionalProperties"] = false;
        break;
      case 1:
        s["additionalProperties"] = schema(depth - 1);
        break;
      default:
        break;
    }
    if (chance(4))
      s["maxProperties"] = std::max<std::int64_t>(n_required, n - 1) + (s.contains("additionalProperties") ? 1 : 0);
    if (chance(4))
      s["minProperties"] = std::min<std::int64_t>(n, s.contains("maxProperties") ? s["maxProperties"].as_int64() : n);
    if (chance(6))
      s = JsonObject{{"type", "object"},
                     {"patternProperties", JsonObject{{"^k[0-9]{1,2}$", schema(depth - 1)}}},
                     {"additionalProperties", false}};
    if (chance(8))
      s = JsonObject{{"type", "object"},
                     {"propertyNames", JsonObject{{"pattern", "^[a-f]{1,3}$"}}},
                     {"additionalProperties", schema(depth - 1)}};
    return s;
  }

  Json schema(int depth) {
    switch (depth <= 0 ? below(6) : below(13)) {
      case 0:
        return number();
      case 1:
      case 2:
        return string();
      case 3:
        return JsonObject{{"enum", JsonArray{value(), value(), Json("other")}}};
      case 4:
        return chance(2) ? Json(JsonObject{{"const", value()}})
                         : Json(JsonObject{{"type", JsonArray{"boolean", "null", "integer"}}});
      case 5:
        return JsonObject{{"type", "boolean"}};
      case 6:
        return array(depth);
      case 7:
      case 8:
        return object(depth);
      case 9:
        return JsonObject{{"anyOf", JsonArray{schema(depth - 1), schema(depth - 1)}}};
      case 10:
        return JsonObject{
            {"oneOf", JsonArray{tagged("cat", depth), tagged("dog", depth), Json(JsonObject{{"type", "null"}})}}};
      case 11:
        return JsonObject{{"$ref", chance(3) ? "#/$defs/tree" : chance(2) ? "#/$defs/node" : "#/$defs/leaf"}};
      default:
        return JsonObject{{"allOf", JsonArray{tagged("a", depth),
                                              Json(JsonObject{{"properties", JsonObject{{"more", schema(depth - 1)}}},
                                                              {"required", JsonArray{"more"}}})}}};
    }
  }

  Json tagged(const char* tag, int depth) {
    return JsonObject{{"type", "object"},
                      {"properties", JsonObject{{"kind", JsonObject{{"const", tag}}}, {"value", schema(depth - 1)}}},
                      {"required", JsonArray{"kind"}}};
  }

  Rng rng_;
};

// Whether `value` validates; formats are not looked at.
inline bool validates(const Json& value, const Json& schema, const Json& root) {
  if (schema.is_bool()) return schema.get_bool();
  const JsonObject& s = schema.get_object();
  const auto number = [](const Json& n) { return n.to_number<double>(); };
  const auto n_chars = [](std::string_view text) {
    std::int64_t n = 0;
    for (const char c : text) n += (c & 0xc0) != 0x80;
    return n;
  };
  for (const auto& [key, rule] : s) {
    if (key == "$ref") {
      const std::string_view path = rule.get_string();
      const Json* at = path == "#" ? &root : &root.at("$defs").at(path.substr(8));
      if (!validates(value, *at, root)) return false;
    } else if (key == "allOf" || key == "anyOf" || key == "oneOf") {
      std::size_t fits = 0;
      for (const Json& branch : rule.get_array()) fits += validates(value, branch, root);
      if (key == "allOf" ? fits != rule.get_array().size() : key == "anyOf" ? fits == 0 : fits != 1) return false;
    } else if (key == "enum") {
      if (std::ranges::find(rule.get_array(), value) == rule.get_array().end()) return false;
    } else if (key == "const") {
      if (value != rule) return false;
    } else if (key == "type") {
      const auto is = [&](std::string_view type) {
        if (type == "object") return value.is_object();
        if (type == "array") return value.is_array();
        if (type == "string") return value.is_string();
        if (type == "boolean") return value.is_bool();
        if (type == "null") return value.is_null();
        return value.is_number() && (type == "number" || number(value) == std::floor(number(value)));
      };
      const bool fits = rule.is_string()
                            ? is(rule.get_string())
                            : std::ranges::any_of(rule.get_array(), [&](const Json& t) { return is(t.get_string()); });
      if (!fits) return false;
    } else if (value.is_number()) {
      if (key == "minimum" && number(value) < number(rule)) return false;
      if (key == "maximum" && number(value) > number(rule)) return false;
      if (key == "exclusiveMinimum" && number(value) <= number(rule)) return false;
      if (key == "exclusiveMaximum" && number(value) >= number(rule)) return false;
      // Exact in integers; a multiple beyond 64 bits became a double and cannot be judged.
      if (key == "multipleOf" && value.is_int64() && value.get_int64() % rule.as_int64() != 0) return false;
    } else if (value.is_string()) {
      const std::string text(value.get_string());
      if (key == "minLength" && n_chars(text) < rule.as_int64()) return false;
      if (key == "maxLength" && n_chars(text) > rule.as_int64()) return false;
      // std::regex knows bytes only.
      const bool is_ascii = std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x80; });
      if (key == "pattern" && is_ascii && rule.as_string().find("\\u") == std::string::npos &&
          !std::regex_search(text, std::regex(std::string(rule.as_string()))))
        return false;
    } else if (const JsonArray* array = value.if_array()) {
      const auto n = static_cast<std::int64_t>(array->size());
      const std::size_t n_prefix = s.contains("prefixItems") ? s.at("prefixItems").get_array().size() : 0;
      if (key == "minItems" && n < rule.as_int64()) return false;
      if (key == "maxItems" && n > rule.as_int64()) return false;
      for (std::size_t i = 0; i < array->size(); ++i) {
        if (key == "prefixItems" && i < n_prefix && !validates((*array)[i], rule.get_array()[i], root)) return false;
        if (key == "items" && i >= n_prefix && !validates((*array)[i], rule, root)) return false;
      }
    } else if (const JsonObject* object = value.if_object()) {
      const auto n = static_cast<std::int64_t>(object->size());
      if (key == "minProperties" && n < rule.as_int64()) return false;
      if (key == "maxProperties" && n > rule.as_int64()) return false;
      if (key == "required")
        for (const Json& name : rule.get_array())
          if (!object->contains(name.get_string())) return false;
      for (const auto& [name, member] : *object) {
        const Json* known = s.contains("properties") ? s.at("properties").get_object().if_contains(name) : nullptr;
        bool matches = false;
        if (s.contains("patternProperties"))
          for (const auto& [pattern, sub] : s.at("patternProperties").get_object())
            if (std::regex_search(std::string(name), std::regex(std::string(pattern)))) {
              matches = true;
              if (key == "patternProperties" && !validates(member, sub, root)) return false;
            }
        if (key == "properties" && known && !validates(member, *known, root)) return false;
        if (key == "propertyNames" && !validates(Json(name), rule, root)) return false;
        if (key == "additionalProperties" && !known && !matches && !validates(member, rule, root)) return false;
      }
    }
  }
  return true;
}

}  // namespace still::test
