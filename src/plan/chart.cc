#include "plan/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "plan/deployment.h"

namespace still {

namespace {

constexpr std::array kColours = {"#4063d8", "#389826", "#cb3c33", "#9558b2", "#e69f00", "#56b4e9", "#777777"};
constexpr double kPlot = 480, kRight = 110, kLetter = 7;

std::string escape(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '<')
      result += "&lt;";
    else if (c == '>')
      result += "&gt;";
    else if (c == '&')
      result += "&amp;";
    else if (c == '"')
      result += "&quot;";
    else if (static_cast<unsigned char>(c) >= 0x20)
      result += c;
  }
  return result;
}

std::string text_at(double x, double y, std::string_view text, std::string_view anchor = "start") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor, escape(text));
}

}  // namespace

std::string plan_chart_svg(const ChartWords& words, const std::vector<MemoryBar>& bars, const SpeedCurve& curve) {
  std::int64_t largest = 1;
  for (const MemoryBar& bar : bars) {
    std::int64_t sum = 0;
    for (const auto& part : bar.parts) sum += part.second;
    largest = std::max({largest, sum, bar.capacity});
  }
  std::size_t longest = 0;
  for (const MemoryBar& bar : bars) longest = std::max(longest, bar.label.size());
  const double left = std::clamp(kLetter * static_cast<double>(longest) + 16, 170.0, 420.0);
  std::string body = text_at(10, 24, words.title);
  double y = 48;
  for (const MemoryBar& bar : bars) {
    body += text_at(left - 8, y + 15, bar.label, "end");
    double x = left;
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < bar.parts.size(); ++i) {
      const auto& [name, bytes] = bar.parts[i];
      const double width = kPlot * static_cast<double>(bytes) / static_cast<double>(largest);
      body += fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"20\" fill=\"{}\"><title>{} {:.2f} "
          "GiB</title></rect>\n",
          x, y, width, kColours[i % kColours.size()], escape(name), to_gib(bytes));
      x += width;
      sum += bytes;
    }
    const std::string value = fmt::format("{:.2f} GiB", to_gib(sum));
    const double mark = left + kPlot * static_cast<double>(bar.capacity) / static_cast<double>(largest);
    const bool is_crossed = bar.capacity > 0 && mark > x && mark < x + 12 + kLetter * static_cast<double>(value.size());
    body += text_at((is_crossed ? mark : x) + 6, y + 15, value);
    if (bar.capacity > 0) {
      body += fmt::format(
          "<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\" stroke=\"#000\" stroke-dasharray=\"3 "
          "2\"/>\n",
          mark, y - 4, y + 24);
    }
    y += 30;
  }
  if (!bars.empty()) {
    double x = left;
    for (std::size_t i = 0; i < bars.front().parts.size(); ++i) {
      body += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"10\" height=\"10\" fill=\"{}\"/>\n", x, y,
                          kColours[i % kColours.size()]);
      body += text_at(x + 14, y + 10, bars.front().parts[i].first);
      x += 30 + 7.5 * static_cast<double>(bars.front().parts[i].first.size());
    }
    body += fmt::format(
        "<line x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\" stroke=\"#000\" stroke-dasharray=\"3 "
        "2\"/>\n",
        x + 5, y - 1, y + 12);
    body += text_at(x + 14, y + 10, words.capacity);
    y += 34;
  }
  if (curve.points.size() > 1) {
    body += text_at(10, y + 8, words.curve);
    y += 20;
    const double height = 220, bottom = y + height;
    double max_rate = 0;
    for (const SpeedPoint& p : curve.points) max_rate = std::max(max_rate, p.tok_per_s_total.high);
    const double max_log = std::log2(static_cast<double>(curve.points.back().concurrency));
    const auto px = [&](const SpeedPoint& p) {
      return left + kPlot * (max_log > 0 ? std::log2(static_cast<double>(p.concurrency)) / max_log : 0);
    };
    const auto py = [&](double rate) { return bottom - height * rate / max_rate; };
    std::string band, total, user;
    for (const SpeedPoint& p : curve.points) {
      band += fmt::format("{:.1f},{:.1f} ", px(p), py(p.tok_per_s_total.high));
      total += fmt::format("{:.1f},{:.1f} ", px(p), py(p.tok_per_s_total.value));
      user += fmt::format("{:.1f},{:.1f} ", px(p), py(p.tok_per_s_user.value));
    }
    for (auto p = curve.points.rbegin(); p != curve.points.rend(); ++p)
      band += fmt::format("{:.1f},{:.1f} ", px(*p), py(p->tok_per_s_total.low));
    // Lines at the round rates.
    const double power = std::pow(10, std::floor(std::log10(max_rate)));
    const double unit = max_rate / power >= 5 ? power : max_rate / power >= 2 ? power / 2 : power / 5;
    for (double rate = 0; rate <= max_rate; rate += unit) {
      body += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#ccc\"/>\n", left,
                          py(rate), left + kPlot, py(rate));
      body += text_at(left - 8, py(rate) + 4, fmt::format("{:.4g}", rate), "end");
    }
    body += fmt::format("<polygon points=\"{}\" fill=\"#4063d8\" opacity=\"0.18\"/>\n", band);
    body += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"#4063d8\" stroke-width=\"2\"/>\n", total);
    body += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"#389826\" stroke-width=\"2\"/>\n", user);
    for (const SpeedPoint& p : curve.points)
      body += text_at(px(p), bottom + 16, std::to_string(p.concurrency), "middle");
    body += text_at(left, bottom + 34, words.caption);
    y = bottom + 44;
  }
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{2}</svg>\n",
      left + kPlot + kRight, y + 10, body);
}

std::string plan_chart_html(std::string_view title, std::string_view svg, bool is_chinese) {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"{}\">\n<head>\n<meta charset=\"utf-8\">\n<title>{}</title>\n<style>body {{ "
      "margin: "
      "2em auto; max-width: 800px; }} svg {{ width: 100%; height: auto; "
      "}}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
      is_chinese ? "zh" : "en", escape(title), svg);
}

}  // namespace still
