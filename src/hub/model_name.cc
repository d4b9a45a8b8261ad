// See model_name.h.
#include "hub/model_name.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "hub/ascii.h"

namespace still {

namespace {

constexpr std::size_t kMaxPartSize = 80;

bool is_alnum(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

Status check_part(std::string_view part, std::string_view role, std::string_view whole) {
  const auto fail = [&](std::string_view why) {
    return error(Code::kInvalidArgument, "{} is not a model name: the {} {} {}; names look like qwen2.5:0.5b",
                 quoted_name(whole), role, quoted_name(part), why);
  };
  if (part.empty()) return fail("is empty");
  if (part.size() > kMaxPartSize) return fail("is longer than 80 characters");
  if (!is_alnum(part[0])) return fail("does not begin with a letter or digit");
  for (const char c : part) {
    if (!is_alnum(c) && c != '.' && c != '_' && c != '-') return fail("has a character other than a-z 0-9 . _ -");
  }
  if (part.find("..") != std::string_view::npos) return fail("contains \"..\"");
  // "a/x.json" would be both the folder of model x.json in namespace a and the manifest of a:x.
  if (role != "tag" && part.ends_with(".json")) return fail("ends in .json");
  return ok();
}

// Levenshtein distance: insertions, deletions, substitutions.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string quoted_name(std::string_view text) {
  std::size_t n_shown = 100;
  if (text.size() <= n_shown) return fmt::format("\"{}\"", text);
  while (n_shown > 0 && (text[n_shown] & 0xC0) == 0x80) --n_shown;  // whole characters
  return fmt::format("\"{}...\"", text.substr(0, n_shown));
}

Result<ModelName> ModelName::parse(std::string_view text) {
  const std::string lower = to_lower(text);
  std::string_view rest = lower;
  ModelName name;
  if (const auto colon = rest.rfind(':'); colon != std::string_view::npos) {
    name.tag = rest.substr(colon + 1);
    rest = rest.substr(0, colon);
  }
  if (const auto slash = rest.find('/'); slash != std::string_view::npos) {
    name.space = rest.substr(0, slash);
    rest = rest.substr(slash + 1);
    STILL_TRY_STATUS(check_part(name.space, "namespace", text));
  }
  name.model = rest;
  STILL_TRY_STATUS(check_part(name.model, "model", text));
  STILL_TRY_STATUS(check_part(name.tag, "tag", text));
  return name;
}

std::string ModelName::repository() const {
  return space.empty() ? model : space + "/" + model;
}
std::string ModelName::str() const {
  return repository() + ":" + tag;
}

std::string sanitize_name_part(std::string_view text) {
  std::string out;
  for (char c : text) {
    c = to_lower(c);
    const bool fine = is_alnum(c) || c == '_' || c == '-' || (c == '.' && !out.ends_with('.'));
    if (!out.empty() || is_alnum(c)) out += fine ? c : '-';
    if (out.size() == kMaxPartSize) break;
  }
  while (!out.empty() && !is_alnum(out.back())) out.pop_back();
  if (out.ends_with(".json")) out += "-model";
  return out.empty() ? "model" : out;
}

std::vector<std::string> closest_names(std::string_view wanted, const std::vector<std::string>& candidates,
                                       std::size_t n_max) {
  std::vector<std::pair<std::size_t, std::string>> ranked;
  for (const std::string& candidate : candidates) {
    const bool contains = wanted.size() >= 3 && candidate.find(wanted) != std::string::npos;
    // Who names no tag is not told apart by tags.
    const bool has_tag = wanted.find(':') != std::string_view::npos;
    const std::size_t distance =
        contains ? 1 : edit_distance(wanted, has_tag ? candidate : candidate.substr(0, candidate.find(':')));
    if (distance <= std::max<std::size_t>(2, wanted.size() / 3)) ranked.emplace_back(distance, candidate);
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<std::string> names;
  for (auto& [distance, name] : ranked) {
    if (names.size() < n_max) names.push_back(std::move(name));
  }
  return names;
}

}  // namespace still
