#include "cli/answer_printer.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <cerrno>
#include <cstring>

namespace still {
namespace {

// A model may say escape sequences; on a terminal they must not act. Line ends and tabs stay.
std::string without_controls(std::string_view text) {
  std::string clean;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (std::size_t i = 0; i < text.size();) {
    utf8proc_int32_t code_point = -1;
    const utf8proc_ssize_t n = utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code_point);
    const std::size_t n_bytes = n > 0 ? static_cast<std::size_t>(n) : 1;
    const bool is_control = n > 0 && utf8proc_category(code_point) == UTF8PROC_CATEGORY_CC;
    if (!is_control || code_point == '\n' || code_point == '\t') clean += text.substr(i, n_bytes);
    i += n_bytes;
  }
  return clean;
}

}  // namespace

AnswerPrinter::AnswerPrinter(const Context& context, ReasoningView view, bool wraps_words)
    : context_(context),
      view_(view),
      progress_(context.err),
      wrap_(wraps_words && context.out.is_tty() ? context.out.width() : 0) {}

void AnswerPrinter::write(std::string_view text) {
  if (text.empty()) return;
  const std::string clean = context_.out.is_tty() ? without_controls(text) : std::string(text);
  if (clean.empty()) return;
  const std::string wrapped = wrap_.wrap(clean);
  std::fwrite(wrapped.data(), 1, wrapped.size(), context_.out.stream());
  errno = 0;
  if (std::fflush(context_.out.stream()) != 0 && write_errno_ == 0) write_errno_ = errno != 0 ? errno : EIO;
  ends_with_newline_ = clean.ends_with('\n');
}

void AnswerPrinter::on_event(const Event& event) {
  if (const auto* progress = std::get_if<ProgressEvent>(&event)) {
    if (progress->n_prompt > 0) {
      progress_.update("reading the prompt",
                       static_cast<double>(progress->n_prefilled) / static_cast<double>(progress->n_prompt),
                       fmt::format("{} / {} tokens", progress->n_prefilled, progress->n_prompt));
    }
  } else if (const auto* token = std::get_if<TokenEvent>(&event)) {
    if (token->channel == Channel::kReasoning) {
      if (token->id >= 0 && !token->is_tag) ++n_reasoning_;
      print_reasoning(token->text);
    } else {
      print_content(token->text);
    }
  }
}

bool AnswerPrinter::shows_reasoning() const {
  return view_ == ReasoningView::kVisible || (view_ == ReasoningView::kDimmed && context_.out.is_tty());
}

void AnswerPrinter::print_reasoning(std::string_view text) {
  if (!shows_reasoning()) {
    if (context_.err.is_tty()) progress_.update("thinking", -1, fmt::format("{} tokens", n_reasoning_));
    return;
  }
  if (text.empty()) return;
  progress_.clear();
  if (!in_reasoning_) {
    in_reasoning_ = true;
    const std::string_view dim = context_.out.dim();
    if (dim.empty()) {
      write("<think>\n");
    } else {
      std::fwrite(dim.data(), 1, dim.size(), context_.out.stream());
    }
  }
  write(text);
}

void AnswerPrinter::close_reasoning() {
  if (!in_reasoning_) return;
  in_reasoning_ = false;
  if (!ends_with_newline_) write("\n");
  const std::string_view reset = context_.out.reset();
  if (reset.empty()) {
    write("</think>\n\n");
  } else {
    std::fwrite(reset.data(), 1, reset.size(), context_.out.stream());
    write("\n");
  }
}

void AnswerPrinter::print_content(std::string_view text) {
  if (text.empty()) return;
  progress_.clear();
  close_reasoning();
  write(text);
}

Status AnswerPrinter::finish() {
  progress_.clear();
  close_reasoning();
  if (!ends_with_newline_) write("\n");
  if (can_write()) return ok();
  return error(Code::kResourceExhausted, "cannot write the output: {}", std::strerror(write_errno_));
}

void print_stats(const GenerateResult& result, double load_seconds) {
  const Usage& usage = result.finished.usage;
  const Timings& timings = result.finished.timings;
  const double prefill = to_seconds(timings.prefill), decode = to_seconds(timings.decode);
  const auto rate = [](std::int64_t n, double seconds) { return seconds > 0 ? static_cast<double>(n) / seconds : 0.0; };
  fmt::print(stderr, "\n");
  fmt::print(stderr, "total duration:       {:.3f}s\n", to_seconds(timings.total) + load_seconds);
  fmt::print(stderr, "load duration:        {:.3f}s\n", load_seconds);
  fmt::print(stderr, "time to first token:  {:.3f}s\n", to_seconds(timings.ttft));
  fmt::print(stderr, "prompt eval count:    {} token(s)", usage.n_prompt);
  if (usage.n_cached > 0) fmt::print(stderr, ", {} of them cached", usage.n_cached);
  fmt::print(stderr, "\nprompt eval duration: {:.3f}s\n", prefill);
  fmt::print(stderr, "prompt eval rate:     {:.2f} tokens/s\n", rate(usage.n_prompt - usage.n_cached, prefill));
  fmt::print(stderr, "eval count:           {} token(s)", usage.n_completion);
  if (usage.n_reasoning > 0) fmt::print(stderr, ", {} of them thinking", usage.n_reasoning);
  if (usage.n_drafted > 0) fmt::print(stderr, ", {} of {} drafted ones accepted", usage.n_accepted, usage.n_drafted);
  fmt::print(stderr, "\neval duration:        {:.3f}s\n", decode);
  // The first token belongs to the prompt's time.
  fmt::print(stderr, "eval rate:            {:.2f} tokens/s\n",
             rate(std::max<std::int64_t>(usage.n_completion - 1, 0), decode));
}

}  // namespace still
