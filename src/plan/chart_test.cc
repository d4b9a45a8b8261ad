// The drawing: whole XML, one bar for each part, a curve only where there is one.
#include "plan/chart.h"

#include <gtest/gtest.h>

namespace still {
namespace {

std::size_t count(const std::string& text, std::string_view word) {
  std::size_t n = 0;
  for (std::size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++n;
  return n;
}

SpeedCurve rising_curve() {
  SpeedCurve curve;
  for (const std::int64_t n : {1, 2, 4}) {
    const auto rate = static_cast<double>(10 * n);
    curve.points.push_back({.concurrency = n, .tok_per_s_user = {10, 9, 11}, .tok_per_s_total = {rate, rate, rate}});
  }
  return curve;
}

TEST(Chart, DrawsBarsAndCurve) {
  const std::vector<MemoryBar> bars = {
      {.label = "a <b> & c", .parts = {{"weights", 1 << 30}, {"KV cache", 1 << 29}}, .capacity = std::int64_t{2} << 30},
      {.label = "d", .parts = {{"weights", 1 << 28}, {"KV cache", 0}}}};
  const ChartWords words{.title = "title", .capacity = "usable", .curve = "rates", .caption = "at once"};
  const std::string svg = plan_chart_svg(words, bars, rising_curve());
  EXPECT_TRUE(svg.starts_with("<svg "));
  EXPECT_NE(svg.find("a &lt;b&gt; &amp; c"), std::string::npos);
  EXPECT_EQ(count(svg, "<title>"), 4u);
  EXPECT_NE(svg.find("1.50 GiB"), std::string::npos);
  EXPECT_EQ(count(svg, "<polyline"), 2u);
  EXPECT_EQ(count(svg, "<polygon"), 1u);
  for (const char* word : {"title", "usable", "rates", "at once"}) EXPECT_NE(svg.find(word), std::string::npos);
  EXPECT_EQ(count(svg, "<text"), count(svg, "</text>"));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

TEST(Chart, DrawsNoCurveWhereNothingFits) {
  const std::string svg = plan_chart_svg({.title = "t"}, {{.label = "a", .parts = {{"weights", 1}}}}, {});
  EXPECT_EQ(count(svg, "<polyline"), 0u);
  const std::string page = plan_chart_html("t", svg, true);
  EXPECT_NE(page.find("lang=\"zh\""), std::string::npos);
  EXPECT_EQ(page.find("<script"), std::string::npos);
}

}  // namespace
}  // namespace still
