#include "cli/line_editor.h"

#include <histedit.h>
#include <unistd.h>

#include <cstdio>
#include <string_view>
#include <system_error>

#include "base/check.h"

namespace still {
namespace {

constexpr std::string_view kQuotes = "\"\"\"";
constexpr std::string_view kPasteEnd = "\033[201~";
constexpr int kHistorySize = 1000;

}  // namespace

struct LineEditor::State {
  EditLine* edit = nullptr;
  History* history = nullptr;
  std::filesystem::path history_file;
  const char* prompt = "";
  bool was_interrupted = false;
};

namespace {

// libedit hands the State back through EL_CLIENTDATA; its type is private to LineEditor, so these see what they need.
struct Shared {
  const char** prompt;
  bool* was_interrupted;
};

Shared& shared_of(EditLine* edit) {
  void* data = nullptr;
  el_get(edit, EL_CLIENTDATA, &data);
  return *static_cast<Shared*>(data);
}

char* prompt_of(EditLine* edit) {
  return const_cast<char*>(*shared_of(edit).prompt);
}

unsigned char on_interrupt_key(EditLine* edit, int) {
  *shared_of(edit).was_interrupted = true;
  const LineInfo* line = el_line(edit);
  el_cursor(edit, static_cast<int>(line->lastchar - line->cursor));
  line = el_line(edit);
  el_deletestr(edit, static_cast<int>(line->lastchar - line->buffer));
  return CC_NEWLINE;
}

// What the terminal sends between ESC [200~ and ESC [201~ is inserted as it is, newlines too.
unsigned char on_paste(EditLine* edit, int) {
  std::string text;
  char c = 0;
  while (!text.ends_with(kPasteEnd) && el_getc(edit, &c) == 1) text += c == '\r' ? '\n' : c;
  if (!text.ends_with(kPasteEnd)) return CC_EOF;
  text.resize(text.size() - kPasteEnd.size());
  // A last newline would only leave an empty line behind the cursor.
  while (text.ends_with('\n')) text.pop_back();
  if (!text.empty()) el_insertstr(edit, text.c_str());
  return CC_REFRESH;
}

}  // namespace

LineEditor::LineEditor(std::filesystem::path history_file) : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.history_file = std::move(history_file);
  state.edit = el_init("still", stdin, stdout, stderr);
  state.history = history_init();
  STILL_CHECK(state.edit && state.history);
  el_set(state.edit, EL_CLIENTDATA, new Shared{&state.prompt, &state.was_interrupted});
  el_set(state.edit, EL_PROMPT, prompt_of);
  el_set(state.edit, EL_EDITOR, "emacs");
  HistEvent event;
  history(state.history, &event, H_SETSIZE, kHistorySize);
  history(state.history, &event, H_SETUNIQUE, 1);
  el_set(state.edit, EL_HIST, history, state.history);
  el_set(state.edit, EL_ADDFN, "still-interrupt", "Drop the line", on_interrupt_key);
  el_set(state.edit, EL_ADDFN, "still-paste", "Insert what is pasted", on_paste);
  el_set(state.edit, EL_BIND, "^C", "still-interrupt", nullptr);
  el_set(state.edit, EL_BIND, "\\e[200~", "still-paste", nullptr);
  el_set(state.edit, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  el_set(state.edit, EL_BIND, "\\e[1~", "ed-move-to-beg", nullptr);
  el_set(state.edit, EL_BIND, "\\e[4~", "ed-move-to-end", nullptr);
  el_set(state.edit, EL_BIND, "\\e[3~", "ed-delete-next-char", nullptr);
  // Ctrl-C is a key while a line is edited, not a signal: libedit swallows interrupted reads.
  el_set(state.edit, EL_SETTY, "-d", "-isig", nullptr);
  if (!state.history_file.empty()) history(state.history, &event, H_LOAD, state.history_file.c_str());
}

LineEditor::~LineEditor() {
  State& state = *state_;
  if (!state.history_file.empty()) {
    std::error_code ignored;  // a history that cannot be kept is no reason to fail
    std::filesystem::create_directories(state.history_file.parent_path(), ignored);
    HistEvent event;
    history(state.history, &event, H_SAVE, state.history_file.c_str());
  }
  Shared* shared = &shared_of(state.edit);
  history_end(state.history);
  el_end(state.edit);
  delete shared;
}

LineEditor::Outcome LineEditor::read_line(const char* prompt, std::string& line) {
  State& state = *state_;
  state.prompt = prompt;
  state.was_interrupted = false;
  std::fputs("\033[?2004h", stdout);  // bracketed paste on
  std::fflush(stdout);
  int n = 0;
  const char* text = el_gets(state.edit, &n);
  std::fputs(state.was_interrupted ? "\033[?2004l\n" : "\033[?2004l", stdout);
  std::fflush(stdout);
  if (state.was_interrupted) return Outcome::kInterrupted;
  if (!text || n <= 0) return Outcome::kEnd;
  line.assign(text, static_cast<std::size_t>(n));
  if (line.ends_with('\n')) line.pop_back();
  return Outcome::kMessage;
}

LineEditor::Outcome LineEditor::read(std::string& message) {
  message.clear();
  bool is_quoted = false;
  for (bool is_first = true;; is_first = false) {
    std::string line;
    const Outcome outcome = read_line(is_first ? ">>> " : "... ", line);
    if (outcome != Outcome::kMessage) return outcome;
    if (is_first && line.starts_with(kQuotes)) {
      is_quoted = true;
      line.erase(0, kQuotes.size());
    }
    if (is_quoted) {
      const std::size_t end = line.find(kQuotes);
      message += line.substr(0, end);
      if (end != std::string::npos) break;
      message += '\n';
    } else if (line.ends_with('\\')) {
      line.back() = '\n';
      message += line;
    } else {
      message += line;
      break;
    }
  }
  if (!message.empty()) {
    HistEvent event;
    history(state_->history, &event, H_ENTER, message.c_str());
  }
  return Outcome::kMessage;
}

}  // namespace still
