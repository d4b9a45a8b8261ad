// Charts as SVG text: memory by part, and throughput over concurrency.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plan/speed.h"

namespace still {

struct MemoryBar {
  std::string label;
  std::vector<std::pair<std::string, std::int64_t>> parts;  // name, bytes
  std::int64_t capacity = 0;                                // 0: none
};
// What is written beside the figures.
struct ChartWords {
  std::string title;     // of the whole
  std::string capacity;  // of the dashed mark
  std::string curve;     // what the curve is of
  std::string caption;   // under it
};
// A bar for each entry, with its parts, the sum and the capacity's mark; below it, if `curve` has points, tokens/s in
// all and for one user over concurrency, with the interval of the sum.
std::string plan_chart_svg(const ChartWords& words, const std::vector<MemoryBar>& bars, const SpeedCurve& curve);
// A page of its own around the drawing: no script, nothing fetched.
std::string plan_chart_html(std::string_view title, std::string_view svg, bool is_chinese);

}  // namespace still
