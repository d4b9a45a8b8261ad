// The nearest names to one that does not exist, for messages.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace still {

// Lower case, without the separators that people write differently: "Q4-K_M" -> "q4km".
std::string folded_name(std::string_view name);
// "; closest: a, b, c", or empty if nothing is near.
std::string closest_text(std::string_view wanted, std::span<const std::string> names);

}  // namespace still
