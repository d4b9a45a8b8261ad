// JSON numbers within bounds, as grammar nodes: exact decimal comparison digit by digit, without exponents.
#pragma once

#include <optional>
#include <string>

#include "base/json.h"
#include "base/result.h"
#include "grammar/draft.h"

namespace still {

// A decimal number: sign, digits before the point without leading zeros ("" is zero), digits after it without trailing
// zeros.
struct Decimal {
  bool is_negative = false;
  std::string whole, fraction;
  bool is_zero() const { return whole.empty() && fraction.empty(); }
};

// Of a JSON number as it is written at its shortest. kUnsupported for more than 18 digits before or after the point.
Result<Decimal> to_decimal(const Json& number, std::string_view place);
int compare(const Decimal& a, const Decimal& b);

struct NumberBound {
  Decimal value;
  bool is_exclusive = false;
};
struct NumberRange {
  std::optional<NumberBound> low, high;
  bool is_integer = false;
  int max_fraction = 17;  // digits after the point; 0 with is_integer
};

// Matches nothing where the range is empty. Numbers have at most 18 digits before the point.
GrammarDraft::Node add_number(GrammarDraft& draft, const NumberRange& range);

}  // namespace still
