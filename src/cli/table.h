// Tables of text: columns as wide as their widest cell, two spaces between them.
#pragma once

#include <string>
#include <vector>

namespace still {

enum class Align { kLeft, kRight };

// The first row is the heading. Rows may be shorter than `columns`.
std::string format_table(const std::vector<Align>& columns, const std::vector<std::vector<std::string>>& rows);

}  // namespace still
