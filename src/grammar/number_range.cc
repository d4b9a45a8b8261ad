// See number_range.h. A range of signed numbers is two ranges of magnitudes; a magnitude is its digits before the point
// (compared by length, then digit by digit) and those after it.
#include "grammar/number_range.h"

#include <fmt/format.h>

#include <algorithm>

namespace still {
namespace {

using Node = GrammarDraft::Node;
constexpr std::size_t kMaxDigits = 18;

struct Magnitude {
  std::string whole, fraction;
  bool is_exclusive = false;
};

int compare_whole(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return a.size() < b.size() ? -1 : 1;
  return a.compare(b) < 0 ? -1 : a == b ? 0 : 1;
}

std::string increment(std::string digits) {  // digits before the point; "" is zero
  for (std::size_t i = digits.size(); i-- > 0;) {
    if (digits[i] != '9') {
      ++digits[i];
      return digits;
    }
    digits[i] = '0';
  }
  return "1" + digits;
}

std::string decrement(std::string digits) {  // not of zero
  for (std::size_t i = digits.size(); i-- > 0;) {
    if (digits[i] != '0') {
      --digits[i];
      break;
    }
    digits[i] = '9';
  }
  digits.erase(0, digits.find_first_not_of('0') == std::string::npos ? digits.size() : digits.find_first_not_of('0'));
  return digits;
}

class NumberWriter {
 public:
  NumberWriter(GrammarDraft& draft, int max_fraction) : draft_(draft), max_fraction_(max_fraction) {}

  // Magnitudes from `low` to `high` (none: no limit).
  Node magnitudes(const Magnitude& low, const std::optional<Magnitude>& high) {
    if (high && compare_whole(low.whole, high->whole) > 0) return draft_.nothing();
    std::vector<Node> options;
    if (high && low.whole == high->whole) {
      options.push_back(
          with_fraction(low.whole, Bound{low.fraction, low.is_exclusive}, Bound{high->fraction, high->is_exclusive}));
      return draft_.choice(std::move(options));
    }
    options.push_back(with_fraction(low.whole, Bound{low.fraction, low.is_exclusive}, {}));
    if (high) options.push_back(with_fraction(high->whole, {}, Bound{high->fraction, high->is_exclusive}));
    const std::string first = increment(low.whole);
    const std::string last = high ? decrement(high->whole) : std::string(kMaxDigits, '9');
    if (compare_whole(first, last) <= 0) options.push_back(draft_.sequence({wholes(first, last), fraction({}, {})}));
    return draft_.choice(std::move(options));
  }

 private:
  struct Bound {
    std::string digits;
    bool is_exclusive = false;
    bool is_zero() const { return digits.find_first_not_of('0') == std::string::npos; }
  };
  using OptionalBound = std::optional<Bound>;

  Node digit(char first, char last) {
    return draft_.set(CharSet{{static_cast<char32_t>(first), static_cast<char32_t>(last)}});
  }

  Node with_fraction(const std::string& whole, const OptionalBound& low, const OptionalBound& high) {
    return draft_.sequence({draft_.literal(whole.empty() ? "0" : whole), fraction(low, high)});
  }

  // Nothing, or a point and digits, whose value f (0 <= f < 1) is within the bounds.
  Node fraction(const OptionalBound& low, const OptionalBound& high) {
    std::vector<Node> options;
    if (zero_fits(low, high)) options.push_back(draft_.empty());
    if (max_fraction_ > 0)
      options.push_back(draft_.sequence({draft_.literal("."), tail(low, high, max_fraction_, true)}));
    return draft_.choice(std::move(options));
  }

  static bool zero_fits(const OptionalBound& low, const OptionalBound& high) {
    return (!low || (low->is_zero() && !low->is_exclusive)) && (!high || !high->is_zero() || !high->is_exclusive);
  }

  // At most `room` digits t with low <= 0.t <= high; none where that is allowed and `needs_digit` is not set.
  Node tail(const OptionalBound& low, const OptionalBound& high, int room, bool needs_digit) {
    const bool is_free = (!low || (low->is_zero() && !low->is_exclusive)) && !high;
    if (is_free) return draft_.repeat(digit('0', '9'), needs_digit ? 1 : 0, room);
    std::vector<Node> options;
    if (!needs_digit && zero_fits(low, high)) options.push_back(draft_.empty());
    if (room == 0) return draft_.choice(std::move(options));
    const char low_digit = !low || low->digits.empty() ? '0' : low->digits[0];
    const char high_digit = !high ? '9' : high->digits.empty() ? '0' : high->digits[0];
    const auto rest = [](const OptionalBound& bound) {
      Bound shorter{bound->digits.empty() ? "" : bound->digits.substr(1), bound->is_exclusive};
      return shorter;
    };
    for (char d = low_digit; d <= high_digit; ++d) {
      const OptionalBound next_low = low && d == low_digit ? OptionalBound(rest(low)) : std::nullopt;
      const OptionalBound next_high = high && d == high_digit ? OptionalBound(rest(high)) : std::nullopt;
      char last = d;
      if (!next_low && !next_high)
        while (last < high_digit && !(high && last + 1 == high_digit)) ++last;
      options.push_back(draft_.sequence({digit(d, last), tail(next_low, next_high, room - 1, false)}));
      d = last;
    }
    return draft_.choice(std::move(options));
  }

