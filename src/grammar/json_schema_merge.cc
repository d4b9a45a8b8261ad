// See json_schema_merge.h.
#include "grammar/json_schema_merge.h"

#include <algorithm>
#include <array>
#include <optional>

#include "grammar/number_range.h"

namespace still {
namespace {

constexpr int kMaxMergeDepth = 40;
constexpr std::size_t kMaxMergeBranches = 64;

constexpr std::string_view kAnnotations[] = {"title",           "description",      "default",       "examples",
                                             "example",         "deprecated",       "readOnly",      "writeOnly",
                                             "$schema",         "$comment",         "$id",           "id",
                                             "$defs",           "definitions",      "$anchor",       "$vocabulary",
                                             "contentEncoding", "contentMediaType", "contentSchema", "nullable",
                                             "strict",          "discriminator"};
constexpr std::string_view kTypes[] = {"object", "array", "string", "number", "integer", "boolean", "null"};

bool contains(const std::vector<std::string>& list, std::string_view word) {
  return std::ranges::find(list, word) != list.end();
}

const Json* find(const JsonObject& object, std::string_view key) {
  return object.if_contains(key);
}

// The finite set of values of a schema with enum or const.
std::optional<JsonArray> finite_values(const JsonObject& schema) {
  const Json* list = find(schema, "enum");
  const Json* single = find(schema, "const");
  if (single) return JsonArray{*single};
  if (list && list->is_array()) return list->get_array();
  return std::nullopt;
}

Json list_of(const std::vector<std::string>& words) {
  JsonArray out;
  for (const std::string& word : words) out.emplace_back(word);
  return out;
}

bool is_number_less(const Json& a, const Json& b) {
  const auto left = to_decimal(a, ""), right = to_decimal(b, "");
  return left && right && compare(*left, *right) < 0;
}

}  // namespace

bool is_annotation(std::string_view keyword) {
  return std::ranges::find(kAnnotations, keyword) != std::end(kAnnotations);
}

std::string_view why_refused(std::string_view keyword, const Json& value) {
  constexpr std::array<std::string_view, 14> kRefused = {"not",
                                                         "if",
                                                         "then",
                                                         "else",
                                                         "dependentRequired",
                                                         "dependentSchemas",
                                                         "dependencies",
                                                         "contains",
                                                         "minContains",
                                                         "maxContains",
                                                         "$dynamicRef",
                                                         "$recursiveRef",
                                                         "$dynamicAnchor",
                                                         "$recursiveAnchor"};
  if (keyword == "uniqueItems")
    return value.is_bool() && !value.get_bool() ? "" : "a token mask cannot compare elements";
  if (keyword == "unevaluatedProperties" || keyword == "unevaluatedItems")
    return value.is_bool() ? "" : "only true and false are supported";
  if (std::ranges::find(kRefused, keyword) != kRefused.end()) return "this keyword is not supported";
  return "";
}

bool has_type(const Json& value, std::string_view type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_bool();
  if (type == "null") return value.is_null();
  if (type == "number") return value.is_number();
  return value.is_int64() || value.is_uint64() ||
         (value.is_double() && value.get_double() == static_cast<double>(static_cast<std::int64_t>(
                                                         std::clamp(value.get_double(), -9e18, 9e18))));
}

Result<std::vector<std::string>> schema_types(const JsonObject& schema, std::string_view place) {
  const Json* type = find(schema, "type");
  std::vector<std::string> types;
  if (!type) {
    if (const auto values = finite_values(schema)) {
      for (const std::string_view name : kTypes)
        if (std::ranges::any_of(*values, [&](const Json& value) { return has_type(value, name); }))
          types.emplace_back(name);
      if (contains(types, "number")) std::erase(types, "integer");
      return types;
    }
    const auto any_of = [&](std::initializer_list<const char*> keys) {
      return std::ranges::any_of(keys, [&](const char* key) { return find(schema, key) != nullptr; });
    };
    if (any_of({"properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
                "maxProperties"}))
      types.emplace_back("object");
    if (any_of({"items", "prefixItems", "minItems", "maxItems", "additionalItems"})) types.emplace_back("array");
    if (any_of({"pattern", "minLength", "maxLength", "format"})) types.emplace_back("string");
    if (any_of({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}))
      types.emplace_back("number");
    if (types.empty()) types = {"object", "array", "string", "number", "boolean", "null"};
    return types;
  }
  const auto add = [&](const Json& word) {
    if (!word.is_string() || std::ranges::find(kTypes, std::string_view(word.get_string())) == std::end(kTypes))
      return false;
    if (!contains(types, word.get_string())) types.emplace_back(word.get_string());
    return true;
  };
  bool good = true;
  if (type->is_array())
    for (const Json& word : type->get_array()) good &= add(word);
  else
    good = add(*type);
  if (!good || types.empty())
    return error(Code::kInvalidArgument,
                 "{}/type: {}: expected object, array, string, number, integer, boolean or null", place,
                 to_json(*type).substr(0, 80));
  if (contains(types, "number")) std::erase(types, "integer");
  return types;
}

Result<const Json*> SchemaMerger::resolve(std::string_view reference, std::string_view place) const {
  const auto unknown = [&] {
    return error(Code::kInvalidArgument, "{}/$ref: \"{}\": the schema has no such place", place,
                 reference.substr(0, 100));
  };
  if (reference.empty() || reference[0] != '#' || (reference.size() > 1 && reference[1] != '/'))
    return error(Code::kUnsupported, "{}/$ref: \"{}\": only references inside the schema (#/...) are supported", place,
                 reference.substr(0, 100));
  const Json* at = &root_;
  std::string_view rest = reference.substr(1);
  while (!rest.empty()) {
    rest.remove_prefix(1);
    const std::size_t end = std::min(rest.find('/'), rest.size());
    std::string key;
    for (std::size_t i = 0; i < end; ++i) {
      if (rest[i] == '~' && i + 1 < end && (rest[i + 1] == '0' || rest[i + 1] == '1')) {
        key += rest[++i] == '0' ? '~' : '/';
      } else if (rest[i] == '%' && i + 2 < end) {
        key += static_cast<char>(std::strtol(std::string(rest.substr(i + 1, 2)).c_str(), nullptr, 16));
        i += 2;
      } else {
        key += rest[i];
      }
    }
    rest.remove_prefix(end);
    if (const JsonObject* object = at->if_object()) {
      at = object->if_contains(key);
    } else if (const JsonArray* array = at->if_array()) {
      const bool is_index = !key.empty() && key.size() < 6 && key.find_first_not_of("0123456789") == std::string::npos;
      at = is_index ? array->if_contains(static_cast<std::size_t>(std::atoi(key.c_str()))) : nullptr;
    } else {
      at = nullptr;
    }
    if (!at) return unknown();
  }
  return at;
}

Result<Json> SchemaMerger::flatten(const Json& schema, std::string_view place, int depth) const {
  const JsonObject* object = schema.if_object();
  if (!object) return schema;
  if (depth > kMaxMergeDepth)
    return error(Code::kInvalidArgument, "{}: references or allOf lead more than {} levels deep, or in a circle", place,
                 kMaxMergeDepth);
  const Json* reference = find(*object, "$ref");
  const Json* all_of = find(*object, "allOf");
  if (!reference && !all_of) return schema;
  if (reference && !reference->is_string()) return error(Code::kInvalidArgument, "{}/$ref: expected a string", place);
  if (all_of && (!all_of->is_array() || all_of->get_array().empty()))
    return error(Code::kInvalidArgument, "{}/allOf: expected an array of schemas", place);

  JsonObject rest;
  bool has_rest = false;
  for (const auto& [key, value] : *object) {
    if (key == "$ref" || key == "allOf") continue;
    rest[key] = value;
    has_rest |= !is_annotation(key);
  }
  if (reference && !has_rest && !all_of) return Json(JsonObject{{"$ref", *reference}});
  Json merged = std::move(rest);
  if (reference) {
    STILL_TRY(const Json* target, resolve(reference->get_string(), place));
    STILL_TRY(Json flat, flatten(*target, place, depth + 1));
    STILL_TRY(merged, merge(flat, merged, place, depth + 1));
  }
  if (all_of) {
    for (std::size_t i = 0; i < all_of->get_array().size(); ++i) {
      STILL_TRY(merged, merge(merged, all_of->get_array()[i], fmt::format("{}/allOf/{}", place, i), depth + 1));
    }
  }
  return merged;
}

Result<Json> SchemaMerger::merge(const Json& a, const Json& b, std::string_view place, int depth) const {
  if (depth > kMaxMergeDepth)
    return error(Code::kInvalidArgument, "{}: references or allOf lead more than {} levels deep, or in a circle", place,
                 kMaxMergeDepth);
  for (const Json* side : {&a, &b}) {
    if (!side->is_object() && !side->is_bool())
      return error(Code::kInvalidArgument, "{}: expected a schema (an object, true or false)", place);
    if (side->is_bool() && !side->get_bool()) return Json(false);
  }
  if (a.is_bool()) return flatten(b, place, depth + 1);
  if (b.is_bool()) return flatten(a, place, depth + 1);
  // A reference alone stays one in flatten(): here its target is needed.
  const auto expand = [&](const Json& side) -> Result<Json> {
    STILL_TRY(Json flat, flatten(side, place, depth + 1));
    for (int i = 0; i < kMaxMergeDepth && flat.is_object() && flat.get_object().contains("$ref"); ++i) {
      STILL_TRY(const Json* target, resolve(flat.get_object().at("$ref").as_string(), place));
      STILL_TRY(flat, flatten(*target, place, depth + 1));
    }
    return flat;
  };
  STILL_TRY(Json left, expand(a));
  STILL_TRY(Json right, expand(b));
  if (!left.is_object() || !right.is_object()) return merge(left, right, place, depth + 1);
  if (left.get_object().contains("$ref") || right.get_object().contains("$ref"))
    return error(Code::kInvalidArgument, "{}: references lead in a circle", place);
  return merge_objects(left.get_object(), right.get_object(), place, depth);
}

Result<Json> SchemaMerger::merge_objects(JsonObject a, const JsonObject& b, std::string_view place, int depth) const {
  const auto both = [](const Json& x, const Json& y) { return Json(JsonObject{{"allOf", JsonArray{x, y}}}); };

  if (a.contains("type") && b.contains("type")) {
    STILL_TRY(const std::vector<std::string> left, schema_types(JsonObject{{"type", a.at("type")}}, place));
    STILL_TRY(const std::vector<std::string> right, schema_types(JsonObject{{"type", b.at("type")}}, place));
    std::vector<std::string> types;
    for (const std::string& type : left)
      if (contains(right, type) || (type == "integer" && contains(right, "number"))) types.push_back(type);
    if (contains(left, "number") && contains(right, "integer")) types.emplace_back("integer");
    if (types.empty()) return Json(false);
    a["type"] = list_of(types);
  }

  // Properties: a key that only one side lists must satisfy the other's additionalProperties.
  const Json* rest_a = find(a, "additionalProperties");
  const Json* rest_b = find(b, "additionalProperties");
  const bool has_a = a.contains("properties"), has_b = b.contains("properties");
  if (has_a || has_b || rest_a || rest_b) {
    for (const JsonObject* side : {static_cast<const JsonObject*>(&a), &b})
      if (side->contains("properties") && !side->at("properties").is_object())
        return error(Code::kInvalidArgument, "{}/properties: expected an object", place);
    const JsonObject none;
    const JsonObject left = has_a ? a.at("properties").get_object() : none;
    const JsonObject& right = has_b ? b.at("properties").get_object() : none;
    JsonObject merged;
    for (const auto& [key, schema] : left) {
      if (const Json* other = right.if_contains(key))
        merged[key] = both(schema, *other);
      else
        merged[key] = rest_b ? both(schema, *rest_b) : schema;
    }
    for (const auto& [key, schema] : right)
      if (!left.contains(key)) merged[key] = rest_a ? both(schema, *rest_a) : schema;
    const std::optional<Json> rest = rest_a && rest_b ? std::optional(both(*rest_a, *rest_b))
                                     : rest_a         ? std::optional(*rest_a)
                                     : rest_b         ? std::optional(*rest_b)
                                                      : std::nullopt;
    if (has_a || has_b) a["properties"] = std::move(merged);
    if (rest) a["additionalProperties"] = *rest;
  }

  for (const auto& [key_view, value] : b) {
    const std::string key(key_view);
    if (key == "type" && a.contains("type")) continue;
    if (key == "properties" || key == "additionalProperties") continue;
    Json* own = a.if_contains(key);
    if (!own) {
      a[key] = value;
      continue;
    }
    if (is_annotation(key) || *own == value) continue;
    if (key == "required") {
      if (!own->is_array() || !value.is_array())
        return error(Code::kInvalidArgument, "{}/required: expected an array of strings", place);
      for (const Json& name : value.get_array())
        if (std::ranges::find(own->get_array(), name) == own->get_array().end()) own->get_array().push_back(name);
    } else if (key == "minimum" || key == "exclusiveMinimum" || key.starts_with("min")) {
      if (is_number_less(*own, value)) *own = value;
    } else if (key == "maximum" || key == "exclusiveMaximum" || key.starts_with("max")) {
      if (is_number_less(value, *own)) *own = value;
    } else if (key == "items" && (own->is_object() || own->is_bool()) && (value.is_object() || value.is_bool())) {
      *own = both(*own, value);
    } else if (key == "enum" && own->is_array() && value.is_array()) {
      JsonArray shared;
      for (const Json& option : own->get_array())
        if (std::ranges::find(value.get_array(), option) != value.get_array().end()) shared.push_back(option);
      if (shared.empty()) return Json(false);
      *own = shared;
    } else if (key == "const") {
      return Json(false);
    } else if (key == "anyOf" && own->is_array() && value.is_array()) {
      JsonArray pairs;
      for (const Json& x : own->get_array())
        for (const Json& y : value.get_array()) pairs.push_back(both(x, y));
      if (pairs.size() > kMaxMergeBranches)
        return error(Code::kResourceExhausted, "{}/anyOf: more than {} combinations", place, kMaxMergeBranches);
      *own = pairs;
    } else if (key == "format" || !why_refused(key, value).empty()) {
      // A format says nothing about validity; what is refused will be, with either value.
    } else if (key == "pattern" || key == "oneOf" || key == "multipleOf" || key == "prefixItems" || key == "items" ||
               key == "patternProperties" || key == "propertyNames" || key == "additionalItems" || key == "anyOf") {
      return error(Code::kUnsupported, "{}/{}: it stands in two schemas that must both hold", place, key);
    }
  }
  (void)depth;
  return Json(std::move(a));
}

bool SchemaMerger::are_disjoint(const Json& a_in, const Json& b_in, int depth) const {
  if (depth > 8) return false;
  const auto expand = [&](const Json& side) -> Result<Json> {
    STILL_TRY(Json flat, flatten(side, ""));
    for (int i = 0; i < 8 && flat.is_object() && flat.get_object().contains("$ref"); ++i) {
      STILL_TRY(const Json* target, resolve(flat.get_object().at("$ref").as_string(), ""));
      STILL_TRY(flat, flatten(*target, ""));
    }
    return flat;
  };
  const auto left = expand(a_in), right = expand(b_in);
  if (!left || !right) return false;
  if ((left->is_bool() && !left->get_bool()) || (right->is_bool() && !right->get_bool())) return true;
  if (!left->is_object() || !right->is_object()) return false;
  const JsonObject &a = left->get_object(), &b = right->get_object();

  // Alternatives on one side: each must be disjoint from the other side.
  for (const auto& [side, other] : {std::pair(&a, &*right), std::pair(&b, &*left)}) {
    for (const char* key : {"anyOf", "oneOf"}) {
      const Json* options = find(*side, key);
      if (!options || !options->is_array()) continue;
      if (std::ranges::all_of(options->get_array(), [&](const Json& x) { return are_disjoint(x, *other, depth + 1); }))
        return true;
    }
  }

  // Types as the schemas say them: a guess from keywords does not keep other values out.
  const auto said_types = [&](const JsonObject& schema) -> std::optional<std::vector<std::string>> {
    if (!schema.contains("type") && !finite_values(schema)) return std::nullopt;
    auto types = schema_types(schema, "");
    return types ? std::optional(*types) : std::nullopt;
  };
  const auto types_a = said_types(a), types_b = said_types(b);
  const auto overlap = [](const std::string& x, const std::string& y) {
    return x == y || (x == "number" && y == "integer") || (x == "integer" && y == "number");
  };
  if (types_a && types_b && std::ranges::none_of(*types_a, [&](const std::string& x) {
        return std::ranges::any_of(*types_b, [&](const std::string& y) { return overlap(x, y); });
      }))
    return true;

  const auto values_a = finite_values(a), values_b = finite_values(b);
  if (values_a && values_b)
    return std::ranges::none_of(*values_a,
                                [&](const Json& x) { return std::ranges::find(*values_b, x) != values_b->end(); });
  if (!types_a || !types_b || types_a->size() != 1 || types_b->size() != 1) return false;
  const std::string& type = (*types_a)[0];
  const auto is_above = [&](const JsonObject& x, const char* min, const JsonObject& y, const char* max) {
    const Json *low = find(x, min), *high = find(y, max);
    return low && high && is_number_less(*high, *low);
  };
  if (type == "string") return is_above(a, "minLength", b, "maxLength") || is_above(b, "minLength", a, "maxLength");
  if (type == "number" || type == "integer")
    return is_above(a, "minimum", b, "maximum") || is_above(b, "minimum", a, "maximum");
  if (type == "array") return is_above(a, "minItems", b, "maxItems") || is_above(b, "minItems", a, "maxItems");
  if (type != "object") return false;

  const auto requires_key = [](const JsonObject& schema, std::string_view key) {
    const Json* list = find(schema, "required");
    return list && list->is_array() && std::ranges::find(list->get_array(), Json(key)) != list->get_array().end();
  };
  const auto property = [](const JsonObject& schema, std::string_view key) -> const Json* {
    const Json* list = find(schema, "properties");
    return list && list->is_object() ? list->get_object().if_contains(key) : nullptr;
  };
  if (const Json* list = find(a, "properties"); list && list->is_object())
    for (const auto& [key, schema] : list->get_object()) {
      const Json* other = property(b, key);
      if (other && (requires_key(a, key) || requires_key(b, key)) && are_disjoint(schema, *other, depth + 1))
        return true;
    }
  // A key that one side must have and the other's values never have, and the same the other way round.
  const auto has_key_missing_in = [&](const JsonObject& x, const JsonObject& y) {
    const Json* list = find(x, "required");
    const Json* rest = find(y, "additionalProperties");
    const bool is_closed = !rest || (rest->is_bool() && !rest->get_bool());
    if (!list || !list->is_array() || !is_closed || !y.contains("properties") || y.contains("patternProperties"))
      return false;
    return std::ranges::any_of(list->get_array(), [&](const Json& key) {
      return key.is_string() && !property(y, key.get_string()) && !requires_key(y, key.get_string());
    });
  };
  return has_key_missing_in(a, b) && has_key_missing_in(b, a);
}

}  // namespace still
