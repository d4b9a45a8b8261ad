// A set of half-open byte ranges: which bytes of a file are here. Kept sorted, disjoint and merged.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

namespace still {

class RangeSet {
 public:
  using Range = std::pair<std::int64_t, std::int64_t>;  // [first, second)

  void add(std::int64_t begin, std::int64_t end) {
    if (begin >= end) return;
    auto it = ranges_.upper_bound(begin);
    if (it != ranges_.begin() && std::prev(it)->second >= begin) --it;
    while (it != ranges_.end() && it->first <= end) {
      begin = std::min(begin, it->first);
      end = std::max(end, it->second);
      it = ranges_.erase(it);
    }
    ranges_[begin] = end;
  }
  void clear() { ranges_.clear(); }
  // The missing parts of [0, size).
  std::vector<Range> gaps(std::int64_t size) const {
    std::vector<Range> missing;
    std::int64_t at = 0;
    for (const auto& [begin, end] : ranges_) {
      if (begin > at) missing.emplace_back(at, std::min(begin, size));
      at = std::max(at, end);
    }
    if (at < size) missing.emplace_back(at, size);
    return missing;
  }
  std::int64_t total() const {
    std::int64_t sum = 0;
    for (const auto& [begin, end] : ranges_) sum += end - begin;
    return sum;
  }
  // [0, prefix()) is here.
  std::int64_t prefix() const {
    const auto it = ranges_.begin();
    return it != ranges_.end() && it->first == 0 ? it->second : 0;
  }
  const std::map<std::int64_t, std::int64_t>& ranges() const { return ranges_; }

 private:
  std::map<std::int64_t, std::int64_t> ranges_;  // begin to end
};

}  // namespace still
