#include "cli/terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utf8proc.h>

#include <algorithm>
#include <cmath>

namespace still {

Terminal::Terminal(std::FILE* stream, bool no_colour)
    : stream_(stream), is_tty_(isatty(fileno(stream)) == 1), has_colour_(is_tty_ && !no_colour) {}

int Terminal::width() const {
  winsize size{};
  if (ioctl(fileno(stream_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

int display_width(std::string_view text) {
  int width = 0;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (std::size_t i = 0; i < text.size();) {
    utf8proc_int32_t code_point = -1;
    const utf8proc_ssize_t n = utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code_point);
    width += n > 0 ? utf8proc_charwidth(code_point) : 1;
    i += n > 0 ? static_cast<std::size_t>(n) : 1;
  }
  return width;
}

std::string printable_line(std::string_view text) {
  std::string line;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (std::size_t i = 0; i < text.size();) {
    utf8proc_int32_t code_point = -1;
    const utf8proc_ssize_t n = utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code_point);
    const bool is_control = n > 0 && utf8proc_category(code_point) == UTF8PROC_CATEGORY_CC;
    if (n <= 0) {
      line += "\xEF\xBF\xBD";
    } else if (is_control) {
      line += ' ';
    } else {
      line.append(text.substr(i, static_cast<std::size_t>(n)));
    }
    i += n > 0 ? static_cast<std::size_t>(n) : 1;
  }
  return line;
}

ProgressLine::ProgressLine(const Terminal& terminal, std::chrono::milliseconds delay)
    : terminal_(terminal), start_(Clock::now()), last_draw_(start_), delay_(delay) {}

ProgressLine::~ProgressLine() {
  clear();
}

void ProgressLine::clear() {
  if (!is_drawn_) return;
  fmt::print(terminal_.stream(), "\r\033[K");
  std::fflush(terminal_.stream());
  is_drawn_ = false;
}

void ProgressLine::note(std::string_view text) {
  clear();
  fmt::print(terminal_.stream(), "{}\n", printable_line(text));
  std::fflush(terminal_.stream());
}

void ProgressLine::update(std::string_view label, double share, std::string_view tail) {
  const Clock::time_point now = Clock::now();
  if (now - start_ < delay_) return;
  const auto pause = terminal_.is_tty() ? std::chrono::milliseconds(100) : std::chrono::milliseconds(10000);
  if (is_drawn_ && now - last_draw_ < pause) return;
  if (!terminal_.is_tty() && now - last_draw_ < pause) return;
  last_draw_ = now;
  std::string line(printable_line(label));
  if (share >= 0) line += fmt::format(" {:3.0f}%", std::floor(100 * std::min(share, 1.0)));
  if (!terminal_.is_tty()) {
    fmt::print(terminal_.stream(), "{}{}{}\n", line, tail.empty() ? "" : "  ", tail);
    return;
  }
  const int n_free = terminal_.width() - 1 - display_width(line) - display_width(tail) - 4;
  if (share >= 0 && n_free >= 8) {
    const int n_columns = std::min(n_free, 40);
    const int n_done = static_cast<int>(std::min(share, 1.0) * n_columns);
    line += fmt::format(" [{}{}]", std::string(static_cast<std::size_t>(n_done), '='),
                        std::string(static_cast<std::size_t>(n_columns - n_done), ' '));
  }
  fmt::print(terminal_.stream(), "\r\033[K{} {}", line, tail);
  std::fflush(terminal_.stream());
  is_drawn_ = true;
}

std::string format_duration(double seconds) {
  if (!(seconds >= 0) || seconds > 360000) return "?";
  const auto whole = static_cast<long>(std::lround(seconds));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

}  // namespace still
