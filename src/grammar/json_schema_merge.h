// Schemas combined before they become grammar: references resolved, allOf and siblings of anyOf folded into one schema.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace still {

// "" for a keyword that holds a schema's meaning here, or says nothing about values; otherwise why it is refused.
std::string_view why_refused(std::string_view keyword, const Json& value);
bool is_annotation(std::string_view keyword);

// The types that a schema may give values of, as it says or as its keywords let guess; all seven where it says nothing.
// Strings as in "type"; kInvalidArgument for others.
Result<std::vector<std::string>> schema_types(const JsonObject& schema, std::string_view place);
bool has_type(const Json& value, std::string_view type);

class SchemaMerger {
 public:
  explicit SchemaMerger(const Json& root, std::string_view name) : root_(root), name_(name) {}

  // The schema that "#/..." points to.
  Result<const Json*> resolve(std::string_view reference, std::string_view place) const;
  // `schema` without $ref (unless it is all there is) and without allOf.
  Result<Json> flatten(const Json& schema, std::string_view place, int depth = 0) const;
  // A schema that both allow; false where that is nothing.
  Result<Json> merge(const Json& a, const Json& b, std::string_view place, int depth = 0) const;
  // Whether no value that the grammar makes from `a` can validate against `b`, and the other way round. Says false in
  // doubt.
  bool are_disjoint(const Json& a, const Json& b, int depth = 0) const;

 private:
  Result<Json> merge_objects(JsonObject a, const JsonObject& b, std::string_view place, int depth) const;

  const Json& root_;
  std::string name_;
};

}  // namespace still
