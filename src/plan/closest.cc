#include "plan/closest.h"

#include <algorithm>
#include <cctype>
#include <utility>
#include <vector>

namespace still {

namespace {

// Levenshtein's distance.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

}  // namespace

std::string folded_name(std::string_view name) {
  std::string folded;
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80 || std::isalnum(byte) || c == '.' || c == ':')
      folded.push_back(static_cast<char>(std::tolower(byte)));
  }
  return folded;
}

std::string closest_text(std::string_view wanted, std::span<const std::string> names) {
  const std::string folded = folded_name(wanted);
  if (folded.empty()) return {};
  std::vector<std::pair<std::size_t, std::string>> ranked;
  for (const std::string& name : names) {
    const std::string other = folded_name(name);
    const bool contains =
        folded.size() >= 2 && (other.find(folded) != std::string::npos || folded.find(other) != std::string::npos);
    const std::size_t distance = contains ? 1 : edit_distance(folded, other);
    if (distance <= std::max<std::size_t>(2, folded.size() / 2)) ranked.emplace_back(distance, name);
  }
  std::sort(ranked.begin(), ranked.end());
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(3, ranked.size()); ++i)
    text += (i == 0 ? "; closest: " : ", ") + ranked[i].second;
  return text;
}

}  // namespace still
