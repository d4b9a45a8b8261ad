// Names of models in the store: [namespace/]model[:tag], tag "latest" when left out. Lower-case, so that a name means
// the same on every file system; checked strictly, because names become paths.
#pragma once

#include <compare>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace still {

struct ModelName {
  std::string space;  // empty: none
  std::string model;
  std::string tag = "latest";

  // Upper case is lowered. Each part: 1 to 80 of a-z 0-9 . _ -, first a letter or digit; no "..", model not "*.json".
  static Result<ModelName> parse(std::string_view text);
  std::string str() const;         // "qwen/qwen2.5:0.5b"; the tag is always there
  std::string repository() const;  // "qwen/qwen2.5"
  auto operator<=>(const ModelName&) const = default;
};

// For messages: what is given as a name, in quotes, and not all of it where it is long.
std::string quoted_name(std::string_view text);

// Turns any text (a file name, a repository) into a valid model part or tag: other characters become '-'.
std::string sanitize_name_part(std::string_view text);

// Up to n_max of `candidates`, nearest first, that differ from `wanted` by few edits or contain it.
std::vector<std::string> closest_names(std::string_view wanted, const std::vector<std::string>& candidates,
                                       std::size_t n_max = 3);

}  // namespace still
