// LineEditor: messages from a person at a terminal, by libedit: editing, history, several lines (""" ... """, a
// backslash at the end of a line, or a paste), Ctrl-C and Ctrl-D told apart.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

namespace still {

class LineEditor {
 public:
  enum class Outcome {
    kMessage,
    kInterrupted,  // Ctrl-C: what was typed is dropped
    kEnd,          // Ctrl-D on an empty line, or the terminal is gone
  };

  // The history is loaded now and saved by the destructor, 1000 messages of it; an empty path keeps none.
  explicit LineEditor(std::filesystem::path history_file);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // One message, its lines joined, without the quotes and the last newline.
  Outcome read(std::string& message);

 private:
  struct State;
  Outcome read_line(const char* prompt, std::string& line);
  std::unique_ptr<State> state_;
};

}  // namespace still
