#include "cli/table.h"

#include <algorithm>

#include "cli/terminal.h"

namespace still {

std::string format_table(const std::vector<Align>& columns, const std::vector<std::vector<std::string>>& rows) {
  std::vector<int> widths(columns.size(), 0);
  for (const auto& row : rows) {
    for (std::size_t c = 0; c < row.size() && c < widths.size(); ++c) {
      widths[c] = std::max(widths[c], display_width(row[c]));
    }
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t c = 0; c < row.size() && c < widths.size(); ++c) {
      const std::string gap(static_cast<std::size_t>(widths[c] - display_width(row[c])), ' ');
      line += columns[c] == Align::kRight ? gap + row[c] : row[c] + gap;
      line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

}  // namespace still
