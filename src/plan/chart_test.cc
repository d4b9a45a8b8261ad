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

// The value stands beyond the mark of the capacity where it would run over it.
TEST(Chart, WritesNoValueOverTheCapacity) {
  const auto x_of = [](const std::string& svg, std::string_view before) {
    const std::size_t end = svg.find(before), at = svg.rfind(before.starts_with(">") ? " x=\"" : "x1=\"", end);
    return std::stod(svg.substr(svg.find('"', at) + 1));
  };
  for (const std::int64_t percent : {50, 97, 99}) {
    const std::int64_t capacity = std::int64_t{10} << 30;
    const std::string svg = plan_chart_svg(
        {.title = "t"}, {{.label = "a", .parts = {{"weights", capacity / 100 * percent}}, .capacity = capacity}}, {});
    const double value = x_of(svg, percent == 50   ? ">5.00 GiB"
                                   : percent == 97 ? ">9.70 GiB"
                                                   : ">9.90 GiB"),
                 mark = x_of(svg, "stroke-dasharray");
    EXPECT_EQ(value < mark, percent == 50) << percent;
  }
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