  // Whole numbers from `first` to `last`, both at least 1.
  Node wholes(const std::string& first, const std::string& last) {
    std::vector<Node> options;
    for (std::size_t size = first.size(); size <= last.size(); ++size)
      options.push_back(same_size(size == first.size() ? first : "1" + std::string(size - 1, '0'),
                                  size == last.size() ? last : std::string(size, '9')));
    return draft_.choice(std::move(options));
  }

  // Texts of as many digits as both, from `first` to `last`.
  Node same_size(const std::string& first, const std::string& last) {
    if (first.empty()) return draft_.empty();
    const auto rest = static_cast<std::int32_t>(first.size()) - 1;
    const std::string zeros(first.size() - 1, '0'), nines(first.size() - 1, '9');
    if (first.substr(1) == zeros && last.substr(1) == nines)
      return draft_.sequence({digit(first[0], last[0]), draft_.repeat(digit('0', '9'), rest, rest)});
    if (first[0] == last[0])
      return draft_.sequence({digit(first[0], first[0]), same_size(first.substr(1), last.substr(1))});
    std::vector<Node> options;
    options.push_back(draft_.sequence({digit(first[0], first[0]), same_size(first.substr(1), nines)}));
    if (first[0] + 1 < last[0])
      options.push_back(draft_.sequence({digit(static_cast<char>(first[0] + 1), static_cast<char>(last[0] - 1)),
                                         draft_.repeat(digit('0', '9'), rest, rest)}));
    options.push_back(draft_.sequence({digit(last[0], last[0]), same_size(zeros, last.substr(1))}));
    return draft_.choice(std::move(options));
  }

  GrammarDraft& draft_;
  int max_fraction_;
};

int compare_magnitude(const Decimal& a, const Decimal& b) {
  if (const int order = compare_whole(a.whole, b.whole)) return order;
  const int order = a.fraction.compare(b.fraction);  // no trailing zeros: a prefix is the smaller one
  return order < 0 ? -1 : order > 0 ? 1 : 0;
}

}  // namespace

Result<Decimal> to_decimal(const Json& number, std::string_view place) {
  std::string text;
  if (number.is_int64())
    text = fmt::format("{}", number.get_int64());
  else if (number.is_uint64())
    text = fmt::format("{}", number.get_uint64());
  else if (number.is_double() && number.get_double() == number.get_double())
    text = fmt::format("{}", number.get_double());
  else
    return error(Code::kInvalidArgument, "{}: expected a number", place);
  Decimal out;
  if (text[0] == '-') {
    out.is_negative = true;
    text.erase(0, 1);
  }
  int exponent = 0;
  if (const std::size_t e = text.find('e'); e != std::string::npos) {
    exponent = std::atoi(text.c_str() + e + 1);
    text.resize(e);
  }
  const std::size_t point = text.find('.');
  std::string digits = text;
  int n_whole = static_cast<int>(point == std::string::npos ? text.size() : point) + exponent;
  if (point != std::string::npos) digits.erase(point, 1);
  if (text.find("inf") != std::string::npos || std::abs(exponent) > 400)
    return error(Code::kUnsupported, "{}: {}: a number of this size", place, text);
  if (n_whole <= 0) {
    digits.insert(0, static_cast<std::size_t>(-n_whole), '0');
    n_whole = 0;
  }
  if (static_cast<int>(digits.size()) < n_whole) digits.append(static_cast<std::size_t>(n_whole) - digits.size(), '0');
  out.whole = digits.substr(0, static_cast<std::size_t>(n_whole));
  out.fraction = digits.substr(static_cast<std::size_t>(n_whole));
  out.whole.erase(0, std::min(out.whole.find_first_not_of('0'), out.whole.size()));
  out.fraction.resize(out.fraction.find_last_not_of('0') == std::string::npos ? 0
                                                                              : out.fraction.find_last_not_of('0') + 1);
  if (out.is_zero()) out.is_negative = false;
  return out;
}

int compare(const Decimal& a, const Decimal& b) {
  if (a.is_negative != b.is_negative) return a.is_negative ? -1 : 1;
  const int order = compare_magnitude(a, b);
  return a.is_negative ? -order : order;
}

GrammarDraft::Node add_number(GrammarDraft& draft, const NumberRange& range) {
  NumberWriter writer(draft, range.is_integer ? 0 : range.max_fraction);
  // What lies beyond all numbers that are produced is no limit.
  const auto is_limit = [](const std::optional<NumberBound>& bound) {
    return bound && bound->value.whole.size() <= kMaxDigits;
  };
  const Magnitude zero{"", "", false};
  const auto magnitude = [](const NumberBound& bound) {
    return Magnitude{bound.value.whole, bound.value.fraction, bound.is_exclusive};
  };
  std::vector<Node> options;
  // Zero and above.
  if (!range.high || !range.high->value.is_negative) {
    const bool has_low = range.low && !range.low->value.is_negative;
    options.push_back(writer.magnitudes(has_low ? magnitude(*range.low) : zero,
                                        is_limit(range.high) ? std::optional(magnitude(*range.high)) : std::nullopt));
  }
  // Below zero: magnitudes above zero.
  if (!range.low || range.low->value.is_negative) {
    const bool has_high = range.high && range.high->value.is_negative;
    options.push_back(
        draft.sequence({draft.literal("-"),
                        writer.magnitudes(has_high ? magnitude(*range.high) : Magnitude{"", "", true},
                                          is_limit(range.low) ? std::optional(magnitude(*range.low)) : std::nullopt)}));
  }
  return draft.choice(std::move(options));
}

}  // namespace still
