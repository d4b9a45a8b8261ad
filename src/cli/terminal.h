// Terminal: one output stream, and whether a person watches it. Colour and progress only where one does.
// ProgressLine: one line that is drawn over and over on stderr, for whatever may take more than a second.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace still {

class Terminal {
 public:
  Terminal(std::FILE* stream, bool no_colour);
  std::FILE* stream() const { return stream_; }
  bool is_tty() const { return is_tty_; }
  int width() const;  // columns; 80 where unknown
  // Escape sequences; empty where there is no colour.
  const char* dim() const { return has_colour_ ? "\033[2m" : ""; }
  const char* bold() const { return has_colour_ ? "\033[1m" : ""; }
  const char* reset() const { return has_colour_ ? "\033[0m" : ""; }

 private:
  std::FILE* stream_;
  bool is_tty_;
  bool has_colour_;
};

// Columns that the text takes on a terminal: wide characters count two, combining ones none. Invalid UTF-8 counts one a
// byte.
int display_width(std::string_view text);
// Foreign text for one line of a terminal: control characters become spaces, so that a file cannot move the cursor.
std::string printable_line(std::string_view text);

// Nothing is drawn before `delay`; on something other than a terminal a line is printed every ten seconds.
class ProgressLine {
 public:
  using Clock = std::chrono::steady_clock;
  explicit ProgressLine(const Terminal& terminal, std::chrono::milliseconds delay = std::chrono::milliseconds(700));
  ~ProgressLine();  // clears the line
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // share: 0 to 1 draws a bar; negative: unknown. Cheap to call often.
  void update(std::string_view label, double share, std::string_view tail);
  void clear();
  // A line that stays, above the progress line.
  void note(std::string_view text);

 private:
  const Terminal& terminal_;
  Clock::time_point start_;
  Clock::time_point last_draw_;
  std::chrono::milliseconds delay_;
  bool is_drawn_ = false;
};

// "1.2 GB", "12.3 MB/s": see hub's format_bytes. "3 s", "2:05", "1:02:03".
std::string format_duration(double seconds);

}  // namespace still
